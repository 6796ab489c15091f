"""What the figures of protocols and of papers are called where people read them."""

from __future__ import annotations

_TOP, _ALL = "PCC of the top genes", "PCC of all genes"
_PARTS = {
    "": "",
    "-macro": ", mean of cancers (macro)",
    "-micro": ", mean of slides (micro)",
    "-cancer": ", mean of a cancer's splits",
    "-cancer-micro": ", mean of a cancer's slides",
}
NAMES = {
    "pcc": "PCC",
    **{f"pcc-top50{part}": f"{_TOP}{words}" for part, words in _PARTS.items()},
    **{f"pcc-all{part}": f"{_ALL}{words}" for part, words in _PARTS.items()},
    **{f"pcc-{k}": f"PCC of the {k} best predicted genes" for k in (10, 50, 200)},
    "pcc-hpg": "PCC of highly predictive genes",
    "pcc-heg": "PCC of highly expressed genes",
    "pcc-hvg": "PCC of highly variable genes",
    "mse": "MSE",
    "target_variance": "target variance",
    "ami": "AMI of clusters and cancers",
    "ari": "ARI of clusters and cancers",
    "win-rate-hallmark": "win rate over Hallmark pathways",
    "win-rate-go": "win rate over GO pathways",
}


def figure_name(figure: str) -> str:
    """The words for a figure of ``protocol.csv`` or a metric of ``published.csv``.

    Args:
        figure: such as ``pcc-top50-macro``.

    Returns:
        Such as ``PCC of the top genes, mean of cancers (macro)``; how many genes the top ones are
        stands in ``protocol.csv``, for a given list may hold any number.
    """
    return NAMES[figure]
