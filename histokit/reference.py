"""The ops in plain PyTorch, under their public name; ``histokit.ops.reference`` holds them."""

from histokit.ops.reference import (
    cancer_cross_attention,
    distance_attention,
    linear_mse,
    linear_pearson,
    pearson_update,
    prototype_attention,
)

__all__ = [
    "cancer_cross_attention",
    "distance_attention",
    "linear_mse",
    "linear_pearson",
    "pearson_update",
    "prototype_attention",
]
