"""BP-Booster's ablation on her2st over several seeds, beside other models on the same features.

    python benchmarks/her2st_boost.py --programs ../shared/genesets/h.all.v2025.1.Hs.symbols.gmt

Needs the features of benchmarks/her2st.py; writes a part of RESULTS.md. Stopped and given again, it
goes on, and more seeds are added to those that are there.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from her2st import AGAINST, markdown, replace_between, score, with_interval

import run_train
from histokit.core.options import option, required, run
from histokit.train.ablation import VARIANTS

# Beside the ablation: hyper-parameters for few sections, and the other models.
BESIDE = {
    "preset small": {"preset": "small"},
    "ridge-no-pca": {"model": "ridge-no-pca"},
    "mlp": {"model": "mlp", "preset": "small", "val_fraction": 0.2},  # these two stop early
    "histoprism, small": {"model": "histoprism", "preset": "small", "val_fraction": 0.2},
}
ROWS = (*VARIANTS, *BESIDE)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    programs: str = required("GMT file whose pathways become prototypes")
    out: str = option("work/results", "folder with the features, for the runs")
    seeds: int = option(5, "seeds")
    targets: list[str] = option(["counts10k-log1p", "log1p"], "targets to measure")
    results: str = option("RESULTS.md", "file whose part on BP-Booster is replaced")


def main(cfg: Options) -> None:
    """Train and evaluate what is missing; write a table for each target."""
    tables = []
    for target in cfg.targets:
        for seed in range(cfg.seeds):
            place = Path(cfg.out) / "boost" / target / f"seed-{seed}"
            common = run_train.Options(
                data=str(Path(cfg.out) / "data"),
                run=str(place),
                model="bpbooster",
                preset="paper",
                target=target,
                panel="detected",
                folds=str(ROOT / "benchmarks/her2st_folds.csv"),
                allow_leakage=True,  # sections of patient C test one another; B4 is apart
                standardize="train",
                val_fraction=0,  # a fixed number of epochs, as in the paper
                seed=seed,
            )
            run_train.main(dataclasses.replace(common, ablate=True, programs=cfg.programs))
            for name, own in BESIDE.items():
                run_train.main(dataclasses.replace(common, run=str(place / name), **own))
            for name in ROWS:
                score(place / name)
        seeds = f"{cfg.seeds} seed" + "s" * (cfg.seeds > 1)
        tables.append(f"### Target {target}, {seeds}\n\n{markdown(_table(cfg, target))}")
    replace_between(Path(cfg.results), "boost", "\n\n".join(tables))
    print(f"wrote the tables to {cfg.results}; runs are in {cfg.out}/boost")


def _table(cfg: Options, target: str) -> pd.DataFrame:
    by_slide = {name: _slides(cfg, target, name) for name in ROWS}
    best = by_slide[AGAINST]["pcc_hvg"]
    rows = []
    for name, found in sorted(by_slide.items(), key=lambda item: -item[1]["pcc_hvg"][:-1].mean()):
        pcc, mse, variance = (found[name] for name in ("pcc_hvg", "mse", "target_variance"))
        gain = pcc - best
        row = {"model": name}
        row["C [over sections]: PCC top 50"] = with_interval(pcc[:-1])
        row[f"C [over sections]: above {AGAINST}"] = (
            "-" if name == AGAINST else with_interval(gain[:-1])
        )
        row["C [over sections]: MSE"] = with_interval(mse[:-1])
        row["C: target variance"] = f"{variance[:-1].mean():.3f}"
        row["B4: PCC top 50"] = f"{pcc.iloc[-1]:.3f}"
        row["B4: seeds"] = f"{found['low'].iloc[-1]:.3f} to {found['high'].iloc[-1]:.3f}"
        row["B4: MSE"] = f"{mse.iloc[-1]:.3f}"
        row["B4: target variance"] = f"{variance.iloc[-1]:.3f}"
        rows.append(row)
    return pd.DataFrame(rows)


def _slides(cfg: Options, target: str, name: str) -> pd.DataFrame:
    """By slide, B4 last: means over seeds, the range of pcc_hvg, and the targets' variance."""
    place = Path(cfg.out) / "boost" / target
    tables = [
        pd.read_csv(place / f"seed-{seed}" / name / "eval" / "slides.csv", index_col="slide_id")
        for seed in range(cfg.seeds)
    ]
    pcc = pd.concat([table["pcc_hvg"] for table in tables], axis=1)
    mean = pd.concat([table["mse"] for table in tables], axis=1).mean(axis=1)
    found = pd.DataFrame(
        {"pcc_hvg": pcc.mean(axis=1), "mse": mean, "low": pcc.min(axis=1), "high": pcc.max(axis=1)}
    ).join(tables[0]["target_variance"])
    return found.sort_index(ascending=False).sort_index(key=lambda i: i == "B4", kind="stable")


if __name__ == "__main__":
    run(main, Options, __doc__)
