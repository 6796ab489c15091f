"""Gene sets, signatures and clusters of an evaluation: read first, scored with the slides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.coherence import (
    WinRate,
    coherence,
    gene_variance,
    intervals,
    paired,
    pathway_by_slide,
    scores_by_level,
    win_rate,
)
from histokit.cohort import Cohort
from histokit.errors import InputError
from histokit.evaluate import SlideScore
from histokit.pathways import Match, curate_for_panel, is_hallmark, load_gene_sets
from histokit.runs import Run
from histokit.signatures import Signature, find_genes, read_signature, score_signature
from histokit.summary import pcc_matrix


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
        table: of ``histokit.coherence.coherence``.
        by_slide: pathways x slides.
        levels: of ``histokit.coherence.scores_by_level``.
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
    """What a comparison of pathways needs of one run: panel, r by slide, variance of targets."""

    panel: pd.DataFrame
    pcc: pd.DataFrame
    variance: pd.Series


def read_biology(cfg) -> Biology:
    """Read every file that the options name; raises InputError for the first that is wrong."""
    collections = []
    for source in cfg.gene_sets or ():
        sets = load_gene_sets(source)
        name = Path(source).name.removesuffix(".gz").removesuffix(".gmt")
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
    """A collection within a panel, as ``histokit.pathways.curate_for_panel``.

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
            "with python -m histokit.pathways first"
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
    """Panel, correlations and variances of a run's test slides."""
    panel = _distinct([score.genes for score in scores])
    return Genes(panel, pcc_matrix(scores), gene_variance(scores))


def score_pathways(biology: Biology, genes: Genes, folder: Path, resamples: int) -> list[Pathways]:
    """Score every collection; writes coherence_, coherence_by_slide_ and curation_NAME.csv."""
    results = []
    for collection in biology.collections:
        kept, reasons, match = within(collection, genes.panel)
        table = coherence(kept, genes.pcc, genes.variance, resamples)
        by_slide = pathway_by_slide(kept, genes.pcc)[0]
        levels = scores_by_level(table, by_slide, resamples)
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
            measured = target[:, places].toarray().astype(float)
            measured[:, ~score.measured[places]] = np.nan
            row = {"signature": signature.name, "fold": fold.name, "slide_id": slide.slide_id}
            self.rows.append(row | score_signature(prediction[:, places].numpy(), measured))

    def table(self) -> pd.DataFrame:
        """signature, fold, slide_id, pcc, genes."""
        columns = ["signature", "fold", "slide_id", "pcc", "genes"]
        return pd.DataFrame(self.rows, columns=columns)


def score_run_clusters(run: Run, cohort: Cohort, folder: Path) -> pd.DataFrame | None:
    """Clusters against cancer types, written to clusters.csv; None where all slides have one."""
    from histokit.clusters import cancers_tested, predicted_blocks, score_clusters

    if len(set(cancers_tested(run, cohort).values())) < 2:
        return None
    table = score_clusters(lambda: predicted_blocks(run, cohort))
    table.to_csv(folder / "clusters.csv", index=False, float_format="%.6g")
    return table


@dataclasses.dataclass(frozen=True)
class Duel:
    """Two runs on one collection, over genes and slides that both could be scored on.

    Attributes:
        table: by pathway, score, other, gain with gain_low and gain_high, genes, variance_level.
        levels: gain by variance level.
    """

    collection: str
    transform: str
    run: str
    other: str
    wins: WinRate
    table: pd.DataFrame
    levels: pd.DataFrame


def compare_pathways(
    collection: Collection, names: tuple[str, str], runs: tuple[Genes, Genes], transform: str,
    resamples: int,
) -> Duel | None:  # fmt: skip
    """Compare two runs pathway by pathway; None where no pathway is scored in both."""
    pcc, pcc_other = paired(runs[0].pcc, runs[1].pcc)
    panel = runs[0].panel[runs[0].panel["gene"].isin(pcc.index)]
    kept, _, _ = within(collection, panel)
    by_slide, other = pathway_by_slide(kept, pcc)[0], pathway_by_slide(kept, pcc_other)[0]
    gains = by_slide - other
    if gains.isna().all(axis=None):
        return None
    table = coherence(kept, pcc, runs[0].variance, resamples)
    table = table[["score", "genes", "slides", "variance", "variance_level"]]
    low, high = intervals(gains.to_numpy(), resamples)
    table = table.assign(
        other=other.mean(axis=1), gain=gains.mean(axis=1), gain_low=low, gain_high=high
    )
    levels = scores_by_level(table, gains, resamples)
    wins = win_rate(gains, resamples)
    return Duel(collection.name, transform, *names, wins, table, levels)
