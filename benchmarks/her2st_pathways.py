"""Gene Pathway Coherence of the measured her2st runs, written into RESULTS.md.

    python benchmarks/her2st_pathways.py --gene-sets ../shared/genesets/h.all.v2025.1.Hs.symbols.gmt

Needs the runs of benchmarks/her2st.py.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from her2st import markdown, replace_between

import run_eval
from histokit.core.options import option, required, run
from histokit.evaluate.coherence import slide_intervals, win_rate

MODELS = ("ridge-hest", "ridge", "mlp", "histoprism-paper", "histoprism-small")
AGAINST = "ridge"
NEW = "B4"  # the section of a patient that no model saw
PATIENTS = pd.Series({"C2": "C", "C3": "C", "C4": "C", "C5": "C", NEW: "B"})


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    gene_sets: list[str] = required("GMT files")
    runs: str = option(
        "work/results/runs/counts10k-log1p/efficientnet-lite0", "folder with a run for each model"
    )
    results: str = option("RESULTS.md", "file whose part on pathways is replaced")


def main(cfg: Options) -> None:
    """Score the pathways of every run and write one table a collection."""
    folders = [Path(cfg.runs) / model for model in MODELS]
    run_eval.main(
        run_eval.Options(
            run=[str(folder) for folder in folders],
            out=str(Path(cfg.runs) / "pathways"),
            gene_sets=cfg.gene_sets,
            predictions=False,
            pictures=False,
        )
    )
    names = [Path(s).name.removesuffix(".gz").removesuffix(".gmt") for s in cfg.gene_sets]
    tables = "\n\n".join(_table(name, folders) for name in names)
    replace_between(Path(cfg.results), "pathways", tables)
    print(f"wrote the pathways to {cfg.results}")


def _table(name: str, folders: list[Path]) -> str:
    slides = {f.name: _csv(f, f"coherence_by_slide_{name}.csv") for f in folders}
    rows = []
    for folder in folders:
        own, scores = slides[folder.name], _csv(folder, f"coherence_{name}.csv")
        seen = own.drop(columns=NEW)
        low, high = (float(x[0]) for x in slide_intervals(seen.mean().to_frame().T, PATIENTS))
        row = {
            "model": folder.name,
            "C [over sections]": f"{seen.mean().mean():.3f} [{low:.3f}, {high:.3f}]",
            "C -> B4": f"{own[NEW].mean():.3f}",
            "expected, all five": f"{scores['expected'].mean():.3f}",
            "reached, all five": f"{scores['score'].mean():.3f}",
        }
        wins = win_rate(own - slides[AGAINST], PATIENTS)
        row[f"above {AGAINST}"] = "-" if folder.name == AGAINST else f"{wins.rate:.0%}"
        rows.append(row)
    return f"### {name}: {len(scores)} pathways\n\n{markdown(pd.DataFrame(rows))}"


def _csv(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / "eval" / name, index_col="pathway")


if __name__ == "__main__":
    run(main, Options, __doc__)
