"""Correlations that stream, under their public name; ``histokit.evaluate.metrics`` holds them."""

from histokit.evaluate.metrics import StreamingPearson, macro_mean, mean_or_nan

__all__ = ["StreamingPearson", "macro_mean", "mean_or_nan"]
