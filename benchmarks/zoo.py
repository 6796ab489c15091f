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
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zoo_models import FEATURES, LEFT_OUT, ZOO

import run_extract
import run_train
from histokit.core.files import make_folder, read_json, write_json
from histokit.core.options import option, required, run
from histokit.core.progress import progress_bar

PATIENTS = {"A": ["A1"], "B": ["B4"], "C": ["C2", "C3", "C4", "C5"]}
SCORES = ROOT / "benchmarks" / "results" / "zoo.csv"
GENES, LISTED = 200, 50


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    source: str = required("folder of the her2st sections B4, C2, C3, C4, C5")
    third: str = required("cohort of the section A1")
    out: str = option("work/zoo", "folder for features and runs")
    features: list[str] = option(["plain", "best"], "features to measure", choices=tuple(FEATURES))
    target: str = option("counts10k-log1p", "scale of the targets")
    models: list[str] = option([], "rows of the table to measure; an empty list means all")
    seeds: int = option(3, "seeds of each network", least=1)
    jobs: int = option(2, "trainings at a time, each on one core", least=1)
    measure: bool = option(True, "train what is missing; without it, only write the table")
    results: str = option("RESULTS.md", "file whose part on the zoo is replaced")


def main(cfg: Options) -> None:
    """Extract, choose settings, train, score; then the table."""
    from zoo_table import write_table

    if cfg.measure:
        extract(cfg)
        measure(cfg)
        scores = collect(Path(cfg.out))
        scores.to_csv(SCORES, index=False, float_format="%.6g")
        print(f"wrote {SCORES}")
    write_table(pd.read_csv(SCORES), ROOT / cfg.results)


def extract(cfg: Options) -> None:
    """Features of all sections; what is there is kept."""
    best = {"pool": "stages", "scales": "112,224,448"}
    for source in (cfg.source, cfg.third):
        for features in cfg.features:
            run_extract.main(
                run_extract.Options(
                    source=source,
                    out=str(Path(cfg.out) / "data"),
                    encoder=FEATURES["plain"],
                    cancer="IDC",
                    **(best if features == "best" else {}),
                )
            )


@dataclasses.dataclass(frozen=True)
class Task:
    """One run and its scores: some folds at one setting and seed.

    Attributes:
        row: of the zoo.
        features: of ``FEATURES``.
        setting: position of its options among the row's tries.
        seed: of the training.
        folds: test slides by the fold's name; ``B>A`` is trained on B and scored on A, ``A`` on the
            other two patients, and ``C3`` on the other sections of C.
    """

    row: str
    features: str
    setting: int
    seed: int
    folds: tuple[str, ...]

    def folder(self, out: Path, target: str) -> Path:
        """Where its run lies."""
        name = self.row.replace(", ", "-")
        kind = "choice" if ">" in self.folds[0] else "final"
        place = out / "runs" / target / self.features / name
        return place / f"{kind}-{self.setting}-seed{self.seed}"

    def split(self) -> pd.DataFrame:
        """slide_id, split, fold."""
        rows = []
        for fold in self.folds:
            train, test = slides_of(fold)
            rows += [(s, "train", fold) for s in train] + [(s, "test", fold) for s in test]
        return pd.DataFrame(rows, columns=["slide_id", "split", "fold"])


def slides_of(fold: str) -> tuple[list[str], list[str]]:
    """Training and test slides of a fold, by its name."""
    if ">" in fold:
        x, y = fold.split(">")
        return PATIENTS[x], PATIENTS[y]
    if fold in PATIENTS:
        return [s for x, own in PATIENTS.items() if x != fold for s in own], PATIENTS[fold]
    return [s for s in PATIENTS["C"] if s != fold], [fold]


def choices(row: str) -> list[Task]:
    """Every setting, trained on each patient and scored on each other one; on plain features."""
    folds = tuple(f"{x}>{y}" for x in PATIENTS for y in PATIENTS if x != y)
    count = len(ZOO[row]["tries"])
    return [Task(row, "plain", k, 0, folds) for k in range(count) if count > 1]


def finals(row: str, features: str, chosen: dict[str, int], seeds: int) -> list[Task]:
    """The runs that are reported; each fold at the setting chosen without its test patient."""
    closed = ZOO[row]["options"].get("preset") is None  # a closed form has no seed
    folds = {fold: chosen.get(fold, chosen["C"]) for fold in (*PATIENTS, *PATIENTS["C"])}
    return [
        Task(row, features, setting, seed, tuple(f for f, k in folds.items() if k == setting))
        for seed in range(1 if closed else seeds)
        for setting in sorted(set(folds.values()))
    ]


def measure(cfg: Options) -> None:
    """Settings first, then what is reported."""
    out, rows = Path(cfg.out), cfg.models or list(ZOO)
    perform(cfg, [task for row in rows for task in choices(row)], "choosing")
    tasks = []
    for row in rows:
        chosen = {y: choose(out, cfg.target, row, y) for y in PATIENTS}
        for features in cfg.features:
            if (features, row) not in LEFT_OUT:
                tasks += finals(row, features, chosen, cfg.seeds)
    perform(cfg, tasks, "training")


def choose(out: Path, target: str, row: str, patient: str) -> int:
    """The setting with the best PCC over the two patients that are not tested."""
    values = {}
    for task in choices(row):
        folds = read_json(task.folder(out, target) / "scores.json")["folds"]
        others = [found for name, found in folds.items() if patient not in name.split(">")]
        values[task.setting] = np.mean([_mean_pcc(found) for found in others])
    return max(values, key=values.get) if values else 0


def _mean_pcc(fold: dict) -> float:
    return float(np.mean([slide["pcc_zero"] for slide in fold["slides"]]))


def perform(cfg: Options, tasks: Sequence[Task], what: str) -> None:
    """Train and score what is missing, several at a time."""
    out = Path(cfg.out)
    missing = [t for t in tasks if not (t.folder(out, cfg.target) / "scores.json").is_file()]
    context = multiprocessing.get_context("spawn")
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with ProcessPoolExecutor(cfg.jobs, mp_context=context) as pool:
        waiting = [pool.submit(train_and_score, task, cfg) for task in missing]
        for done in progress_bar(as_completed(waiting), total=len(waiting), desc=what):
            done.result()


def train_and_score(task: Task, cfg: Options) -> None:
    """One run in this process, its scores written last."""
    out = Path(cfg.out)
    folder = make_folder(task.folder(out, cfg.target))
    split = folder / "split.csv"
    task.split().to_csv(split, index=False)
    given = {
        "data": str(out / "data"),
        "run": str(folder),
        "encoder": FEATURES[task.features],
        "target": cfg.target,
        "panel": "detected",
        "top_genes": GENES,
        "standardize": "slide",
        "folds": str(split),
        "seed": task.seed,
        "allow_leakage": True,  # sections of patient C test one another within C
    }
    spec = ZOO[task.row]
    with open(folder / "log.txt", "a") as log, redirect_stdout(log), redirect_stderr(log):
        begin = time.perf_counter()
        options = given | spec["options"] | spec["tries"][task.setting]
        run_train.main(run_train.Options(**options))
        seconds = (time.perf_counter() - begin) / len(task.folds)
        write_json(folder / "scores.json", score(folder) | {"train_seconds": round(seconds, 2)})


def score(folder: Path) -> dict:
    """Every figure of the test slides of a run, by fold, from its predictions."""
    from histokit.evaluate.controls import open_cohort
    from histokit.evaluate.runs import Run
    from histokit.evaluate.views import Views

    trained = Run(folder)
    folds, pools = {}, {}
    begin = time.perf_counter()
    for view in Views(trained, open_cohort(trained)).of():
        listed = (view.fold.genes["hvg_rank"] <= LISTED).to_numpy()
        own = folds.setdefault(view.fold.name, {"slides": []})
        own["slides"].append(figures(view, listed))
        own["parameters"] = sum(p.numel() for p in view.model.parameters())
        predicted = view.prediction[:, :].double().numpy()[:, listed]
        target = view.target[:, np.flatnonzero(listed)].toarray()
        pools.setdefault(view.fold.name, []).append((predicted, target))
    seconds = (time.perf_counter() - begin) / sum(map(len, pools.values()))
    for name, parts in pools.items():
        predicted, target = (np.concatenate(part) for part in zip(*parts, strict=True))
        folds[name]["pcc_pooled"] = float(np.mean(np.nan_to_num(pearson(predicted, target))))
    return {"folds": folds, "predict_seconds": round(seconds, 3)}


def figures(view, listed: np.ndarray) -> dict:
    """A slide's figures over the 50 genes most variable in training; constant ones counted."""
    pcc, measured = view.score.pcc[listed], view.score.measured[listed]
    varies = measured & ~view.score.constant_target[listed]
    constant = view.score.constant_pred[listed] & varies
    zero = np.where(constant, 0.0, pcc)[varies]
    return {
        "slide_id": view.slide.slide_id,
        "spots": len(view.slide.barcodes),
        "pcc": float(np.mean(pcc[varies & ~constant])) if (varies & ~constant).any() else None,
        "pcc_zero": float(np.mean(zero)),
        "constant": int(constant.sum()),
        "above_zero": float(np.mean(zero > 0)),
        "mse": float(np.mean(view.score.mse[listed][measured])),
        "variance": float(np.mean(view.score.variance[listed][measured])),
    }


def pearson(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(G,) correlation of the columns, NaN where one is constant."""
    a, b = (x - x.mean(axis=0) for x in (predicted, target.astype(float)))
    scale = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    constant = (a.std(axis=0) < 1e-6) | (b.std(axis=0) < 1e-6)
    return np.where(constant, np.nan, (a * b).sum(axis=0) / np.where(constant, 1, scale))


def collect(out: Path) -> pd.DataFrame:
    """One row a test slide of every reported training."""
    rows = []
    for path in sorted(out.glob("runs/*/*/*/final-*/scores.json")):
        target, features, row, name = path.parts[-5:-1]
        _, setting, seed = name.split("-")
        row = next(known for known in ZOO if known.replace(", ", "-") == row)
        found = read_json(path)
        common = {"target": target, "features": features, "model": row}
        common |= {"seed": int(seed.removeprefix("seed"))}
        common |= {"setting": str(ZOO[row]["tries"][int(setting)])}
        common |= {key: value for key, value in found.items() if key != "folds"}
        for fold, own in found["folds"].items():
            common |= {"fold": fold, "protocol": "patients" if fold in PATIENTS else "within C"}
            common |= {"parameters": own["parameters"], "pcc_pooled": own["pcc_pooled"]}
            rows += [common | slide for slide in own["slides"]]
    first = ["target", "features", "protocol", "model", "fold", "seed", "slide_id", "setting"]
    table = pd.DataFrame(rows)
    return table[[*first, *(c for c in table if c not in first)]].sort_values(first[:7])


if __name__ == "__main__":
    run(main, Options, __doc__)
