"""Where on the tissue a prediction errs."""

from __future__ import annotations

import numpy as np

from histokit.data.gene_names import full_name
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.residuals import headline_residuals
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.topics.base import Part, Topic
from histokit.evaluate.topics.maps import picture_path
from histokit.evaluate.topics.predictions import read_tissue
from histokit.evaluate.verdict import UNITS
from histokit.evaluate.views import SlideView
from histokit.report import plots
from histokit.report.page import Picture, Section, number
from histokit.report.residual_plots import residual_maps

TEXT = (
    "Measured minus predicted expression of the best and the worst predicted of the highly "
    "variable genes of a slide: red where more was measured than predicted, blue where less. "
    "Below, all highly variable genes of a spot together: how far the prediction is off, whichever "
    "way, and which way it leans. Errors in patches are tissue that the model does not know or a "
    "change of its level; errors that look like salt and pepper are mostly the counts' own noise."
)


class ResidualTopic(Topic):
    """Residuals of a few slides on the tissue, one file a slide."""

    def __init__(self):
        self.pictures: list[Picture] = []

    def show(self, view: SlideView, evaluation: Evaluation) -> None:
        """Draw a slide, where any gene of the headline has a correlation there."""
        genes = ends(view.score)
        if not genes:
            return
        maps = [_gene_map(view, name, index) for name, index in genes.items()]
        score, off = view.score, headline_residuals(view)
        tissue = read_tissue(evaluation.job.cohort, view.slide)
        title, unit = f"{score.slide_id}: measured minus predicted", UNITS[evaluation.target]
        figure = residual_maps(tissue, maps, off, title, unit)
        path = picture_path(evaluation.folder, "residuals", view.fold, score.slide_id)
        plots.save(figure, path)
        caption = (
            f"Slide {score.slide_id}, fold {score.fold}: measured and predicted share one color "
            "scale; residuals have their own, white at 0. Mean absolute residual over "
            f"{off.shape[1]} genes and {off.shape[0]:,} spots: {number(float(abs(off).mean()), 3)}."
        )
        self.pictures.append(Picture(path, caption))

    def finish(self, evaluation: Evaluation) -> Part:
        """The pictures, where there are any."""
        sections = [Section("Where errors lie", TEXT, pictures=self.pictures)]
        return Part(sections=sections if self.pictures else [])


def ends(score: SlideScore) -> dict[str, int]:
    """Best and worst of the headline's genes on a slide, by its own PCC.

    Args:
        score: the slide's.

    Returns:
        Label to index in the order of the model's outputs; one gene where only one is scored, none
        where none is.
    """
    scored = np.flatnonzero(score.hvg & ~np.isnan(score.pcc))
    if not len(scored):
        return {}
    order = scored[np.argsort(-score.pcc[scored], kind="stable")]
    best = {f"best of {len(order)}": int(order[0])}
    return best | ({f"worst of {len(order)}": int(order[-1])} if len(order) > 1 else {})


def _gene_map(view: SlideView, label: str, index: int) -> plots.GeneMap:
    name = full_name(*view.score.genes.iloc[index][["gene", "symbol", "gene_id"]])
    title = f"{name}\n{label}  ·  PCC {number(float(view.score.pcc[index]))}"
    measured = view.target[:, [index]].toarray().ravel()
    return plots.GeneMap(title, measured, view.prediction[:, index].numpy())
