"""Pictures of a predicted map on the tissue: one a gene, the novelty, and a sheet of genes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from histokit.core.files import file_id, make_folder
from histokit.data.gene_names import full_name
from histokit.maps.anndata_file import check_genes
from histokit.maps.slide_map import SlideMap
from histokit.report import plots
from histokit.report.page import number

NOVELTY, SHEET = "novelty.png", "genes.png"
_COLUMNS, _MOST = 4, 47  # panels across the sheet, genes on it: twelve rows with the tissue
_RASTER = 1200  # pixels across a map
_HEIGHT, _SHEET_HEIGHT = 9.0, 4.5  # inches that a panel is high at most
# neither white nor black: a map that is not trusted draws no eye
_GRAY = LinearSegmentedColormap.from_list("not trusted", ["#c4c4c4", "#4d4d4d"])


@dataclass(frozen=True)
class _Canvas:
    """What every panel of a slide is drawn on.

    Attributes:
        tissue: the picture and the patches.
        window: left, right, bottom, top of the patches in pixels of level 0.
        plain: (h, w, 3) picture of the window, and ``faded``: (h, w) the same in pale gray.
        patch: (H, W) int, the patch at each pixel of a map; -1 where there is none.
    """

    tissue: plots.Tissue
    window: tuple[float, float, float, float]
    plain: np.ndarray
    faded: np.ndarray
    patch: np.ndarray

    @property
    def aspect(self) -> float:
        """Height by width of the window."""
        left, right, bottom, top = self.window
        return (bottom - top) / (right - left)


def write_overlays(slide: SlideMap, folder: Path, genes: list[str]) -> list[Path]:
    """Draw genes over the tissue: a PNG each, ``novelty.png``, and all on the sheet ``genes.png``.

    Colors run from the 1st to the 99th percentile of a map. A gene that is not trusted is drawn
    in gray, and its title says so. The sheet holds the first 47 genes.

    Args:
        slide: the map.
        folder: is made where it is missing; files of the same names are replaced.
        genes: the genes to draw, in the order of the sheet.

    Returns:
        The pictures: the genes in their order, the novelty where the map has it, the sheet.

    Raises:
        InputError: an unknown gene, or a folder that cannot be written.
        OSError: the disk is full.
    """
    genes = check_genes(slide, genes)
    folder, canvas, paths = make_folder(folder), _canvas(slide), []

    def keep(figure, name: str) -> None:
        plots.save(figure, folder / name)
        paths.append(folder / name)

    for gene in genes:
        keep(_gene_figure(slide, canvas, gene), f"{file_id(gene)}.png")
    if slide.novelty is not None:
        keep(_novelty_figure(slide, canvas), NOVELTY)
    if genes:
        keep(_sheet(slide, canvas, genes), SHEET)
    return paths


def _canvas(slide: SlideMap) -> _Canvas:
    picture = np.asarray(slide.picture.convert("RGB"))
    tissue = plots.Tissue(picture, slide.scale, slide.centers, slide.side, slide.mpp)
    window = plots.tissue_window(tissue)
    plain = plots.tissue_picture(tissue, *window)
    left, right, bottom, top = window
    scale = _RASTER / max(right - left, bottom - top)
    shape = (round((bottom - top) * scale), round((right - left) * scale))
    patch = patch_raster(slide, (left, top), scale, shape)
    return _Canvas(tissue, window, plain, plots.faded_picture(plain), patch)


def patch_raster(
    slide: SlideMap, origin: tuple[float, float], scale: float, shape: tuple[int, int]
) -> np.ndarray:
    """(H, W) the patch at each pixel, -1 for none: many patches are drawn as fast as few.

    Args:
        slide: the map.
        origin: x, y of the raster's top-left corner in pixels of level 0.
        scale: its pixels for one of level 0.
        shape: H, W.
    """
    patch = np.full(shape, -1, np.int32)
    corners = (slide.centers - slide.side / 2 - origin, slide.centers + slide.side / 2 - origin)
    first, last = ((corner * scale).round().astype(int).clip(0) for corner in corners)
    for k, ((x0, y0), (x1, y1)) in enumerate(zip(first, last, strict=True)):
        patch[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = k
    return patch


def _gene_figure(slide: SlideMap, canvas: _Canvas, gene: str) -> Figure:
    row = slide.genes.loc[gene]
    values, trusted = slide.columns([gene])[:, 0], bool(row["trusted"])
    trust = "" if trusted else "not trusted (gray) · "

    def draw(axis):
        return _draw_map(axis, canvas, values, plots.color_range(values), colors_of(trusted))

    titles = _label(slide, gene), f"{trust}{_held_out(row)}"
    return _pair(slide, canvas, titles, draw, f"predicted, {slide.unit}")


def _novelty_figure(slide: SlideMap, canvas: _Canvas) -> Figure:
    values = np.asarray(slide.novelty)
    known = values[np.isfinite(values)]
    share = f"{(known > 1).mean():.0%} of patches" if len(known) else "no patch"
    low, high = np.percentile(known, [1, 99]) if len(known) else (0, 2)
    norm = TwoSlopeNorm(1, min(low, 0.9), max(high, 1.1))

    def draw(axis):
        return _draw_map(axis, canvas, values, norm, "RdBu_r")

    label = "distance to training patches\n(1: 95th percentile of theirs)"
    titles = "Novelty", f"{share} above 1 (5% of held-out training patches are)"
    return _pair(slide, canvas, titles, draw, label)


def _pair(
    slide: SlideMap, canvas: _Canvas, titles: tuple[str, str], draw: Callable, label: str
) -> Figure:
    """The tissue, a map that ``draw`` draws into an axis, and its color bar."""
    width = min(4.9, _HEIGHT / canvas.aspect)
    across = max(2 * width + 1.7, 7)
    title = textwrap.fill(titles[1], round(5.4 * across))  # half the picture, at 10.8 an inch
    with matplotlib.rc_context(plots.STYLE):
        figure = plots.new_figure(across, max(width * canvas.aspect, 1.6) + 0.9)
        figure.suptitle(titles[0], fontsize=13, fontweight="bold")
        left, right = figure.subplots(1, 2)
        _draw_tissue(left, canvas)
        left.set_title(f"slide {slide.slide_id}", loc="left")
        right.set_title(title, loc="left")
        bar = figure.colorbar(
            draw(right), ax=right, shrink=0.85, pad=0.02, aspect=22, panchor=False
        )
        bar.set_label(label)
        bar.outline.set_visible(False)
    return figure


def _sheet(slide: SlideMap, canvas: _Canvas, genes: list[str]) -> Figure:
    """The tissue and all genes in a grid, each on its own color scale."""
    shown, columns = genes[:_MOST], min(_COLUMNS, len(genes) + 1)
    rows = -(-(len(shown) + 1) // columns)
    width = min(2.4, _SHEET_HEIGHT / canvas.aspect)
    some = f" (the first {len(shown)} of {len(genes)})" if len(shown) < len(genes) else ""
    note = "" if slide.genes.loc[shown, "trusted"].all() else "; genes in gray are not trusted"
    with matplotlib.rc_context(plots.STYLE):
        height = rows * (max(width * canvas.aspect, 1) + 0.6) + 1
        figure = plots.new_figure(max(columns * (max(width, 1.9) + 0.6), 6), height)
        figure.suptitle(f"{slide.slide_id}, predicted genes{some}", fontsize=13, fontweight="bold")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        _draw_tissue(axes[0], canvas)
        for axis, gene in zip(axes[1:], shown, strict=False):
            _draw_panel(figure, axis, slide, canvas, gene)
        figure.supxlabel(f"{slide.unit}{note}", fontsize=10)
    return figure


def _draw_panel(figure, axis, slide: SlideMap, canvas: _Canvas, gene: str) -> None:
    """A gene of the sheet."""
    row, values = slide.genes.loc[gene], slide.columns([gene])[:, 0]
    name = textwrap.shorten(_label(slide, gene), 33, placeholder="...")
    axis.set_title(f"{name}\n{_held_out(row, short=True)}", loc="left", fontsize=9)
    colors, small = colors_of(row["trusted"]), canvas.patch[::2, ::2]
    drawn = _draw_map(axis, canvas, values, plots.color_range(values), colors, small)
    bar = figure.colorbar(drawn, ax=axis, shrink=0.7, pad=0.01, panchor=False)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _draw_tissue(axis, canvas: _Canvas) -> None:
    _draw_window(axis, canvas, canvas.plain)
    plots.scale_bar(axis, canvas.tissue, *canvas.window)


def _draw_map(
    axis,
    canvas: _Canvas,
    values: np.ndarray,
    norm: Normalize,
    cmap: str | Colormap,
    patch: np.ndarray | None = None,
) -> AxesImage:
    """Draw (N,) values of the patches over the pale tissue; ``patch`` for the canvas' own."""
    _draw_window(axis, canvas, canvas.faded)
    patch = canvas.patch if patch is None else patch
    drawn = np.append(np.asarray(values, np.float32), np.nan)[patch]  # -1 is the last: none
    return axis.imshow(drawn, extent=canvas.window, cmap=cmap, norm=norm, interpolation="nearest")


def _draw_window(axis, canvas: _Canvas, picture: np.ndarray) -> None:
    """Draw a picture of the window; y grows downwards, as in the image."""
    axis.imshow(picture, extent=canvas.window, cmap="gray", vmin=0, vmax=255)
    axis.set_anchor("W")
    axis.set_axis_off()


def colors_of(trusted: bool) -> Colormap:
    """The color map of a gene: gray where it is not trusted."""
    return matplotlib.colormaps["viridis"] if trusted else _GRAY


def _label(slide: SlideMap, gene: str) -> str:
    """A gene's name for people; a map may lack its symbol or its id."""
    names = slide.genes.loc[gene, ["symbol", "gene_id"]]
    return full_name(gene, *("" if pd.isna(name) else str(name) for name in names))


def _held_out(row, short: bool = False) -> str:
    """The held-out PCC of a gene with its interval, or that it was not evaluated."""
    if np.isnan(row["pcc"]):
        return "not evaluated" if short else "held-out PCC not evaluated"
    low, high = number(float(row["pcc_low"])), number(float(row["pcc_high"]))
    interval = "" if np.isnan(row["pcc_low"]) else f" ({low} to {high})"
    return f"{'' if short else 'held-out '}PCC {number(float(row['pcc']))}{interval}"
