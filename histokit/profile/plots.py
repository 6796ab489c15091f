"""Time, memory and operations against patches, as in Figure 3 of HistoPrism's paper."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from histokit.core.files import atomic_path
from histokit.report.plots import COLORS, STYLE

PANELS = (
    ("Time of a call", "seconds", "ms_p50", 1e-3),
    ("Peak memory: results and what they take", "GB", "peak_mb", 1 / 1024),
    ("Operations", "TFLOP", "gflop", 1e-3),
)


def draw_profile(rows: list[dict], path: Path) -> None:
    """One line a row of the table in each of three panels, on logarithmic axes.

    Args:
        rows: the rows of run_profile.py: ``row``, ``patches``, ``against``, ``ms_p50``,
            ``peak_mb`` and ``gflop``; those left out have empty values. A form that another
            is compared with is dashed, in the same color.
        path: the PNG.
    """
    names = list(dict.fromkeys(row["row"] for row in rows))
    against = {row["row"]: row["against"] for row in rows}
    leaders = [name for name in names if name not in against.values()]
    color = {name: COLORS[i % len(COLORS)] for i, name in enumerate(leaders)}
    color |= {against[name]: color[name] for name in leaders if against[name]}
    ticks = sorted({row["patches"] for row in rows})
    with matplotlib.rc_context(STYLE | {"text.parse_math": True}):  # powers of ten
        figure = Figure(figsize=(13, 4.4), layout="constrained")
        axes = figure.subplots(1, 3)
        for axis, (title, unit, key, factor) in zip(axes, PANELS, strict=True):
            for name in names:
                points = [(r["patches"], r[key] * factor) for r in rows
                          if r["row"] == name and r[key] != ""]  # fmt: skip
                published = name in against.values()
                axis.plot(
                    *zip(*sorted(points), strict=True) if points else ([], []),
                    label=name,
                    color=color[name],
                    linestyle="--" if published else "-",
                    marker="o" if published else "s",
                    markerfacecolor="white" if published else color[name],
                )
            axis.set(title=title, xlabel="patches", ylabel=unit, xscale="log")
            if any(row[key] for row in rows):  # a logarithm of nothing is an error
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_xticks(ticks, [f"{n:,}" for n in ticks], minor=False)
            axis.minorticks_off()
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.grid(axis="y", alpha=0.25)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
        FigureCanvasAgg(figure)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150)
