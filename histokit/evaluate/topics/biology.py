"""Gene sets, signatures and clusters of an evaluation: read first, scored with the slides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.distributed import Team
from histokit.core.errors import InputError
from histokit.core.files import file_id
from histokit.data.cohort import Cohort
from histokit.data.gene_sets import Match, is_hallmark, load_gene_sets
from histokit.evaluate.coherence import coherence, gene_variance, pathway_by_slide, scores_by_level
from histokit.evaluate.curation import curate_for_panel
from histokit.evaluate.metrics import mean_or_nan
from histokit.evaluate.runs import Run
from histokit.evaluate.summary import MIN_SPOTS, pcc_matrix, scores_averaged
from histokit.evaluate.topics.signatures import (
    Signature,
    find_genes,
    random_genes,
    read_signature,
    score_signature,
)
from histokit.evaluate.views import SlideScore

_RANDOM_LISTS = 20  # lists of random genes beside each signature


@dataclasses.dataclass(frozen=True)
class Collection:
    """Gene sets of one file or library; ``curated`` is False where they are only intersected."""

    name: str
    sets: Mapping[str, Sequence[str]]
    curated: bool


@dataclasses.dataclass(frozen=True)
class Biology:
    """What an evaluation asks beyond single genes."""

    collections: tuple[Collection, ...]
    signatures: tuple[Signature, ...]
    clusters: bool


@dataclasses.dataclass(frozen=True)
class Pathways:
    """A collection within a panel: its sets, why others are not there, its scores.

    Attributes:
        table: of ``histokit.evaluate.coherence.coherence``.
        by_slide: pathways x slides.
        levels: of ``histokit.evaluate.coherence.scores_by_level``.
    """

    name: str
    curated: bool
    reasons: pd.DataFrame
    match: Match
    table: pd.DataFrame
    by_slide: pd.DataFrame
    levels: pd.DataFrame


@dataclasses.dataclass(frozen=True)
class Genes:
    """What a comparison of pathways needs of one run, of slides with enough spots for averages.

    Attributes:
        panel: gene, gene_id, symbol.
        pcc: genes x slides.
        variance: of the targets by gene.
        patients: of each slide, empty where unknown.
    """

    panel: pd.DataFrame
    pcc: pd.DataFrame
    variance: pd.Series
    patients: pd.Series


def read_biology(cfg) -> Biology:
    """Read every file that the options name; raises InputError for the first that is wrong."""
    collections = []
    for source in cfg.gene_sets or ():
        sets = load_gene_sets(source)
        # names become file names, whatever a library is called
        name = file_id(Path(source).name.removesuffix(".gz").removesuffix(".gmt"))
        hallmark = is_hallmark(sets) or "hallmark" in name.lower()
        collections.append(Collection(name, sets, cfg.curate and not hallmark))
    signatures = [read_signature(source) for source in cfg.signature or ()]
    for option, things in (("gene-sets", collections), ("signature", signatures)):
        names = [thing.name for thing in things]
        if len(set(names)) < len(names):
            raise InputError(f"--{option} names {max(names, key=names.count)} twice; give it once")
    return Biology(tuple(collections), tuple(signatures), cfg.clusters)


def panel_of(run: Run) -> pd.DataFrame:
    """gene, gene_id, symbol of every gene that some fold predicts."""
    return _distinct([fold.genes for fold in run.folds])


def _distinct(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    merged = pd.concat([table[["gene", "gene_id", "symbol"]] for table in tables])
    return merged.drop_duplicates("gene").reset_index(drop=True)


def within(collection: Collection, panel: pd.DataFrame):
    """A collection within a panel, as ``histokit.evaluate.curation.curate_for_panel``.

    Raises:
        InputError: no gene, or no set, is left.
    """
    try:
        kept, reasons, match = curate_for_panel(collection.sets, panel, collection.curated)
    except InputError as error:
        raise InputError(f"gene sets {collection.name}: {error}") from error
    if not kept:
        raise InputError(
            f"gene sets {collection.name}: none has 50 to 100 genes of the panel of "
            f"{len(panel):,} genes; score them as they are with --no-curate, or choose other sizes "
            "with python -m histokit.evaluate.curation first"
        )
    return kept, reasons, match


def check_biology(biology: Biology, run: Run) -> None:
    """Refuse gene sets and signatures that a run's panel cannot score."""
    for collection in biology.collections:
        within(collection, panel_of(run))
    for signature in biology.signatures:
        for fold in run.folds:
            find_genes(signature, fold.genes)


def genes_of(scores: Sequence[SlideScore]) -> Genes:
    """Panel, correlations, variances and patients of a run's test slides."""
    panel, scores = _distinct([score.genes for score in scores]), scores_averaged(scores)
    patients = pd.Series({score.slide_id: score.patient for score in scores}, dtype=object)
    return Genes(panel, pcc_matrix(scores), gene_variance(scores), patients)


def score_pathways(biology: Biology, genes: Genes, folder: Path) -> list[Pathways]:
    """Score every collection; writes coherence_, coherence_by_slide_ and curation_NAME.csv."""
    results = []
    for collection in biology.collections:
        kept, reasons, match = within(collection, genes.panel)
        table = coherence(kept, genes.pcc, genes.variance, genes.patients)
        by_slide = pathway_by_slide(kept, genes.pcc)[0]
        levels = scores_by_level(table, by_slide, genes.patients)
        name = collection.name
        reasons.to_csv(folder / f"curation_{name}.csv", index=False, float_format="%.6g")
        table.to_csv(folder / f"coherence_{name}.csv", float_format="%.6g")
        by_slide.to_csv(folder / f"coherence_by_slide_{name}.csv", float_format="%.6g")
        results.append(Pathways(name, collection.curated, reasons, match, table, by_slide, levels))
    return results


class SignatureScores:
    """Scores of signatures, collected while a slide's prediction is in memory."""

    def __init__(self, signatures: Sequence[Signature]):
        self.signatures = signatures
        self.rows: list[dict] = []
        self._places: dict[tuple[str, str], np.ndarray] = {}

    def add(self, fold, slide, prediction, target, score: SlideScore) -> None:
        """Score a slide; prediction: (N, G) tensor, target: (N, G) CSR."""
        for signature in self.signatures:
            key = (fold.name, signature.name)
            if key not in self._places:
                self._places[key] = find_genes(signature, score.genes).to_numpy()
            places = self._places[key]
            row = {"signature": signature.name, "fold": fold.name, "slide_id": slide.slide_id}
            row |= {"patient": score.patient, "below_floor": score.num_spots < MIN_SPOTS}
            row |= _score_genes(places, prediction, target, score)
            draws = random_genes(places, score.variance, _RANDOM_LISTS)
            null = [_score_genes(draw, prediction, target, score)["pcc"] for draw in draws]
            self.rows.append(row | {"random_pcc": mean_or_nan(null)})

    def gather(self, team: Team, scores: Sequence[SlideScore]) -> None:
        """Take over the rows of all ranks, in the order of the scores."""
        order = {(score.fold, score.slide_id): i for i, score in enumerate(scores)}
        rows = [row for part in team.gather(self.rows) for row in part]
        self.rows = sorted(rows, key=lambda row: order[row["fold"], row["slide_id"]])

    def table(self) -> pd.DataFrame:
        """One row a signature, fold and slide; ``random_pcc`` is that of genes as variable."""
        columns = ["signature", "fold", "slide_id", "patient", "below_floor", "pcc", "genes"]
        columns.append("random_pcc")
        return pd.DataFrame(self.rows, columns=columns)


def _score_genes(places: np.ndarray, prediction, target, score: SlideScore) -> dict:
    measured = target[:, places].toarray().astype(float)
    measured[:, ~score.measured[places]] = np.nan
    return score_signature(prediction[:, places].numpy(), measured)


def score_run_clusters(run: Run, cohort: Cohort, folder: Path) -> pd.DataFrame | None:
    """Clusters against cancer types, written to clusters.csv; None where all slides have one."""
    from histokit.evaluate.topics.clusters import cancers_tested, predicted_blocks, score_clusters

    if len(set(cancers_tested(run, cohort).values())) < 2:
        return None
    table = score_clusters(lambda: predicted_blocks(run, cohort))
    table.to_csv(folder / "clusters.csv", index=False, float_format="%.6g")
    return table
