"""One run of the zoo: its folds and setting, its training, the scores of its test slides."""

from __future__ import annotations

import dataclasses
import re
import shutil
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
from zoo_models import FEATURES, MORE_FEATURES, NORMALIZED, SPECS

import run_extract
import run_train
from histokit.core.files import make_folder, read_json, write_json
from histokit.core.options import option, required

PATIENTS = {"A": ["A1"], "B": ["B4"], "C": ["C2", "C3", "C4", "C5"]}
LISTED = 50
RULES = 1  # of scoring; scores under others are measured again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Options of what is measured on the three patients."""

    source: str = required("folder of the her2st sections B4, C2, C3, C4, C5")
    third: str = required("cohort of the section A1")
    target: str = option("counts10k-log1p", "scale of the targets")
    jobs: int = option(2, "trainings at a time, each on one core", least=1)
    measure: bool = option(True, "train what is missing; without it, only write the table")
    results: str = option("RESULTS.md", "file in which the part with the table is replaced")


def extract_as(source: str, out: str, wanted: dict) -> None:
    """Features of the sections of a folder, with these options; what is there is kept."""
    run_extract.main(run_extract.Options(source=source, out=out, cancer="IDC", **wanted))


@dataclasses.dataclass(frozen=True)
class Task:
    """One run and its scores: some folds at one setting and seed.

    Attributes:
        out: folder of all runs.
        target: scale of the expression.
        row: of ``SPECS``.
        features: of ``FEATURES`` or ``MORE_FEATURES``.
        genes: of the panel, the most variable in training; all of it where None.
        setting: position of its options among the row's tries.
        seed: of the training.
        folds: test slides by the fold's name; ``B>A`` is trained on B and scored on A, ``A`` on the
            other two patients, and ``C3`` on the other sections of C.
    """

    out: str
    target: str
    row: str
    features: str
    genes: int | None
    setting: int
    seed: int
    folds: tuple[str, ...]

    @property
    def chooses(self) -> bool:
        """Whether it helps to choose a setting and is not reported."""
        return ">" in self.folds[0]

    @property
    def folder(self) -> Path:
        """Where its run lies."""
        kind = "choice" if self.chooses else "final"
        features = self.features if self.genes else f"{self.features}-all-genes"
        place = Path(self.out) / "runs" / self.target / features / self.row.replace(", ", "-")
        return place / f"{kind}-{self.setting}-seed{self.seed}"

    @property
    def options(self) -> dict:
        """Of its training, but for the folder."""
        given = {
            "data": f"{self.out}/{'normalized' if self.features == NORMALIZED else 'data'}",
            "encoder": (FEATURES | MORE_FEATURES)[self.features],
            "target": self.target,
            "panel": "detected",
            "top_genes": self.genes,
            "standardize": "slide",
            "folds": str(self.folder / "split.csv"),
            "seed": self.seed,
            "allow_leakage": True,  # sections of patient C test one another within C
        }
        spec = SPECS[self.row]
        return given | spec["options"] | spec["tries"][self.setting]

    @property
    def stamp(self) -> dict:
        """What its scores depend on; scores with another stamp are not its own."""
        return {"rules": RULES, "folds": list(self.folds), "options": self.options}

    def scores(self) -> dict | None:
        """What was measured, where it was measured as it would be now."""
        path = self.folder / "scores.json"
        found = read_json(path) if path.is_file() else {}
        return found if found.get("stamp") == self.stamp else None


def slides_of(fold: str) -> tuple[list[str], list[str]]:
    """Training and test slides of a fold, by its name."""
    if ">" in fold:
        x, y = fold.split(">")
        return PATIENTS[x], PATIENTS[y]
    if fold in PATIENTS:
        return [s for x, own in PATIENTS.items() if x != fold for s in own], PATIENTS[fold]
    return [s for s in PATIENTS["C"] if s != fold], [fold]


def write_split(folds: tuple[str, ...], path: Path) -> None:
    """A CSV of slide_id, split, fold."""
    rows = []
    for fold in folds:
        train, test = slides_of(fold)
        rows += [(s, "train", fold) for s in train] + [(s, "test", fold) for s in test]
    pd.DataFrame(rows, columns=["slide_id", "split", "fold"]).to_csv(path, index=False)


def train_and_score(task: Task) -> None:
    """One run in this process from its beginning, its scores written last.

    Seconds are of the processor, so that what else the machine does counts little.
    """
    if task.folder.is_dir():
        shutil.rmtree(task.folder)
    folder = make_folder(task.folder)
    forget_peak()
    write_split(task.folds, folder / "split.csv")
    with open(folder / "log.txt", "a") as log, redirect_stdout(log), redirect_stderr(log):
        begin = time.process_time()
        run_train.main(run_train.Options(run=str(folder), **task.options))
        seconds = time.process_time() - begin
        found = score(folder)
    found |= {"train_seconds": seconds, "slide_epochs": slide_epochs(task), "stamp": task.stamp}
    write_json(folder / "scores.json", found | {"peak_mib": peak_mib()})


def forget_peak() -> None:
    """Let the peak memory of this process begin anew, where Linux allows it."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> int:
    """Peak memory of this process since it was forgotten, libraries included."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


def slide_epochs(task: Task) -> int:
    """Slides times epochs over all folds; of a closed form, slides."""
    slides = sum(len(slides_of(fold)[0]) for fold in task.folds)
    return slides * task.options.get("epochs", 1)


def score(folder: Path) -> dict:
    """Every figure of the test slides of a run, by fold, from its predictions.

    The time is that of the first slide's prediction, once it is read.
    """
    from histokit.evaluate.controls import open_cohort
    from histokit.evaluate.runs import Run
    from histokit.evaluate.views import Views, embed

    trained = Run(folder)
    folds, pools, seconds = {}, {}, 0.0
    for view in Views(trained, open_cohort(trained)).of():
        if not seconds:
            begin = time.process_time()
            embed(view.model, view.slide)
            seconds = time.process_time() - begin
        listed = (view.fold.genes["hvg_rank"] <= LISTED).to_numpy()
        own = folds.setdefault(view.fold.name, {"slides": []})
        own["slides"].append(figures(view, listed))
        own["parameters"] = sum(
            p.numel() for name, p in view.model.named_parameters() if not name.startswith("ema.")
        )
        own["network_calls"] = getattr(view.model, "network_calls", 1)
        pools.setdefault(view.fold.name, []).append(values(view, listed))
    for name, parts in pools.items():
        predicted, target = (np.concatenate(part) for part in zip(*parts, strict=True))
        correlations = pearson(predicted, target)
        known = ~np.isnan(target).all(axis=0)
        folds[name]["pcc_pooled"] = float(np.mean(np.nan_to_num(correlations[known])))
    return {"folds": folds, "predict_seconds": seconds}


def values(view, listed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, listed) predictions and measured values; both NaN where a gene was not measured."""
    predicted = view.prediction[:, :].double().numpy()[:, listed]
    target = view.target[:, np.flatnonzero(listed)].toarray().astype(float)
    unmeasured = ~view.score.measured[listed]
    predicted[:, unmeasured] = target[:, unmeasured] = np.nan
    return predicted, target


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
    """(G,) correlation of the columns over the spots where both are known.

    NaN where one of them is constant.
    """
    known = ~(np.isnan(predicted) | np.isnan(target))
    count = np.maximum(known.sum(axis=0), 1)
    a, b = (np.where(known, x, 0.0) for x in (predicted, target))
    a, b = (np.where(known, x - x.sum(axis=0) / count, 0.0) for x in (a, b))
    constant = np.sqrt(np.minimum((a * a).sum(axis=0), (b * b).sum(axis=0)) / count) < 1e-6
    scale = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    return np.where(constant, np.nan, (a * b).sum(axis=0) / np.where(constant, 1, scale))
