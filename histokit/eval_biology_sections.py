"""Pathways, signatures and clusters in the words and pictures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histokit import plots
from histokit.coherence import coherence, intervals
from histokit.cohort import Cohort
from histokit.eval_biology import (
    Biology,
    Collection,
    Duel,
    Genes,
    Pathways,
    SignatureScores,
    compare_pathways,
    score_pathways,
    score_run_clusters,
)
from histokit.files import safe_name
from histokit.plots_pathways import by_level, pathway_dots, pathway_scatter, signature_bars
from histokit.report import NONE, Picture, Section, Table, number, with_interval
from histokit.runs import Run
from histokit.signatures import Signature, find_genes
from histokit.summary import mean_or_nan, one_row_a_slide

_ENDS = 8  # pathways of either end in a table; the CSV has them all
_DRAWN = 3  # pairs of runs with pictures
PATHWAY_TEXT = (
    "A pathway's coherence is the mean PCC of its genes on a slide, then the mean over slides "
    "(Gene Pathway Coherence, Eq. 7 of HistoPrism), with its 95 % bootstrap interval over slides. "
    "It asks whether genes that work together are predicted, variable or not. It is not the PCC "
    "of the pathway's summed expression, which would be higher. A pathway near the dashed line, "
    "the mean PCC of all genes, is predicted no better than any genes. Figures compare only "
    "between runs of one target and panel on the same slides."
)
LEVEL_TEXT = (
    "Genes are put in ten levels of a tenth each by the variance of their measured expression over "
    "all test spots; a pathway's level is that of the mean variance of its genes. A few variable "
    "genes raise that mean, so the lowest levels are mostly empty."
)
DUEL_TEXT = (
    "Both runs are scored on the genes and slides that both allow, pathway by pathway. The win "
    "rate is the share of pathways that the first run scores higher, its interval comes from "
    "resampling slides. Pathways share genes, so they are no independent witnesses: a win rate "
    "near 100 % can come from one small advantage on every gene, and the p value (Wilcoxon's "
    "signed ranks over pathways) is too small. Read the gain and its interval first."
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
    table: pd.DataFrame, folder: Path, resamples: int,
) -> list[Section]:  # fmt: skip
    """Score pathways and clusters, and report them and the signatures, each where asked for.

    Args:
        biology: what is asked.
        run: the run.
        cohort: its slides.
        genes: of the run.
        signatures: collected over the test slides.
        table: of ``histokit.summary.gene_table``.
        folder: of the evaluation, gets tables and pictures.
        resamples: of the bootstrap over slides.
    """
    mean_pcc = mean_or_nan(table["pcc"])
    sections = [
        pathway_section(pathways, mean_pcc, folder)
        for pathways in score_pathways(biology, genes, folder, resamples)
    ]
    rows = signatures.table()
    if len(rows):
        rows.to_csv(folder / "signatures.csv", index=False, float_format="%.6g")
    for signature in biology.signatures:
        own = rows[rows["signature"] == signature.name]
        sections.append(signature_section(signature, own, genes, table, folder, resamples))
    if biology.clusters:
        sections.append(cluster_section(score_run_clusters(run, cohort, folder)))
    return sections


def pathway_section(pathways: Pathways, mean_pcc: float, folder: Path) -> Section:
    """Scores of one collection: how it was curated, best and worst, by variance level."""
    table, name = pathways.table, pathways.name
    scored = table.dropna(subset="score").sort_values("score", ascending=False, kind="stable")
    if scored.empty:
        text = f"{_curation(pathways)} No pathway could be scored: no gene has a correlation."
        return Section(f"Pathways: {name}", text)
    low, high = intervals(pathways.by_slide.mean().to_numpy()[None])
    mean = pathways.by_slide.mean().mean()
    columns = ["pathway", "coherence", "genes scored per slide", "genes", "slides", "level"]
    tables = [
        Table(
            "",
            ["", "pathways", "coherence"],
            [
                ["mean of all pathways", len(scored), with_interval(mean, low[0], high[0])],
                ["mean PCC of all genes", NONE, number(mean_pcc)],
            ],
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
    tables.append(
        Table("By variance level", ["level", "pathways", "coherence"], levels, LEVEL_TEXT)
    )
    dots, strata = folder / f"coherence_{name}.png", folder / f"levels_{name}.png"
    plots.save(pathway_dots(table, mean_pcc), dots)
    label = "pathway coherence"
    plots.save(by_level(table["score"], table["variance_level"], pathways.levels, label), strata)
    pictures = [
        Picture(
            dots,
            "Each pathway: mean PCC of its genes, mean over test slides, and its 95 % interval; "
            "the dashed line is the mean over all genes.",
            85,
        ),
        Picture(
            strata,
            "Pathways by variance level; diamonds are the mean of a level and its 95 % interval.",
            70,
        ),
    ]
    return Section(f"Pathways: {name}", f"{_curation(pathways)} {PATHWAY_TEXT}", tables, pictures)


def _rows(table: pd.DataFrame) -> list[list]:
    return [
        [name, with_interval(row.score, row.low, row.high), number(float(row.genes_per_slide), 1),
         int(row.genes), int(row.slides), str(int(row.variance_level) or NONE)]
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
    signature: Signature, scores: pd.DataFrame, genes: Genes, table: pd.DataFrame, folder: Path,
    resamples: int,
) -> Section:  # fmt: skip
    """Per-gene PCC and the score of one signature.

    Args:
        signature: its genes.
        scores: rows of ``SignatureScores.table`` of this signature.
        genes: of the run.
        table: of ``histokit.summary.gene_table``.
        folder: of the evaluation; gets signature_NAME.csv and .png.
        resamples: of the bootstrap over slides.
    """
    found = find_genes(signature, genes.panel)
    places = genes.panel["gene"].iloc[found.to_numpy()]
    own = table.loc[places].reset_index()
    own.index = found.index.rename("name")
    own.to_csv(folder / f"signature_{signature.name}.csv", float_format="%.6g")
    slides = one_row_a_slide(scores)
    value = mean_or_nan(slides["pcc"])
    low, high = (float(end[0]) for end in intervals(slides["pcc"].to_numpy()[None], resamples))
    mean = coherence({signature.name: list(places)}, genes.pcc, genes.variance, resamples).iloc[0]
    everything = mean_or_nan(table["pcc"])
    rows = [
        ["signature score", with_interval(value, low, high)],
        ["mean PCC of its genes", with_interval(mean.score, mean.low, mean.high)],
        ["mean PCC of all genes", number(everything)],
    ]
    missing = [entry[0] for entry in signature.genes if entry[0] not in found]
    note = f"{len(found)} of {len(signature.genes)} genes are in the panel"
    note += f"; missing: {', '.join(missing)}." if missing else "."
    columns = ["slide", "fold", "PCC of the score", "genes in it"]
    by_slide = [[s.slide_id, s.fold, float(s.pcc), int(s.genes)] for s in scores.itertuples()]
    tables = [
        Table("", ["", "PCC"], rows, note),
        Table("By slide", columns, by_slide, text_columns=2),
    ]
    text = (
        "The signature's score at a spot is the mean z-score of its genes over the slide's spots, "
        "predicted and measured in the same way; its PCC is their correlation on a slide, then the "
        "mean over slides. Noise of single genes averages out in the score, so it lies above the "
        "mean PCC of the genes."
    )
    pictures = []
    if own["pcc"].notna().any():
        path = folder / f"signature_{signature.name}.png"
        plots.save(signature_bars(own, value, everything), path)
        caption = "Each gene: PCC, mean over test slides, and the span of its slides."
        pictures.append(Picture(path, caption, 90))
    return Section(f"Signature: {signature.name}", text, tables, pictures)


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


def duel_sections(
    biology: Biology, runs: Mapping[str, Genes], order: Mapping[str, Sequence[str]], folder: Path,
    resamples: int,
) -> list[Section]:  # fmt: skip
    """The best run against each other one, collection by collection; empty without a pair.

    Args:
        biology: its collections.
        runs: by name.
        order: names of the runs on each target, best first.
        folder: of the comparison; gets pathways.csv and pictures.
        resamples: of the bootstrap over slides.
    """
    duels = [
        duel
        for transform, names in order.items()
        for collection in biology.collections
        for duel in _duels(collection, names, runs, transform, resamples)
    ]
    if not duels:
        return []
    whole = [
        duel.table.reset_index().assign(
            collection=duel.collection, target=duel.transform, run=duel.run, other_run=duel.other
        )
        for duel in duels
    ]
    pd.concat(whole).to_csv(folder / "pathways.csv", index=False, float_format="%.6g")
    rows = [_duel_row(duel) for duel in duels]
    columns = ["gene sets", "target", "run", "against", "higher on", "win rate", "gain", "p"]
    tables = [Table("", columns, rows, text_columns=4)]
    pictures = [picture for duel in duels[: _DRAWN * len(biology.collections)]
                for picture in _duel_pictures(duel, folder)]  # fmt: skip
    return [Section("Pathway by pathway", DUEL_TEXT, tables, pictures)]


def _duels(collection: Collection, names, runs, transform, resamples) -> list[Duel]:
    able = [name for name in names if runs[name].pcc.notna().any(axis=None)]
    pairs = [
        compare_pathways(
            collection, (able[0], other), (runs[able[0]], runs[other]), transform, resamples
        )
        for other in able[1:]
    ]
    return [duel for duel in pairs if duel is not None]


def _duel_row(duel: Duel) -> list:
    wins = duel.wins
    ends = [] if np.isnan(wins.low) else [f" [{wins.low:.0%}, {wins.high:.0%}]"]
    return [
        duel.collection,
        duel.transform,
        duel.run,
        duel.other,
        f"{wins.wins} of {wins.pathways}",
        "".join([f"{wins.rate:.0%}", *ends]),
        with_interval(wins.gain, wins.gain_low, wins.gain_high, 3),
        f"{wins.p_value:.1g}",
    ]


def _duel_pictures(duel: Duel, folder: Path) -> list[Picture]:
    stem = safe_name(f"{duel.collection}_{duel.transform}_{duel.run}_{duel.other}")
    scatter, gains = folder / f"scatter_{stem}.png", folder / f"gain_{stem}.png"
    table, names = duel.table, (duel.other, duel.run)
    figure = pathway_scatter(table["other"], table["score"], table["variance_level"], names)
    plots.save(figure, scatter)
    label = f"gain of {duel.run}\nover {duel.other}"
    plots.save(by_level(table["gain"], table["variance_level"], duel.levels, label), gains)
    return [
        Picture(
            scatter,
            f"{duel.collection}: each point is a pathway; above the diagonal {duel.run} predicts "
            "it better. Colour is the variance level of its genes.",
            60,
        ),
        Picture(
            gains,
            f"{duel.collection}: gain in coherence by variance level; diamonds are the mean of a "
            "level and its 95 % interval.",
            65,
        ),
    ]
