"""Pictures of an evaluation: expression on tissue, correlations by gene, by slide and by run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from histokit.core.files import atomic_path
from histokit.report.page import number

# Okabe and Ito's colors, told apart with every common color vision.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
INK, PALE = "#222222", "#8a8a8a"
COMPRESSION = 3  # of PNG: of 6 takes three times as long for 7 % less
_PANEL = 600  # pixels across a panel of a gene map
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALE,
    "text.color": INK,
    "axes.labelcolor": INK,
    "legend.frameon": False,
    "text.parse_math": False,  # names of genes, patients and slides are never mathematics
}


@dataclasses.dataclass(frozen=True)
class Tissue:
    """What the spots of a slide are drawn on.

    Attributes:
        image: (H, W, 3) uint8 thumbnail.
        scale: thumbnail pixels for each pixel of level 0.
        centers: (N, 2) spot centers x, y in pixels of level 0.
        diameter: the diameter of a spot, or the side of a square, in pixels of level 0.
        mpp: microns for each pixel of level 0, or None.
        square: spots are squares, as bins are.
    """

    image: np.ndarray
    scale: float
    centers: np.ndarray
    diameter: float
    mpp: float | None = None
    square: bool = False


@dataclasses.dataclass(frozen=True)
class GeneMap:
    """One gene on one slide: a title and (N,) measured and predicted values."""

    title: str
    measured: np.ndarray
    predicted: np.ndarray


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    # labels of ticks are made when the figure is drawn
    with atomic_path(path) as temporary, matplotlib.rc_context(STYLE):
        figure.savefig(
            temporary,
            dpi=140,
            facecolor="white",
            format="png",
            pil_kwargs={"compress_level": COMPRESSION},
        )


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that no window owns; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def gene_maps(tissue: Tissue, maps: list[GeneMap], title: str, unit: str) -> Figure:
    """Tissue, measured and predicted expression side by side, a row a gene.

    Measured and predicted share one color scale, from the 1st to the 99th percentile of both.
    """
    window = tissue_window(tissue)
    plain = tissue_picture(tissue, *window)
    faded = faded_picture(plain)
    left, right, bottom, top = window
    aspect = (bottom - top) / (right - left)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(11.5, 0.7 + len(maps) * (3.3 * aspect + 0.45))
        figure.suptitle(title, fontsize=13, fontweight="bold")
        axes = figure.subplots(len(maps), 3, squeeze=False)
        for row, gene in zip(axes, maps, strict=True):
            both = np.concatenate([gene.measured, gene.predicted])
            norm = color_range(both)
            row[0].set_title(gene.title, loc="left", fontweight="bold")
            row[1].set_title("measured")
            row[2].set_title("predicted")
            for axis, values in zip(row, (None, gene.measured, gene.predicted), strict=True):
                draw_window(axis, plain if values is None else faded, window)
                if values is not None:
                    spots = draw_spots(axis, tissue, values, norm)
            scale_bar(row[0], tissue, *window)
            bar = figure.colorbar(spots, ax=row, shrink=0.85, pad=0.01, aspect=18)
            bar.set_label(unit)
            bar.outline.set_visible(False)
    return figure


def spot_maps(
    tissue: Tissue, maps: Mapping[str, np.ndarray], title: str, columns: int = 3
) -> Figure:
    """The tissue, then one panel a map of (N,) values, each on its own color scale.

    A scale runs from the 1st to the 99th percentile of its map.
    """
    window = tissue_window(tissue)
    plain = tissue_picture(tissue, *window)
    faded = faded_picture(plain)
    left, right, bottom, top = window
    rows, aspect = -(-(len(maps) + 1) // columns), (bottom - top) / (right - left)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(11.5, 0.7 + rows * (3.4 * aspect + 0.45))
        figure.suptitle(title, fontsize=13, fontweight="bold")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, (name, values) in zip(axes, [("", None), *maps.items()], strict=False):
            draw_window(axis, plain if values is None else faded, window)
            axis.set_title(name, loc="left", fontsize=9)
            if values is None:
                scale_bar(axis, tissue, *window)
                continue
            spots = draw_spots(axis, tissue, values, color_range(values))
            figure.colorbar(spots, ax=axis, shrink=0.7, pad=0.01).outline.set_visible(False)
    return figure


def color_range(values: np.ndarray) -> Normalize:
    """Colors from the 1st to the 99th percentile of what is finite."""
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, [1, 99]) if len(known) else (0, 1)
    return Normalize(low, high if high > low else low + 1)


def draw_window(axis, picture: np.ndarray, window: tuple[float, float, float, float]) -> None:
    """Draw a picture of ``tissue_window``; y grows downwards, as in the image."""
    left, right, bottom, top = window
    axis.imshow(picture, extent=window, cmap="gray", vmin=0, vmax=255)
    axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axis.set_axis_off()


def tissue_window(tissue: Tissue) -> tuple[float, float, float, float]:
    """Left, right, bottom, top of the spots with a margin, in pixels of level 0."""
    margin = 1.5 * tissue.diameter
    (left, top), (right, bottom) = tissue.centers.min(0) - margin, tissue.centers.max(0) + margin
    return left, right, bottom, top


def tissue_picture(tissue: Tissue, left, right, bottom, top) -> np.ndarray:
    """The window of the thumbnail, white outside of it, at the size it is drawn in."""
    box = [round(edge * tissue.scale) for edge in (left, top, right, bottom)]
    image = Image.fromarray(tissue.image)
    window = Image.new("RGB", (max(1, box[2] - box[0]), max(1, box[3] - box[1])), "white")
    window.paste(image, (-box[0], -box[1]))
    window.thumbnail((_PANEL, _PANEL * 4))
    return np.asarray(window)


def faded_picture(picture: np.ndarray) -> np.ndarray:
    """A pale grey (h, w) of a picture (h, w, 3), to draw spots on."""
    return (255 - 0.35 * (255 - picture.mean(axis=2))).astype(np.uint8)


def draw_spots(axis, tissue: Tissue, values: np.ndarray, norm, cmap="viridis"):
    """Draw (N,) values of the spots at their size on the tissue; the collection drawn."""
    colors = {"array": np.asarray(values), "cmap": cmap, "norm": norm, "linewidths": 0}
    if tissue.square:
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * tissue.diameter / 2
        squares = PolyCollection(tissue.centers[:, None] + corners, antialiaseds=False, **colors)
        return axis.add_collection(squares)
    diameters = np.full(len(values), tissue.diameter)
    spots = EllipseCollection(
        diameters,
        diameters,
        np.zeros(len(values)),
        units="xy",
        offsets=tissue.centers,
        offset_transform=axis.transData,
        **colors,
    )
    return axis.add_collection(spots)


def scale_bar(axis, tissue: Tissue, left, right, bottom, top) -> None:
    """Draw a bar of a round length into the lower left corner, where the mpp is known."""
    if not tissue.mpp:
        return
    width = (right - left) * tissue.mpp
    lengths = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
    length = max((um for um in lengths if um <= width / 4), default=1)
    label = f"{length // 1000} mm" if length >= 1000 else f"{length} µm"
    x, y = left + 0.04 * (right - left), bottom - 0.04 * (bottom - top)
    axis.plot([x, x + length / tissue.mpp], [y, y], color="black", linewidth=3)
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
    axis.annotate(
        label, (x, y), (0, 5), textcoords="offset points", fontsize=9, va="bottom", bbox=box
    )


def pcc_histogram(genes: pd.DataFrame) -> Figure:
    """How PCC is spread over genes: all genes, and the highly variable ones; a line is a mean."""
    scored = genes.dropna(subset="pcc")
    groups = [("all genes", scored["pcc"], COLORS[4])]
    groups.append(("highly variable genes", scored.loc[scored["hvg_folds"] > 0, "pcc"], COLORS[5]))
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.5, 4.6)
        panels = figure.subplots(2, 1, sharex=True)
        edges = np.arange(-1, 1.0001, 0.04)
        for axis, (name, values, color) in zip(panels, groups, strict=True):
            axis.hist(values, edges, color=color, edgecolor="white", linewidth=0.4)
            axis.set_ylabel("genes")
            axis.yaxis.get_major_locator().set_params(integer=True)
            axis.axvline(0, color=PALE, linewidth=0.8, linestyle=":")
            text = f"{name}: {len(values):,}"
            if len(values):
                axis.axvline(values.mean(), color=INK, linewidth=1.4)
                text += f", mean {number(float(values.mean()))}"
            axis.set_title(text, loc="left")
        lowest, highest = scored["pcc"].min(), scored["pcc"].max()
        if len(scored):
            panels[0].set_xlim(min(-0.2, lowest) - 0.05, max(0.6, highest) + 0.05)
        panels[1].set_xlabel("mean PCC of measured and predicted expression")
    return figure


def slide_bars(slides: pd.DataFrame, num_hvg: int) -> Figure:
    """Headline PCC of each test slide; hatched where the patient was seen in training."""
    slides = slides.sort_values(["cancer", "patient_seen", "pcc_hvg"], kind="stable")
    cancers = list(dict.fromkeys(slides["cancer"]))
    several = slides["slide_id"].duplicated().any()
    names = slides["slide_id"] + (" (" + slides["fold"] + ")" if several else "")
    if len(cancers) > len(COLORS):
        names, cancers = names + ", " + slides["cancer"], []
    size = float(np.clip(20 / len(slides), 0.13, 0.34))
    with matplotlib.rc_context(STYLE | {"hatch.linewidth": 1.0, "hatch.color": "white"}):
        figure = new_figure(8, 1.6 + size * len(slides))
        axis = figure.subplots()
        place = np.arange(len(slides))
        colors = [COLORS[cancers.index(c) if cancers else 0] for c in slides["cancer"]]
        values = slides["pcc_hvg"].to_numpy()
        bars = axis.barh(place, np.nan_to_num(values), color=colors, height=0.7)
        for y, bar, value, seen in zip(place, bars, values, slides["patient_seen"], strict=True):
            if seen == "yes":
                bar.set_hatch("///")
            at = (max(0, np.nan_to_num(value)), y)
            _label(axis, value, at, offset=4, fontsize=min(9, 26 * size))
        axis.set_yticks(place, names)
        axis.tick_params(axis="y", length=0, labelsize=min(10, 28 * size))
        axis.set_ylim(len(slides) - 0.4, -0.6)
        axis.axvline(0, color=PALE, linewidth=0.8)
        top = np.nanmax(values, initial=0.1)
        axis.set_xlim(min(0, np.nanmin(values, initial=0) * 1.1), top * 1.15)
        axis.set_xlabel(f"PCC, mean over {num_hvg} highly variable genes")
        handles = [
            Patch(color=color, label=cancer or "no cancer code")
            for color, cancer in zip(COLORS, cancers, strict=False)
        ]
        if (slides["patient_seen"] == "yes").any():
            seen = {"facecolor": PALE, "hatch": "///", "edgecolor": "white"}
            handles.append(Patch(label="patient also in training", **seen))
        if handles:
            figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)))
    return figure


def _label(axis, value: float, at: tuple, offset: float, **style) -> None:
    text = "undefined" if np.isnan(value) else number(float(value))
    axis.annotate(text, at, (offset, 0), textcoords="offset points", va="center", **style)


def run_dots(table: pd.DataFrame, metric_label: str) -> Figure:
    """Headline PCC of each run with its interval, best on top."""
    with matplotlib.rc_context(STYLE):
        figure = new_figure(8, 1.1 + 0.42 * len(table))
        axis = figure.subplots()
        place = np.arange(len(table))
        value = table["pcc_hvg"].to_numpy()
        axis.hlines(place, table["pcc_hvg_low"], table["pcc_hvg_high"], color=COLORS[0], lw=2.5)
        axis.plot(value, place, "o", color=COLORS[0], markersize=7)
        for y, v, high in zip(place, value, table["pcc_hvg_high"], strict=True):
            _label(axis, v, (0 if np.isnan(v) else np.fmax(v, high), y), offset=9)
        axis.set_yticks(place, table["run"])
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(len(table) - 0.5, -0.5)
        axis.axvline(0, color=PALE, linewidth=0.8, linestyle=":")
        axis.set_xlabel(metric_label)
        axis.margins(x=0.12)
    return figure


def loss_curves(history: Sequence[Mapping], label: str) -> Figure:
    """Training and validation loss by epoch; history: rows epoch, train_loss, val_loss or None."""
    figure = new_figure(6, 3.5)
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    axes.plot(epochs, [row["train_loss"] for row in history], color="#0072b2", label="training")
    if history[0]["val_loss"] is not None:
        losses = [row["val_loss"] for row in history]
        best = int(np.argmin(losses))
        axes.plot(epochs, losses, color="#d55e00", label="validation")
        axes.plot(epochs[best], losses[best], "o", color="#d55e00", label=f"best, {epochs[best]}")
    axes.set(xlabel="epoch", ylabel=label, yscale="log")
    axes.legend(frameon=False)
    return figure
