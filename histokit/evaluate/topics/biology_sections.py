"""Pathways, signatures and clusters in the words and pictures of a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from histokit.data.cohort import Cohort
from histokit.evaluate.coherence import coherence, slide_intervals
from histokit.evaluate.intervals import mean_interval, units_of
from histokit.evaluate.metrics import mean_or_nan
from histokit.evaluate.runs import Run
from histokit.evaluate.summary import CORRELATION, averaged, one_row_a_slide
from histokit.evaluate.topics.biology import (
    Biology,
    Genes,
    Pathways,
    SignatureScores,
    score_pathways,
    score_run_clusters,
)
from histokit.evaluate.topics.pathway_plots import SHOWN, by_level, pathway_dots, signature_bars
from histokit.evaluate.topics.signatures import Signature, find_genes
from histokit.evaluate.verdict import interval_note, with_interval
from histokit.report import plots
from histokit.report.page import NONE, Picture, Section, Table, number

_ENDS = 8  # pathways of either end in a table; the CSV has them all
PATHWAY_TEXT = (
    "A pathway's coherence is the mean PCC of its genes on a slide, then the mean over slides "
    "(Gene Pathway Coherence, Eq. 7 of HistoPrism), with its 95 % interval. "
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
CLUSTER_TEXT = (
    "Predicted expression over all genes is clustered without labels and the clusters compared "
    "with the cancer types: 1 is the same partition, 0 what chance gives. AMI is the safer figure "
    "where cancers have unequal numbers of slides. High values do not prove good expression: "
    "cancers often come from different laboratories, a model that is told the cancer type "
    "can write it into its prediction, and the models of different folds differ by themselves."
)


def biology_sections(
    biology: Biology, run: Run, cohort: Cohort, genes: Genes, signatures: SignatureScores,
    table: pd.DataFrame, folder: Path,
) -> list[Section]:  # fmt: skip
    """Score pathways and clusters, and report them and the signatures, each where asked for.

    Args:
        biology: what is asked.
        run: the run.
        cohort: its slides.
        genes: of the run.
        signatures: collected over the test slides.
        table: of ``histokit.evaluate.summary.gene_table``.
        folder: of the evaluation, gets tables and pictures.
    """
    mean_pcc = mean_or_nan(table["pcc"])
    sections = [
        pathway_section(pathways, genes.patients, mean_pcc, folder, explain=not place)
        for place, pathways in enumerate(score_pathways(biology, genes, folder))
    ]
    rows = signatures.table()
    if len(rows):
        rows.to_csv(folder / "signatures.csv", index=False, float_format="%.6g")
    for signature in biology.signatures:
        own = rows[rows["signature"] == signature.name]
        sections.append(signature_section(signature, own, genes, table, folder))
    if biology.clusters:
        sections.append(cluster_section(score_run_clusters(run, cohort, folder)))
    return sections


def pathway_section(
    pathways: Pathways, patients: pd.Series, mean_pcc: float, folder: Path, explain: bool = True
) -> Section:
    """Scores of one collection: how it was curated, best and worst, by variance level.

    Args:
        pathways: the collection.
        patients: of each slide, empty where unknown.
        mean_pcc: of all genes.
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
    mean, units = float(means.mean(axis=1).iloc[0]), units_of(patients)
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
            f"{which}: mean PCC of its genes, mean over test slides, and its 95 % interval, "
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


def signature_section(
    signature: Signature, scores: pd.DataFrame, genes: Genes, table: pd.DataFrame, folder: Path
) -> Section:
    """Per-gene PCC and the score of one signature.

    Args:
        signature: its genes.
        scores: rows of ``SignatureScores.table`` of this signature.
        genes: of the run.
        table: of ``histokit.evaluate.summary.gene_table``.
        folder: of the evaluation; gets signature_NAME.csv and .png.
    """
    found = find_genes(signature, genes.panel)
    places = genes.panel["gene"].iloc[found.to_numpy()]
    own = table.loc[places].reset_index()
    own.index = found.index.rename("name")
    own.to_csv(folder / f"signature_{signature.name}.csv", float_format="%.6g")
    slides = one_row_a_slide(averaged(scores))
    value, units = mean_or_nan(slides["pcc"]), units_of(slides["patient"])
    interval = mean_interval(slides["pcc"].to_numpy(dtype=float), units, bounds=CORRELATION)
    random = mean_or_nan(slides["random_pcc"])
    mean = _coherence_of(signature.name, places, genes)
    everything = mean_or_nan(table["pcc"])
    rows = [
        ["signature score", with_interval(value, interval.low, interval.high)],
        ["score of random genes as variable", number(random)],
        ["mean PCC of its genes", with_interval(mean.score, mean.low, mean.high)],
        ["mean PCC of all genes", number(everything)],
    ]
    missing = [entry[0] for entry in signature.genes if entry[0] not in found]
    note = f"{len(found)} of {len(signature.genes)} genes are in the panel"
    note += f"; missing: {', '.join(missing)}. " if missing else ". "
    note += interval_note(interval.unit, interval.units, not np.isnan(interval.low))
    columns = ["slide", "fold", "PCC of the score", "random genes", "genes in it"]
    by_slide = [
        [s.slide_id, s.fold, float(s.pcc), float(s.random_pcc), int(s.genes)]
        for s in scores.itertuples()
    ]
    tables = [
        Table("", ["", "PCC"], rows, note),
        Table("By slide", columns, by_slide, text_columns=2),
    ]
    text = (
        "The signature's score at a spot is the mean z-score of its genes over the slide's spots, "
        "predicted and measured in the same way; its PCC is their correlation on a slide, then the "
        "mean over slides. What single genes have in common adds up in a score and their noise "
        "averages out, so it lies far above the mean PCC of the genes, for any genes: the score of "
        "random genes of the same number and variance is what to compare with. Only what lies "
        "above it is owed to this signature."
    )
    pictures = []
    if own["pcc"].notna().any():
        path = folder / f"signature_{signature.name}.png"
        plots.save(signature_bars(own, value, random, everything), path)
        caption = "Each gene: PCC, mean over test slides, and the span of its slides."
        pictures.append(Picture(path, caption, 90))
    return Section(f"Signature: {signature.name}", text, tables, pictures)


def _coherence_of(name: str, places: pd.Series, genes: Genes) -> pd.Series:
    """The mean PCC of a signature's genes and its interval, as those of a pathway."""
    return coherence({name: list(places)}, genes.pcc, genes.variance, genes.patients).iloc[0]


def cluster_section(table: pd.DataFrame | None) -> Section:
    """AMI and ARI, or why there are none."""
    title = "Clusters against cancer types"
    if table is None:
        text = (
            "Cannot be scored: all test slides with a cancer code are of one cancer, and clusters "
            "can only be compared with at least two."
        )
        return Section(title, text)
    rows = [
        [row.level, row.method, row.items, row.cancers, number(row.clusters, 1),
         f"{number(row.ami)} ± {number(row.ami_sd)}", f"{number(row.ari)} ± {number(row.ari_sd)}"]
        for row in table.itertuples()
    ]  # fmt: skip
    note = (
        "Mean and deviation over 5 seeds. Slides by their mean prediction; k-means with as many "
        "clusters as cancers; Leiden on 15 nearest neighbours at resolution 1; both on 50 "
        "principal components of all genes."
    )
    columns = ["clustered", "method", "items", "cancers", "clusters", "AMI", "ARI"]
    return Section(title, CLUSTER_TEXT, [Table("", columns, rows, note, text_columns=2)])
