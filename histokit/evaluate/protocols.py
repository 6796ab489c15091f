"""Evaluations as the papers do them: every choice behind a figure fixed, named and stored."""

from __future__ import annotations

import dataclasses

from histokit.core.errors import InputError
from histokit.evaluate.runs import Run


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to turn predictions into figures.

    Attributes:
        source: whose it is and where it is written down.
        target: scale that runs must be trained on; None takes any.
        genes: rule of the gene list, and which slides have a say in it.
        pooling: the spots behind one correlation: those of a ``slide``, of a ``fold``, or of all
            test slides of a ``cancer``.
        nan: ``skip`` leaves an undefined correlation out, ``propagate`` spoils the mean.
        average: from correlations to the figure.
        regressor: intercept and penalty of the protocol's own regression, where it has one.
        top: sizes of gene lists ranked by the correlation that was reached.
        meaning: the figure in a sentence.
        warning: what it must not be set beside.
    """

    name: str
    source: str
    target: str | None
    genes: str
    pooling: str
    nan: str
    average: str
    regressor: str
    meaning: str
    warning: str
    top: tuple[int, ...] = ()

    def knobs(self) -> dict[str, str]:
        """What is written beside every number."""
        return {
            "protocol": self.name,
            "gene_rule": self.genes,
            "pooling": self.pooling,
            "nan": self.nan,
            "averaging": self.average,
            "protocol_regressor": self.regressor,
        }


_HEST_GENES = "50 by scanpy's dispersion, detected in 10 % of the spots of every slide, test too"
PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(
            "histokit",
            "this project",
            None,
            "most variable on the training slides of each fold",
            "slide",
            "skip",
            "mean over genes, then over the slides of a patient, then over patients",
            "as the run's",
            "How well the pattern within one new slide is predicted, for genes chosen without it.",
            "Papers choose genes with the test slides, or pool slides; both give other figures.",
        ),
        Protocol(
            "hest-bench",
            "HEST-Bench, hest.bench",
            "log1p",
            _HEST_GENES,
            "fold",
            "propagate",
            "mean over genes, then over folds; deviation over folds (ddof 0)",
            "StandardScaler, PCA 256, ridge without intercept, alpha 100 / (components x genes)",
            "The correlation over all test spots of a fold together, so that differences between "
            "slides count as well as the pattern within one.",
            "Raw counts: much of it is the number of molecules caught. Genes were chosen with the "
            "test slides. Without an intercept the MSE holds the level of expression too: it says "
            "nothing beside the MSE of models that have one.",
        ),
        Protocol(
            "histoprism",
            "HistoPrism, section 4 and its inference.py",
            "log1p",
            f"{_HEST_GENES}, of each cancer apart; and all genes of the model",
            "slide",
            "skip",
            "mean over genes, then over slides (micro), or over the slides of a cancer in a split, "
            "over splits and then over cancers (macro)",
            "none",
            "The correlation within each slide, averaged over slides or over cancers.",
            "Raw counts: much of it is the number of molecules caught. Genes were chosen with the "
            "test slides. Macro and micro differ, and neither pools spots as HEST-Bench does.",
        ),
        Protocol(
            "stpath",
            "STPath, gene_exp_prediction/metric.py",
            "log1p",
            f"{_HEST_GENES}, of each cancer apart",
            "cancer",
            "propagate",
            "mean over genes, then over cancers; deviation over genes (ddof 0)",
            "none",
            "The correlation over the spots of all test slides of a cancer together, so that "
            "differences between slides and between patients count as well.",
            "A model that only knows each slide's mean already has a high figure here. Not "
            "comparable with any correlation within slides.",
        ),
        Protocol(
            "stem-topk",
            "Stem (Zhu et al. 2025), its HMHVG genes and PCC-10/50/200",
            "log2",
            "in both the 241 highest means and deviations of raw counts, among each slide's 2,000 "
            "highly variable genes of those that all slides measured, test slides too",
            "slide",
            "skip",
            "mean over the k genes with the highest correlation reached, then over slides",
            "none",
            "The correlation of the genes that turned out best on each test slide.",
            "Genes are ranked by the figure itself: PCC-10 of noise is far above zero. The MSE is "
            "on the log2 scale, 2.08 times that of log1p. Compare equal k only.",
            (10, 50, 200),
        ),
    )
}


def check_protocol(run: Run, protocol: Protocol) -> None:
    """Raise InputError where a run was trained on a scale that the protocol does not score.

    Nothing turns one scale into another afterwards: the image does not tell a spot's library size.
    """
    target = run.config["options"]["target"]
    if protocol.target not in (None, target):
        raise InputError(
            f"{run.folder} was trained on --target {target}, but the protocol {protocol.name} "
            f"scores {protocol.target}; train a run with --target {protocol.target}"
        )
