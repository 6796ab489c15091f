"""Correlations that stream, and averages that do not flatter, under their public name."""

from histokit.evaluate.metrics import macro_mean, mean_or_nan
from histokit.ops import StreamingPearson

__all__ = ["StreamingPearson", "macro_mean", "mean_or_nan"]
