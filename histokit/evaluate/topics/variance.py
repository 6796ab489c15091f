"""Whether expression is predicted to vary as much as it does; regressions predict less."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from histokit.core.distributed import Team
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.intervals import mean_interval, units_of
from histokit.evaluate.metrics import mean_or_nan
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.summary import averaged, one_row_a_slide
from histokit.evaluate.topics.base import Part, Topic, gather_rows
from histokit.evaluate.verdict import averaging
from histokit.evaluate.views import SlideView
from histokit.models.sampling import Generative
from histokit.ops import StreamingPearson
from histokit.report.page import Section, Table

TEXT = (
    "RVD, the relative variance distance of Stem's authors: how far the variance of a gene over a "
    "slide's spots, as predicted, is from the measured one, squared and as a share of it; 0 is "
    "right, 1 is what a constant prediction has. A mean over draws varies less than each draw."
)


def relative_variance_distance(predicted: np.ndarray, measured: np.ndarray) -> float:
    """RVD (Zhu et al. 2025, Stem): mean over genes of (predicted - measured)^2 / measured^2.

    Args:
        predicted: (G,) variance of each gene's prediction over the spots of a slide.
        measured: (G,) variance of its measured expression; genes without any, or not measured
            (NaN), are left out.

    Returns:
        The distance, NaN where no gene is left.
    """
    found = measured > 0
    ratio = predicted[found] / measured[found]
    return mean_or_nan((ratio - 1) ** 2)


class VarianceTopic(Topic):
    """RVD of each test slide over the headline's genes; of a model that draws, also of one draw."""

    def __init__(self):
        self.rows: list[dict] = []

    def add(self, view: SlideView) -> None:
        """Compare the variances of a slide."""
        score = view.score
        known = score.hvg & score.learned & score.measured
        genes = np.flatnonzero(known & ~score.constant_target)
        prediction, measured = view.prediction[:, genes], view.score.variance[genes]
        row = {"fold": view.fold.name, "slide_id": view.slide.slide_id, "genes": len(genes)}
        row["rvd_hvg"] = relative_variance_distance(_variance(prediction), measured)
        if isinstance(view.model, Generative):
            draw = view.model.behind(view.prediction.hidden).first[:, genes]
            pcc = StreamingPearson(len(genes))
            pcc.update(draw.contiguous(), torch.from_numpy(view.target[:, genes].toarray()))
            row["pcc_hvg_one_draw"] = mean_or_nan(pcc.compute()[0].numpy())
            row["rvd_hvg_one_draw"] = relative_variance_distance(_variance(draw), measured)
        self.rows.append(row)

    def gather(self, team: Team, scores: Sequence[SlideScore]) -> None:
        """Join the slides of all ranks."""
        self.rows = gather_rows(team, self.rows, scores)

    def finish(self, evaluation: Evaluation) -> Part:
        """The distances, in variance.csv and their mean over patients in a section."""
        table = pd.DataFrame(self.rows)
        table.to_csv(evaluation.folder / "variance.csv", index=False)
        slides = evaluation.slides[["fold", "slide_id", "patient", "below_floor", "pcc_hvg"]]
        slides = one_row_a_slide(averaged(slides.merge(table, on=["fold", "slide_id"])))
        units = units_of(slides["patient"])

        def mean(name: str) -> float:
            return mean_interval(slides[name].to_numpy(float), units).value

        rows = [["the prediction", mean("pcc_hvg"), mean("rvd_hvg")]]
        if "rvd_hvg_one_draw" in table:
            rows.append(["one draw", mean("pcc_hvg_one_draw"), mean("rvd_hvg_one_draw")])
        note = f"{averaging(units.name)} Headline genes."
        shown = Table("", ["", "PCC", "RVD"], rows, note)
        return Part(sections=[Section("Variance", TEXT, [shown])])


def _variance(values: torch.Tensor) -> np.ndarray:
    """(G,) variance over spots (N, G), as ``SlideScore.variance`` has it."""
    return values.double().var(dim=0, correction=0).numpy()
