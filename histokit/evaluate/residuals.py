"""What a prediction misses at each spot."""

from __future__ import annotations

import numpy as np

from histokit.evaluate.views import SlideView


def headline_residuals(view: SlideView) -> np.ndarray:
    """Measured minus predicted expression of the headline's genes on a slide.

    Args:
        view: the slide.

    Returns:
        (N, H) float32 on the scale of the targets, H the genes of the headline that have an error
        on this slide: measured there, and known to the model.
    """
    genes = np.flatnonzero(view.score.hvg & ~np.isnan(view.score.mse))
    return view.target[:, genes].toarray() - view.prediction[:, genes].numpy()
