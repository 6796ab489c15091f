"""Gene Pathway Coherence: whether genes that work together are predicted (Eq. 7 of HistoPrism)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.core.files import file_id
from histokit.data.gene_sets import Match, is_hallmark, load_gene_sets
from histokit.evaluate.coherence import (
    coherence,
    gene_variance,
    pathway_by_slide,
    scores_by_level,
    slide_intervals,
    slide_means,
)
from histokit.evaluate.curation import curate_for_panel
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.intervals import units_of
from histokit.evaluate.metrics import mean_or_nan
from histokit.evaluate.runs import Run
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.summary import (
    CORRELATION,
    pcc_matrix,
    scores_averaged,
)
from histokit.evaluate.topics.base import Part, Topic
from histokit.evaluate.topics.pathway_plots import SHOWN, by_level, pathway_dots
from histokit.evaluate.verdict import interval_note, with_interval
from histokit.report import plots
from histokit.report.page import NONE, Picture, Section, Table, number


@dataclasses.dataclass
class Collection:
    """Gene sets of one file or library, read once for all runs.

    Attributes:
        curated: False where sets are only intersected with a panel.
    """

    name: str
    sets: Mapping[str, Sequence[str]]
    curated: bool
    _within: dict = dataclasses.field(default_factory=dict, repr=False)

    def within(self, panel: pd.DataFrame):
        """The sets within a panel, as ``histokit.evaluate.curation.curate_for_panel``.

        Raises:
            InputError: no gene, or no set, is left.
        """
        key = tuple(panel["gene"])
        if key not in self._within:
            self._within[key] = self._curate(panel)
        return self._within[key]

    def _curate(self, panel: pd.DataFrame):
        try:
            kept, reasons, match = curate_for_panel(self.sets, panel, self.curated)
        except InputError as error:
            raise InputError(f"gene sets {self.name}: {error}") from error
        if not kept:
            raise InputError(
                f"gene sets {self.name}: none has 50 to 100 genes of the panel of {len(panel):,} "
                "genes; score them as they are with --no-curate, or choose other sizes with python "
                "-m histokit.evaluate.curation first"
            )
        return kept, reasons, match


def read_collections(sources: Sequence[str], curate: bool) -> list[Collection]:
    """Read gene sets; raises InputError for the first file that is wrong or named twice."""
    collections = []
    for source in sources:
        sets = load_gene_sets(source)
        # names become file names, whatever a library is called
        name = file_id(Path(source).name.removesuffix(".gz").removesuffix(".gmt"))
        hallmark = is_hallmark(sets) or "hallmark" in name.lower()
        collections.append(Collection(name, sets, curate and not hallmark))
    names = [collection.name for collection in collections]
    if len(set(names)) < len(names):
        raise InputError(f"--gene-sets names {max(names, key=names.count)} twice; give it once")
    return collections


@dataclasses.dataclass(frozen=True)
class Pathways:
    """A collection within a panel: its sets, why others are not there, its scores.

    Attributes:
        table: as ``histokit.evaluate.coherence.coherence`` returns it.
        by_slide: pathways x slides.
        levels: as ``histokit.evaluate.coherence.scores_by_level`` returns them.
    """

    name: str
    curated: bool
    reasons: pd.DataFrame
    match: Match
    table: pd.DataFrame
    by_slide: pd.DataFrame
    levels: pd.DataFrame


@dataclasses.dataclass(frozen=True)
class PathwayGenes:
    """What a comparison of pathways needs of one run, of slides with enough spots for averages.

    Attributes:
        panel: gene, gene_id, symbol.
        pcc: genes x slides.
        variance: the variance of the targets by gene.
        patients: the patients of each slide, empty where unknown.
    """

    panel: pd.DataFrame
    pcc: pd.DataFrame
    variance: pd.Series
    patients: pd.Series


def panel_of(run: Run) -> pd.DataFrame:
    """gene, gene_id, symbol of every gene that some fold predicts."""
    return _distinct([fold.genes for fold in run.folds])


def _distinct(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    merged = pd.concat([table[["gene", "gene_id", "symbol"]] for table in tables])
    return merged.drop_duplicates("gene").reset_index(drop=True)


def genes_of(scores: Sequence[SlideScore]) -> PathwayGenes:
    """Panel, correlations, variances and patients of a run's test slides."""
    panel, scores = _distinct([score.genes for score in scores]), scores_averaged(scores)
    patients = pd.Series({score.slide_id: score.patient for score in scores}, dtype=object)
    return PathwayGenes(panel, pcc_matrix(scores), gene_variance(scores), patients)


def score_pathways(collection: Collection, genes: PathwayGenes, folder: Path) -> Pathways:
    """Score a collection; writes coherence_, coherence_by_slide_ and curation_NAME.csv."""
    kept, reasons, match = collection.within(genes.panel)
    table = coherence(kept, genes.pcc, genes.variance, genes.patients)
    by_slide = pathway_by_slide(kept, genes.pcc)[0]
    levels = scores_by_level(table, by_slide, genes.patients)
    name = collection.name
    reasons.to_csv(folder / f"curation_{name}.csv", index=False, float_format="%.6g")
    table.to_csv(folder / f"coherence_{name}.csv", float_format="%.6g")
    by_slide.to_csv(folder / f"coherence_by_slide_{name}.csv", float_format="%.6g")
    return Pathways(name, collection.curated, reasons, match, table, by_slide, levels)


class PathwayTopic(Topic):
    """Every collection on every run; keeps what a comparison of runs needs."""

    def __init__(self, collections: Sequence[Collection]):
        self.collections = collections
        self.genes: PathwayGenes | None = None

    def finish(self, evaluation: Evaluation) -> Part:
        """A section a collection."""
        self.genes = genes_of(evaluation.scores)
        mean_pcc, folder = mean_or_nan(evaluation.genes["pcc"]), evaluation.folder
        sections = []
        for collection in self.collections:
            found = score_pathways(collection, self.genes, folder)
            patients = self.genes.patients
            sections.append(pathway_section(found, patients, mean_pcc, folder, not sections))
        return Part(sections=sections)


_ENDS = 8  # pathways of either end in a table; the CSV has them all
PATHWAY_TEXT = (
    "A pathway's coherence is the mean PCC of its genes on a slide, then over the slides of a "
    "patient, then over patients, with its 95 % interval (Gene Pathway Coherence, Eq. 7 of "
    "HistoPrism, whose own mean is over slides: score_over_slides in the CSV). "
    "It asks whether genes that work together are predicted, variable or not. It is not the PCC "
    "of the pathway's summed expression, which would be higher. “Expected” is what any genes of "
    "the same variance levels reach on these slides: only what lies above it is owed to the "
    "pathway and not to how variable its genes are. “Genes scored” is a mean over slides. Compare "
    "only runs of one target and panel on the same slides."
)
LEVEL_TEXT = (
    "Genes are put in ten levels of a tenth each by the variance of their measured expression over "
    "all test spots; a pathway's level is that of the mean variance of its genes. A few variable "
    "genes raise that mean, so the lowest levels are mostly empty."
)


def pathway_section(
    pathways: Pathways, patients: pd.Series, mean_pcc: float, folder: Path, explain: bool = True
) -> Section:
    """Scores of one collection: how it was curated, best and worst, by variance level.

    Args:
        pathways: the collection.
        patients: the patients of each slide, empty where unknown.
        mean_pcc: the mean PCC of all genes.
        folder: gets two pictures.
        explain: say what the figures mean; once in a report.
    """
    table, name = pathways.table, pathways.name
    scored = table.dropna(subset="score").sort_values("score", ascending=False, kind="stable")
    if scored.empty:
        text = f"{_curation(pathways)} No pathway could be scored: no gene has a correlation."
        return Section(f"Pathways: {name}", text)
    means = pathways.by_slide.mean().to_frame().T
    low, high = slide_intervals(means, patients, CORRELATION)
    mean, units = float(slide_means(means, patients).iloc[0]), units_of(patients)
    over = interval_note(units.name, len(set(units.labels)), not np.isnan(low[0]))
    columns = ["pathway", "coherence", "expected", "genes scored", "genes", "slides", "level"]
    tables = [
        Table(
            "",
            ["", "pathways", "coherence"],
            [
                ["mean of all pathways", len(scored), with_interval(mean, low[0], high[0])],
                ["expected of genes as variable", NONE, number(float(scored["expected"].mean()))],
                ["mean PCC of all genes", NONE, number(mean_pcc)],
            ],
            over,
        )
    ]
    if len(scored) > 2 * _ENDS:
        tables.append(Table("Best predicted", columns, _rows(scored.head(_ENDS))))
        tables.append(Table("Worst predicted", columns, _rows(scored.tail(_ENDS).iloc[::-1])))
    else:
        tables.append(Table("", columns, _rows(scored)))
    levels = [
        [str(level), int(row.pathways), with_interval(row.value, row.low, row.high)]
        for level, row in pathways.levels.iterrows()
    ]
    note = LEVEL_TEXT if explain else ""
    tables.append(Table("By variance level", ["level", "pathways", "coherence"], levels, note))
    dots, strata = folder / f"coherence_{name}.png", folder / f"levels_{name}.png"
    plots.save(pathway_dots(table, mean_pcc), dots)
    label = "pathway coherence"
    plots.save(by_level(table["score"], table["variance_level"], pathways.levels, label), strata)
    which = "Each pathway" if len(scored) <= 2 * SHOWN else f"The best and the worst {SHOWN}"
    pictures = [
        Picture(
            dots,
            f"{which}: mean PCC of its genes, mean over patients, and its 95 % interval, "
            "where there is one; a tick is what genes as variable reach, the dashed line the mean "
            "over all genes.",
            85,
        ),
        Picture(
            strata,
            "Pathways by variance level; diamonds are the mean of a level and its 95 % interval, "
            "where there is one.",
            70,
        ),
    ]
    return Section(
        f"Pathways: {name}",
        f"{_curation(pathways)} {PATHWAY_TEXT if explain else ''}",
        tables,
        pictures,
    )


def _rows(table: pd.DataFrame) -> list[list]:
    return [
        [name, with_interval(row.score, row.low, row.high), float(row.expected),
         number(float(row.genes_per_slide), 1), int(row.genes), int(row.slides),
         str(int(row.variance_level) or NONE)]
        for name, row in table.iterrows()
    ]  # fmt: skip


def _curation(pathways: Pathways) -> str:
    """What happened to the sets of a collection, in sentences."""
    reasons, match = pathways.reasons, pathways.match
    found = match.named - len(match.lost)
    text = (
        f"{len(pathways.table):,} of {len(reasons):,} sets are scored; the panel has {found:,} of "
        f"the {match.named:,} genes they name."
    )
    dropped = reasons.loc[~reasons["kept"], "reason"].value_counts()
    if len(dropped):
        counts = "; ".join(f"{reason}: {count:,}" for reason, count in dropped.items())
        text += f" Sets left out: {counts}."
    return text + (
        "" if pathways.curated else " Sets are intersected with the panel, not filtered."
    )
