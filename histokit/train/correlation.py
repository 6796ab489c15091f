"""How well some genes are predicted on one slide: what training choices are made by."""

from __future__ import annotations

from torch import Tensor

from histokit.ops import StreamingPearson


def mean_pcc(prediction: Tensor, truth: Tensor) -> float:
    """Mean Pearson correlation of the genes of a slide; 0 for one that is predicted constant.

    Args:
        prediction: (N, G) float, over the spots of one slide.
        truth: (N, G) float; a gene that does not vary here does not count.

    Returns:
        NaN where no gene varies.
    """
    score = StreamingPearson(truth.shape[1])
    score.update(prediction, truth)
    pcc = score.compute()[0].nan_to_num(0)[~score.constant_target()[0]]
    return float(pcc.mean())
