"""Which slides and genes an evaluation shows, and the pictures of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.files import make_folder
from histokit.data.cohort import Cohort
from histokit.data.gene_names import full_name
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.metrics import mean_or_nan
from histokit.evaluate.runs import Fold
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.tables import SEEN_GROUPS, detail_sections, map_sections, patient_table
from histokit.evaluate.topics.base import Part, Topic
from histokit.evaluate.topics.predictions import read_tissue
from histokit.evaluate.verdict import UNITS
from histokit.evaluate.views import SlideView
from histokit.report import plots
from histokit.report.page import Picture, Section, number


def representative_slides(scores: Sequence[SlideScore], limit: int) -> list[SlideScore]:
    """The middle test slide of each fold; with many folds, evenly from the worst to the best."""
    middle = []
    for fold in dict.fromkeys(score.fold for score in scores):
        own = sorted((s for s in scores if s.fold == fold), key=_headline)
        middle.append(own[(len(own) - 1) // 2])
    if len(middle) > limit:
        middle.sort(key=_headline)
        middle = [middle[i] for i in np.linspace(0, len(middle) - 1, limit).round().astype(int)]
    return middle


def _headline(score: SlideScore) -> float:
    return np.nan_to_num(mean_or_nan(score.pcc[score.hvg]), nan=-2.0)


def telling_genes(score: SlideScore, mean_pcc: pd.Series) -> dict[str, int]:
    """Best, median and worst highly variable gene by mean PCC over the run's test slides.

    Args:
        score: the slide to show; only genes scored on it are chosen, or, where none is (a
            constant prediction), the most variable ones it measured.
        mean_pcc: by gene name.

    Returns:
        Label to index in the order of the model's outputs.
    """
    scored = np.flatnonzero(score.hvg & ~np.isnan(score.pcc))
    if not len(scored):
        rank = score.genes["hvg_rank"].to_numpy(dtype=float)
        known = score.hvg & score.learned & score.measured
        scored = np.flatnonzero(known & ~score.constant_target)
        scored = scored[np.argsort(rank[scored], kind="stable")][:3]
        return {f"variable gene {i + 1}": index for i, index in enumerate(scored)}
    order = np.argsort(-mean_pcc[score.genes["gene"].iloc[scored]].to_numpy(), kind="stable")
    scored = scored[order]
    names = {0: "best", (len(scored) - 1) // 2: "median", len(scored) - 1: "worst"}
    return {f"{name} of {len(scored)}": scored[place] for place, name in names.items()}


class ResultTopic(Topic):
    """The figures of the run: its first table, and an overview in pictures."""

    def finish(self, evaluation: Evaluation) -> Part:
        """Means over slides and the spread over slides and genes."""
        overview = draw_overview(evaluation.slides, evaluation.genes, evaluation.folder)
        return Part(sections=[Section("Results", tables=[evaluation.table], pictures=overview)])


class MapTopic(Topic):
    """Tissue, measured and predicted expression of a few slides, one file a slide."""

    def __init__(self):
        self.pictures: list[Picture] = []

    def show(self, view: SlideView, evaluation: Evaluation) -> None:
        """Draw a slide."""
        picture = draw_map(view, evaluation.genes["pcc"], evaluation.job.cohort, evaluation.target,
                           evaluation.folder)  # fmt: skip
        self.pictures += [picture] if picture else []

    def finish(self, evaluation: Evaluation) -> Part:
        """The pictures, where there are any."""
        return Part(sections=map_sections(self.pictures, evaluation.genes))


class DetailTopic(Topic):
    """Every test patient and slide, and the best and the worst genes."""

    def finish(self, evaluation: Evaluation) -> Part:
        """Their tables; that of patients also in patients.csv."""
        patients = patient_table(evaluation.slides, evaluation.summary)
        patients.to_csv(evaluation.folder / "patients.csv", index=False)
        sections = detail_sections(evaluation.slides, patients, evaluation.genes)
        return Part(sections=sections)


def draw_map(
    view: SlideView, mean_pcc: pd.Series, cohort: Cohort, target: str, folder: Path
) -> Picture | None:
    """Draw measured and predicted expression of a slide; None where no gene can be shown.

    Args:
        view: the slide.
        mean_pcc: by gene name, over the run's test slides.
        cohort: the cohort that holds its picture.
        target: scale of the targets.
        folder: the folder of the evaluation.
    """
    score, fold, slide = view.score, view.fold, view.slide
    chosen = telling_genes(score, mean_pcc)
    if not chosen:
        return None
    measured, maps = view.target.tocsc(), []
    for label, index in chosen.items():
        name = full_name(*score.genes.iloc[index][["gene", "symbol", "gene_id"]])
        title = f"{name}  ·  {label}  ·  PCC {number(float(score.pcc[index]))}"
        own = measured[:, [index]].toarray().ravel()
        maps.append(plots.GeneMap(title, own, view.prediction[:, index].numpy()))
    patient = f"patient {score.patient}, " if score.patient else ""
    title = f"{score.slide_id}   ({patient}{score.cancer or 'no cancer code'})"
    figure = plots.gene_maps(read_tissue(cohort, slide), maps, title, UNITS[target])
    path = picture_path(folder, "maps", fold, score.slide_id)
    plots.save(figure, path)
    headline = number(mean_or_nan(score.pcc[score.hvg]))
    caption = (
        f"Slide {score.slide_id}, fold {score.fold}, {SEEN_GROUPS[score.patient_seen]}; mean PCC "
        f"of its highly variable genes {headline}. Measured and predicted share one color scale; "
        "spots have their size on the tissue."
    )
    return Picture(path, caption)


def picture_path(folder: Path, kind: str, fold: Fold, slide_id: str) -> Path:
    """KIND/FOLD/SLIDE.png, as predictions lie; its folder is made.

    Folds and slides may both hold any of ``_ - .``, so no sign between them in one name would keep
    slide A_B of fold 1 and slide B of fold 1_A apart.
    """
    return make_folder(folder / kind / fold.id) / f"{slide_id}.png"


def draw_overview(slides: pd.DataFrame, genes: pd.DataFrame, folder: Path) -> list[Picture]:
    """A bar a slide and the spread of PCC over genes; nothing where nothing was scored."""
    if genes["pcc"].isna().all():
        return []
    bars, histogram = folder / "slides.png", folder / "genes.png"
    plots.save(plots.slide_bars(slides, int(slides["hvgs"].max())), bars)
    plots.save(plots.pcc_histogram(genes), histogram)
    return [
        Picture(bars, "Each test slide: mean PCC of its highly variable genes.", 75),
        Picture(histogram, "Each gene: PCC, mean over the test patients that could be scored.", 75),
    ]
