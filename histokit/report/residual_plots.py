"""Residuals on the tissue."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from histokit.report import plots


def residual_maps(
    tissue: plots.Tissue,
    maps: Sequence[plots.GeneMap],
    residuals: np.ndarray,
    title: str,
    unit: str,
) -> Figure:
    """Measured, predicted and their difference, a row a gene; then all genes of a spot together.

    Measured and predicted share one color scale, from the 1st to the 99th percentile of both. A
    residual's colors are centered at 0 and reach the 99th percentile of its size either way.

    Args:
        tissue: the tissue and its spots.
        maps: the genes.
        residuals: (N, H) measured minus predicted, whose mean over genes and mean size are drawn
            beside the tissue in the last row.
        title: of the figure.
        unit: of the values.
    """
    window = plots.tissue_window(tissue)
    plain = plots.tissue_picture(tissue, *window)
    left, right, bottom, top = window
    aspect, size = (bottom - top) / (right - left), np.abs(residuals).mean(axis=1)
    with matplotlib.rc_context(plots.STYLE):
        figure = plots.new_figure(12, 0.7 + (len(maps) + 1) * (3.1 * aspect + 0.75))
        figure.suptitle(title, fontsize=13, fontweight="bold")
        axes = figure.subplots(len(maps) + 1, 3, squeeze=False)
        for axis in axes.ravel():
            plots.draw_window(axis, plots.faded_picture(plain), window)
        for row, gene in zip(axes, maps, strict=False):
            norm = plots.color_range(np.concatenate([gene.measured, gene.predicted]))
            plots.draw_spots(row[0], tissue, gene.measured, norm)
            drawn = plots.draw_spots(row[1], tissue, gene.predicted, norm)
            _bar(figure, drawn, row[:2], unit)
            _signed(figure, row[2], tissue, gene.measured - gene.predicted, unit)
            row[0].set_title(f"{gene.title}\nmeasured", loc="left")
            row[1].set_title("predicted", loc="left")
            row[2].set_title("measured minus predicted", loc="left")
        last = axes[-1]
        plots.draw_window(last[0], plain, window)
        plots.scale_bar(last[0], tissue, *window)
        drawn = plots.draw_spots(last[1], tissue, size, plots.color_range(size), "magma_r")
        _bar(figure, drawn, last[1], unit)
        _signed(figure, last[2], tissue, residuals.mean(axis=1), unit)
        last[1].set_title(f"{residuals.shape[1]} genes: mean size of the residual", loc="left")
        last[2].set_title(f"{residuals.shape[1]} genes: mean residual", loc="left")
    return figure


def _signed(figure: Figure, axis, tissue: plots.Tissue, values: np.ndarray, unit: str) -> None:
    """Draw (N,) residuals, white at 0."""
    reach = float(np.percentile(np.abs(values), 99)) or 1.0
    drawn = plots.draw_spots(axis, tissue, values, Normalize(-reach, reach), "RdBu_r")
    drawn.set(edgecolor=plots.PALE, linewidth=0.3)  # white spots are not lost on pale tissue
    _bar(figure, drawn, axis, unit)


def _bar(figure: Figure, drawn, axes, unit: str) -> None:
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, pad=0.01, aspect=18)
    bar.set_label(unit, fontsize=8)
    bar.outline.set_visible(False)
