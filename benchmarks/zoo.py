"""Every model on the same features of three patients: settings chosen alike, test touched once.

    python benchmarks/zoo.py --source ../shared/data/her2st --third ../shared/data/her2st_A1

Patients A (one section), B (one) and C (four). *Patients*: one of them held out; *within C*: one
section of C held out, the other three in training. Each model tries six settings where it has any,
on plain features. They are chosen for a test patient by trainings on one of the other two patients
that are scored on the other one, both ways; for the sections of C too, so that no test slide has a
say. Then three seeds train with the setting that is best there. Writes benchmarks/results/zoo.csv,
a row for each test slide, and a part of RESULTS.md. Stopped and given again, it goes on.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zoo_models import FEATURES, LEFT_OUT, NET, REFERENCE, SIZES, SPECS, ZOO
from zoo_run import PATIENTS, Measurement, Task, extract_as, train_and_score

from histokit.core.errors import InputError
from histokit.core.options import option, run
from histokit.core.progress import progress_bar

SCORES = ROOT / "benchmarks" / "results" / "zoo.csv"
KEYS = "target genes features protocol model fold seed slide_id setting".split()  # of a row
SAME = 1e-3  # in PCC, of a closed form on another machine


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """Options of the measurement."""

    out: str = option("work/zoo", "folder for features and runs")
    features: list[str] = option(["plain", "best"], "features to measure", choices=tuple(FEATURES))
    genes: int = option(200, "genes of the panel, the most variable in training; 0: all", least=0)
    models: list[str] = option(
        [], "measure these and keep other rows; all if empty", choices=tuple(ZOO)
    )
    seeds: int = option(3, "seeds of each network", least=1)


def main(cfg: Options) -> None:
    """Extract, choose settings, train, score; then the table."""
    from zoo_table import check, write_table

    check(ROOT / cfg.results, "zoo")
    if cfg.measure:
        extract(cfg)
        rows = [row for row in ZOO if not cfg.models or row in (*cfg.models, REFERENCE)]
        scores = with_others(measure(cfg, rows), cfg)
        write_scores(scores, SCORES)
    write_table(pd.read_csv(SCORES), ROOT / cfg.results)


def extract(cfg: Options) -> None:
    """Features of all sections; what is there is kept."""
    more = {"plain": {}, "best": {"pool": "stages", "scales": SIZES}}
    for source in (cfg.source, cfg.third):
        for features in cfg.features:
            extract_as(source, f"{cfg.out}/data", {"encoder": NET} | more[features])


def choices(cfg: Options, row: str) -> list[Task]:
    """Every setting, trained on each patient and scored on each other one; on plain features."""
    folds = tuple(f"{x}>{y}" for x in PATIENTS for y in PATIENTS if x != y)
    count, genes = len(ZOO[row]["tries"]), cfg.genes or None
    return [
        Task(cfg.out, cfg.target, row, "plain", genes, k, 0, folds)
        for k in range(count)
        if count > 1
    ]


def finals(cfg: Options, row: str, features: str) -> list[Task]:
    """The runs that are reported; each fold at the setting chosen without its test patient."""
    closed = ZOO[row]["options"].get("preset") is None  # a closed form has no seed
    chosen = {y: choose(cfg, row, y) for y in PATIENTS}
    folds = {fold: chosen.get(fold, chosen["C"]) for fold in (*PATIENTS, *PATIENTS["C"])}
    groups = {k: tuple(f for f, own in folds.items() if own == k) for k in folds.values()}
    return [
        Task(cfg.out, cfg.target, row, features, cfg.genes or None, setting, seed, own)
        for seed in range(1 if closed else cfg.seeds)
        for setting, own in sorted(groups.items())
    ]


def measure(cfg: Options, rows: Sequence[str]) -> pd.DataFrame:
    """Settings first, then what is reported, of which this is the table."""
    perform(cfg, [task for row in rows for task in choices(cfg, row)], "choosing")
    reported = [
        task
        for features in cfg.features
        for row in rows
        if (features, row) not in LEFT_OUT
        for task in finals(cfg, row, features)
    ]
    perform(cfg, reported, "training")
    return collect(reported)


def choose(cfg: Options, row: str, patient: str) -> int:
    """The setting with the best PCC over the two patients that are not tested."""
    values = {}
    for task in choices(cfg, row):
        folds = task.scores()["folds"]
        others = [found for name, found in folds.items() if patient not in name.split(">")]
        values[task.setting] = np.mean([_mean_pcc(found) for found in others])
    return max(values, key=values.get) if values else 0


def _mean_pcc(fold: dict) -> float:
    return float(np.mean([slide["pcc_zero"] for slide in fold["slides"]]))


def perform(cfg: Options, tasks: Sequence[Task], what: str) -> None:
    """Train and score what is missing, several at a time."""
    missing = [task for task in tasks if task.scores() is None]
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cfg.jobs, mp_context=context) as pool:
        waiting = [pool.submit(train_and_score, task) for task in missing]
        for done in progress_bar(as_completed(waiting), total=len(waiting), desc=what):
            done.result()


def collect(tasks: Sequence[Task]) -> pd.DataFrame:
    """One row a test slide of every reported training."""
    rows = []
    for task in tasks:
        found = task.scores()
        common = {"target": task.target, "features": task.features, "model": task.row}
        common |= {"genes": task.genes or "all"}
        common |= {"seed": task.seed, "setting": str(SPECS[task.row]["tries"][task.setting])}
        common |= {k: v for k, v in found.items() if k not in ("folds", "stamp")}
        for fold, own in found["folds"].items():
            common |= {"fold": fold, "protocol": "patients" if fold in PATIENTS else "within C"}
            common |= {k: v for k, v in own.items() if k != "slides"}
            rows += [common | slide for slide in own["slides"]]
    table = pd.DataFrame(rows)
    return table[[*KEYS, *(c for c in table if c not in KEYS)]]


def write_scores(scores: pd.DataFrame, path: Path) -> None:
    """Write the rows in an order of their own, whichever were measured last."""
    place = scores[KEYS].astype({"genes": str}).sort_values(KEYS, kind="stable").index
    scores.loc[place].to_csv(path, index=False, float_format="%.6g")
    print(f"wrote {path}")


def with_others(scores: pd.DataFrame, cfg: Options) -> pd.DataFrame:
    """The rows just measured, and those of before: other targets or genes, or models not asked for.

    Raises:
        InputError: as ``beside``.
    """
    if not SCORES.is_file():
        return scores
    known = pd.read_csv(SCORES)
    same = (known["target"] == cfg.target) & (known["genes"].astype(str) == str(cfg.genes or "all"))
    found = beside(scores, known[same], REFERENCE) if cfg.models else scores
    return pd.concat([found, known[~same]], ignore_index=True)


def beside(scores: pd.DataFrame, known: pd.DataFrame, reference: str) -> pd.DataFrame:
    """The rows just measured, and the known ones of other models or features.

    The reference keeps its known rows: its costs were measured beside those of the others.

    Raises:
        InputError: a model that is in both, the reference, is not what it was, so that the known
            rows would stand beside some that are not made as they were.
    """
    keys = ["features", "model", "fold", "slide_id"]
    was, now = (x[x["model"] == reference].set_index(keys)["pcc_zero"] for x in (known, scores))
    for key in was.index.intersection(now.index):
        if abs(was[key] - now[key]) > SAME:
            raise InputError(
                f"{SCORES.parent}: on {key[0]} features {reference} reaches {now[key]:.4f} on "
                f"{key[-1]} and reached {was[key]:.4f} when other models were measured; measure "
                "all again (without --models)"
            )
    new, old = (pd.MultiIndex.from_frame(x[keys[:2]]) for x in (scores, known))
    scores = scores[~((scores["model"] == reference) & new.isin(old))]
    kept = (known["model"] == reference) | ~old.isin(new)
    return pd.concat([scores, known[kept]], ignore_index=True)


if __name__ == "__main__":
    run(main, Options, __doc__)
