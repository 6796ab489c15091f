"""Pictures of pathways: their scores, scores by variance level, and two runs against each other."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from histokit.evaluate.coherence import LEVELS
from histokit.report.plots import INK, PALE, STYLE, new_figure

SHOWN = 25  # pathways of each end where there are too many to name
_LEVEL_MAP = matplotlib.colormaps["viridis"].resampled(LEVELS)
_LEVEL_NORM = matplotlib.colors.BoundaryNorm(np.arange(0.5, LEVELS + 1), LEVELS)


def short_name(pathway: str) -> str:
    """A pathway's name without its collection, short enough for an axis."""
    for prefix in ("HALLMARK_", "GOBP_", "GOCC_", "GOMF_"):
        pathway = pathway.removeprefix(prefix)
    pathway = pathway.replace("_", " ")
    return pathway if len(pathway) <= 44 else f"{pathway[:42]}\u2026"


def _color(levels) -> np.ndarray:
    return _LEVEL_MAP(_LEVEL_NORM(levels))


def _level_bar(figure: Figure, axis) -> None:
    scale = matplotlib.cm.ScalarMappable(_LEVEL_NORM, _LEVEL_MAP)
    bar = figure.colorbar(scale, ax=axis, ticks=range(1, LEVELS + 1), aspect=30, pad=0.02)
    bar.set_label("variance level (1 lowest)")
    bar.outline.set_visible(False)


def pathway_dots(table: pd.DataFrame, mean_pcc: float) -> Figure:
    """Score of each pathway with its interval, best on top; a tick is what genes as variable reach.

    The dashed line is the mean over all genes.

    Args:
        table: as ``histokit.evaluate.coherence.coherence`` returns it; of many pathways
            the ends are drawn, apart.
        mean_pcc: the mean PCC of all genes.
    """
    table = table.dropna(subset="score").sort_values("score", ascending=False, kind="stable")
    place = np.arange(min(len(table), 2 * SHOWN), dtype=float)
    if len(table) > 2 * SHOWN:
        table = pd.concat([table.head(SHOWN), table.tail(SHOWN)])
        place[SHOWN:] += 1.5
    with matplotlib.rc_context(STYLE):
        figure = new_figure(9.5, 1.2 + 0.2 * len(table))
        axis = figure.subplots()
        colors = _color(table["variance_level"])
        axis.hlines(place, table["low"], table["high"], color=PALE, lw=1.2, zorder=1)
        axis.scatter(table["score"], place, c=colors, s=34, zorder=2)
        axis.plot(table["expected"], place, "|", color=INK, markersize=8, zorder=3)
        axis.axvline(mean_pcc, color=INK, linewidth=1, linestyle="--")
        axis.axvline(0, color=PALE, linewidth=0.8, linestyle=":")
        axis.set_yticks(place, [short_name(name) for name in table.index])
        axis.tick_params(axis="y", length=0, labelsize=8)
        axis.set_ylim(place.max() + 0.6, -0.6)
        axis.set_xlabel("pathway coherence: mean PCC of its genes")
        _level_bar(figure, axis)
    return figure


def by_level(values: pd.Series, levels: pd.Series, means: pd.DataFrame, label: str) -> Figure:
    """A value of each pathway by its variance level, and the mean of a level with its interval.

    Args:
        values: by pathway, a score or a gain.
        levels: by pathway.
        means: as ``histokit.evaluate.coherence.scores_by_level`` returns them.
        label: the label of the value.
    """
    values = values.dropna()
    levels = levels[values.index]
    shift = np.random.default_rng(0).uniform(-0.16, 0.16, len(values))
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.5, 4)
        axis = figure.subplots()
        axis.axhline(0, color=PALE, linewidth=0.8, linestyle=":")
        axis.scatter(levels - 0.1 + shift, values, c=_color(levels), s=22, alpha=0.8, linewidths=0)
        at = means.index + 0.27
        axis.vlines(at, means["low"], means["high"], color=INK, lw=1.4)
        axis.plot(at, means["value"], "D", color=INK, markersize=5)
        axis.set_xticks(range(1, LEVELS + 1))
        axis.set_xlim(0.5, LEVELS + 0.5)
        axis.set_xlabel("variance level of the pathway (1 lowest)")
        axis.set_ylabel(label)
    return figure


def pathway_scatter(x: pd.Series, y: pd.Series, levels: pd.Series, names: tuple) -> Figure:
    """Each pathway under two runs; above the diagonal the second run is better.

    Args:
        x: score by pathway under the first run.
        y: the same under the second.
        levels: by pathway.
        names: the names of the two runs.
    """
    both = pd.DataFrame({"x": x, "y": y, "level": levels}).dropna()
    low, high = both[["x", "y"]].to_numpy().min(), both[["x", "y"]].to_numpy().max()
    margin = 0.05 * (high - low) + 1e-3
    ends = (low - margin, high + margin)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7, 5.6)
        axis = figure.subplots()
        axis.plot(ends, ends, color=PALE, linewidth=1, zorder=1)
        axis.scatter(both["x"], both["y"], c=_color(both["level"]), s=32, linewidths=0, zorder=2)
        axis.set(xlim=ends, ylim=ends, aspect="equal")
        axis.set_xlabel(f"pathway coherence of {names[0]}")
        axis.set_ylabel(f"pathway coherence of {names[1]}")
        _level_bar(figure, axis)
    return figure


def signature_bars(genes: pd.DataFrame, score: float, random: float, mean_pcc: float) -> Figure:
    """PCC of each gene of a signature, best first.

    Args:
        genes: index the name to show; columns pcc, pcc_lowest, pcc_highest over slides.
        score: PCC of the signature's score, a solid line.
        random: the PCC of the score of random genes, a thin line.
        mean_pcc: the mean PCC of all genes, a dashed line.
    """
    genes = genes.dropna(subset="pcc").sort_values("pcc", ascending=False, kind="stable")
    letters = genes.index.str.len().max()  # upright, each takes .07 inches
    with matplotlib.rc_context(STYLE):
        figure = new_figure(max(5, 1.5 + 0.2 * len(genes)), 3.5 + 0.07 * letters)
        axis = figure.subplots()
        place = np.arange(len(genes))
        axis.vlines(place, genes["pcc_lowest"], genes["pcc_highest"], color=PALE, lw=1.4)
        axis.plot(place, genes["pcc"], "o", color="#0072B2", markersize=6, label="a gene")
        axis.axhline(score, color="#D55E00", linewidth=1.6, label="signature's score")
        axis.axhline(random, color="#D55E00", linewidth=1, linestyle=":", label="of random genes")
        axis.axhline(mean_pcc, color=INK, linewidth=1, linestyle="--", label="mean of all genes")
        axis.axhline(0, color=PALE, linewidth=0.8, linestyle=":")
        axis.set_xticks(place, genes.index, rotation=90, fontsize=8)
        axis.set_xlim(-0.7, len(genes) - 0.3)
        axis.set_ylabel("mean PCC")
        figure.legend(loc="outside upper center", ncols=4)
    return figure
