"""The PAM50 figure of BP-Booster's paper (section 3.2.3) on her2st: one ridge on each embedding.

    python benchmarks/her2st_pam50.py

Needs the features of benchmarks/her2st.py and the runs of benchmarks/her2st_boost.py; writes
benchmarks/results/her2st-pam50.png and .csv and a part of RESULTS.md.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from her2st import markdown, replace_between, train_and_score, with_interval

from histokit.core.files import atomic_path
from histokit.core.options import option, run
from histokit.evaluate.runs import Run
from histokit.evaluate.topics.signatures import find_genes, read_signature
from histokit.report import plots

NO_PCA = "ridge-no-pca"
AGAINST = "PCA, ridge"
EMBEDDINGS = {
    "raw, ridge": NO_PCA,
    "PCA, HEST's ridge": "ridge-hest",
    AGAINST: "ridge",
    "refined, random": "random",
    "refined, programs": "programs",
    "refined, preset small": "preset small",
}
NULL = "library size, no image"  # a line on the number of molecules caught, told for test spots too
NEW = "B4"
PANELS = {"C": "C sections, each held out (mean of four)", NEW: "C -> B4, a new patient"}
MARKERS = "os^DvP"
COLORS = ("#000000", "#999999", "#E69F00", "#0072B2", "#009E73", "#D55E00")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    data: str = option("work/results/data", "folder with the features")
    runs: str = option(
        "work/results/boost/counts10k-log1p/seed-0", "folder with the runs of her2st_boost.py"
    )
    null: str = option(
        "work/results/controls/counts10k-log1p/controls/library-size",
        "run on the library size alone, of run_train.py --controls",
    )
    out: str = option("work/results/pam50", "folder for the run without PCA")
    results: str = option("RESULTS.md", "file whose part on PAM50 is replaced")


def main(cfg: Options) -> None:
    """Train what is missing; write the figure, its numbers and the table."""
    raw = Path(cfg.out) / NO_PCA
    train_and_score(raw, data=cfg.data, model=NO_PCA, standardize="train", val_fraction=0)
    folders = {name: Path(cfg.runs) / folder for name, folder in EMBEDDINGS.items()}
    folders |= {name: raw for name, folder in EMBEDDINGS.items() if folder == NO_PCA}
    folders[NULL] = Path(cfg.null)
    found = {name: read_pcc(folder) for name, folder in folders.items()}
    pcc = pd.concat({n: per_gene(f) for n, f in found.items()}, names=["embedding"])
    order = pcc.loc[AGAINST].sort_values("C", ascending=False, kind="stable").index
    wide = pcc.reset_index().pivot(index="gene", columns="embedding")
    wide = wide.loc[order]
    place = ROOT / "benchmarks/results"
    with atomic_path(place / "her2st-pam50.csv") as temporary:
        pcc.reset_index().to_csv(temporary, index=False, float_format="%.4f")
    plots.save(figure(wide), place / "her2st-pam50.png")
    replace_between(Path(cfg.results), "pam50", markdown(table(wide, found)))
    print(f"wrote {len(order)} genes to {place}/her2st-pam50.png and .csv and to {cfg.results}")


def read_pcc(folder: Path) -> pd.DataFrame:
    """PCC of each PAM50 gene that is in the panels of all folds, on each section."""
    signature, names = read_signature("pam50"), {}
    for fold in Run(folder).folds:
        found = find_genes(signature, fold.genes)
        names |= dict(zip(fold.genes["gene"].iloc[found], found.index, strict=True))
    pcc = pd.read_csv(folder / "eval" / "pcc_by_slide.csv", index_col="gene")
    return pcc.reindex(list(names)).rename(index=names).rename_axis("gene").dropna()


def per_gene(pcc: pd.DataFrame) -> pd.DataFrame:
    """PCC by gene: C (mean of its sections) and B4."""
    return pd.DataFrame({"C": pcc.drop(columns=NEW).mean(axis=1), NEW: pcc[NEW]})


def table(wide: pd.DataFrame, found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row an embedding: means over genes, and what they gain over PCA and ridge.

    Genes share their sections, so intervals are over the sections of patient C; there is one B4.
    """
    genes = wide.dropna().index
    sections = {
        name: pcc.loc[genes].drop(columns=NEW).mean() for name, pcc in found.items()
    }  # fmt: skip
    rows = []
    for name in (*EMBEDDINGS, NULL):
        gains = {part: wide[part, name] - wide[part, AGAINST] for part in PANELS}
        above = with_interval(sections[name] - sections[AGAINST])
        row = {
            "embedding": name,
            "C [over sections]: mean PCC": with_interval(sections[name]),
            f"C [over sections]: above {AGAINST}": above,
            "C: genes above": f"{(gains['C'] > 0).sum()} of {len(genes)}",
            f"{NEW}: mean PCC": f"{wide[NEW, name].mean():.3f}",
            f"{NEW}: above {AGAINST}": f"{gains[NEW].mean():.3f}",
            f"{NEW}: genes above": f"{(gains[NEW] > 0).sum()} of {len(genes)}",
        }
        if name == AGAINST:
            row |= {key: "-" for key in row if "above" in key}
        rows.append(row)
    return pd.DataFrame(rows)


def figure(wide: pd.DataFrame) -> Figure:
    """A panel for the C sections and one for B4; a marker an embedding, a bar the null."""
    place = np.arange(len(wide))
    with matplotlib.rc_context(plots.STYLE):
        drawn = plots.new_figure(14, 9.5)
        axes = drawn.subplots(2, 1, sharex=True)
        for axis, (part, title) in zip(axes, PANELS.items(), strict=True):
            for x in place[::2]:
                axis.axvspan(x - 0.5, x + 0.5, color="#f1f1f1", zorder=0)
            axis.axhline(0, color=plots.PALE, linewidth=0.8, linestyle=":")
            null = wide[part, NULL]
            bar = {"color": "#56B4E9", "linewidth": 2, "label": f"{NULL} ({null.mean():.3f})"}
            axis.hlines(null, place - 0.42, place + 0.42, zorder=1, **bar)
            shifts = np.linspace(-0.32, 0.32, len(EMBEDDINGS))
            looks = zip(EMBEDDINGS, MARKERS, COLORS, shifts, strict=True)
            for name, marker, color, shift in looks:
                style = {"marker": marker, "color": color, "markersize": 6, "linestyle": ""}
                mean = wide[part, name].mean()
                axis.plot(place + shift, wide[part, name], label=f"{name} ({mean:.3f})", **style)
            axis.set_title(title, loc="left", fontweight="bold")
            axis.set_ylabel("PCC of the gene")
            axis.legend(ncols=4, loc="upper right", fontsize=9, title="mean over genes in brackets",
                        handletextpad=0.4, columnspacing=1.2)  # fmt: skip
            low, high = axis.get_ylim()
            axis.set_ylim(low, high + 0.22 * (high - low))
        axes[1].set_xticks(place, wide.index, rotation=90)
        axes[1].set_xlim(-0.6, len(wide) - 0.4)
        axes[1].set_xlabel(f"PAM50 genes, sorted by {AGAINST} on the C sections")
    return drawn


if __name__ == "__main__":
    run(main, Options, __doc__)
