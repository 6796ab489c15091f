"""Pictures of embeddings: t-SNE colored by cluster, and the clusters on the tissue."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from histokit.report.plots import (
    COLORS,
    STYLE,
    Tissue,
    draw_spots,
    faded_picture,
    new_figure,
    tissue_picture,
    tissue_window,
)


@dataclasses.dataclass(frozen=True)
class ClusterMap:
    """One embedding: a title, (N, 2) t-SNE coordinates and (N,) int clusters from 0."""

    title: str
    points: np.ndarray
    labels: np.ndarray


def cluster_maps(tissue: Tissue, maps: Sequence[ClusterMap], title: str) -> Figure:
    """A column an embedding: its t-SNE above, its clusters on the tissue below."""
    left, right, bottom, top = window = tissue_window(tissue)
    faded = faded_picture(tissue_picture(tissue, *window))
    clusters = 1 + max(int(m.labels.max()) for m in maps)
    colors, norm = (
        ListedColormap(COLORS[:clusters]),
        BoundaryNorm(np.arange(clusters + 1) - 0.5, clusters),
    )
    aspect = (bottom - top) / (right - left)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(11.5, 1.3 + 3.4 + 3.4 * aspect)
        figure.suptitle(title, fontsize=13, fontweight="bold")
        axes = figure.subplots(2, len(maps), squeeze=False, height_ratios=[1, aspect])
        for above, below, one in zip(*axes, maps, strict=True):
            above.scatter(*one.points.T, c=one.labels, cmap=colors, norm=norm, s=16, linewidths=0)
            above.set_title(one.title, loc="left", fontsize=10)
            above.set(xticks=[], yticks=[], xlabel="t-SNE 1", box_aspect=1)
            below.imshow(
                faded, extent=(left, right, bottom, top), cmap="gray", vmin=0, vmax=255
            )  # y grows downwards, as in the image
            draw_spots(below, tissue, one.labels, norm, colors)
            below.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
            below.set_axis_off()
        axes[0, 0].set_ylabel("t-SNE 2")
        handles = [
            Line2D([], [], marker="o", linestyle="", color=colors(k), label=f"cluster {k + 1}")
            for k in range(clusters)
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=clusters, handletextpad=0.1
        )
    return figure
