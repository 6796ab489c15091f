"""Which slides train, validate and test: folds from rules, files and published folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.errors import InputError


@dataclasses.dataclass(frozen=True)
class Split:
    """One fold: slide ids by role."""

    name: str
    train: list[str]
    val: list[str]
    test: list[str]

    def table(self, slides: pd.DataFrame) -> pd.DataFrame:
        """slide_id, split, cancer, patient of every slide in the fold."""
        rows = [(s, role) for role in ("train", "val", "test") for s in getattr(self, role)]
        frame = pd.DataFrame(rows, columns=["slide_id", "split"])
        return frame.join(slides[["cancer", "patient"]], on="slide_id")


def make_folds(slides: pd.DataFrame, folds: str, val_fraction: float, seed: int) -> list[Split]:
    """Folds of a cohort.

    Args:
        slides: index slide_id, column patient.
        folds: ``auto``, which leaves out a patient at a time, or a slide where there is one
            patient; ``leave-one-slide-out``, ``leave-one-patient-out``; a CSV ``slide_id,split``
            with an optional third column ``fold``; a HEST-Bench task folder (``train_0.csv``,
            ``test_0.csv``, ...); or a folder with ``train_split.csv``, ``val_split.csv``,
            ``test_split.csv``, as HistoPrism published.
        val_fraction: share of a fold's training patients that validate where the split names no
            validation slides; at least one patient, or one slide where there is one patient.
        seed: of that choice.

    Raises:
        InputError: slides that the cohort lacks, a fold without training or test slides.
    """
    if folds == "auto":
        several = slides["patient"].nunique() > 1
        folds = "leave-one-patient-out" if several else "leave-one-slide-out"
    if folds == "leave-one-slide-out":
        named = [
            (s, {"train": [t for t in slides.index if t != s], "test": [s]}) for s in slides.index
        ]
    elif folds == "leave-one-patient-out":
        named = [
            (p, {r: list(slides.index[m]) for r, m in (("train", of != p), ("test", of == p))})
            for of in [slides["patient"]]
            for p in sorted(of.unique())
        ]
    elif Path(folds).is_dir():
        named = _from_folder(Path(folds))
    elif Path(folds).is_file():
        named = _from_csv(Path(folds))
    else:
        raise InputError(
            f"--folds {folds} is neither auto, leave-one-slide-out, leave-one-patient-out, a CSV "
            "file nor a folder of splits"
        )
    return [_checked(name, roles, slides, val_fraction, seed) for name, roles in named]


def _from_csv(path: Path) -> list[tuple[str, dict]]:
    table = pd.read_csv(path, dtype=str, encoding="utf-8-sig")
    for column in ("slide_id", "split"):
        if column not in table:
            raise InputError(f"{path} lacks the column {column}; expected slide_id,split[,fold]")
    wrong = table[~table["split"].isin(["train", "val", "test"])]
    if len(wrong):
        raise InputError(
            f"{path} gives slide {wrong.slide_id.iloc[0]} the split {wrong.split.iloc[0]!r}; "
            "expected train, val or test"
        )
    if "fold" not in table:
        table["fold"] = "0"
    return [
        (name, {role: list(part) for role, part in rows.groupby("split")["slide_id"]})
        for name, rows in table.groupby("fold", sort=False)
    ]


def _from_folder(path: Path) -> list[tuple[str, dict]]:
    path = path / "splits" if (path / "splits").is_dir() else path

    def ids(file: Path) -> list[str]:
        return list(pd.read_csv(file, dtype=str)["sample_id"])

    if (path / "test_split.csv").is_file():
        roles = {role: ids(path / f"{role}_split.csv") for role in ("train", "val", "test")}
        return [(path.name, roles)]
    numbers = sorted(int(f.stem.removeprefix("test_")) for f in path.glob("test_[0-9]*.csv"))
    if not numbers:
        raise InputError(f"{path} holds neither test_0.csv, train_0.csv, ... nor test_split.csv")
    return [
        (str(k), {"train": ids(path / f"train_{k}.csv"), "test": ids(path / f"test_{k}.csv")})
        for k in numbers
    ]


def _checked(name: str, roles: dict, slides: pd.DataFrame, val_fraction: float, seed: int) -> Split:
    train, val, test = (roles.get(role, []) for role in ("train", "val", "test"))
    for role, members in (("training", train), ("test", test)):
        if not members:
            raise InputError(
                f"fold {name} has no {role} slide; the cohort has {len(slides)} slides of "
                f"{slides['patient'].nunique()} patients, so choose other folds"
            )
    everyone = pd.Index(train + val + test)
    if everyone.has_duplicates:
        raise InputError(
            f"slide {everyone[everyone.duplicated()][0]} is listed twice in fold {name}; "
            "a slide has one role"
        )
    missing = everyone[~everyone.isin(slides.index)]
    if len(missing):
        raise InputError(
            f"fold {name} names {len(missing)} slides that the cohort lacks, such as {missing[0]}; "
            "extract them or take them out of the split"
        )
    if not val:
        val = _validation(slides.loc[train], val_fraction, seed)
    return Split(name, [s for s in train if s not in val], val, test)


def _validation(train: pd.DataFrame, fraction: float, seed: int) -> list[str]:
    """Validation slides: whole patients, or slides of the only patient; none of a single slide."""
    groups = train["patient"]
    if groups.nunique() == 1:
        groups = pd.Series(train.index, index=train.index)
    names = np.array(sorted(groups.unique()))
    if len(names) == 1 or fraction == 0:
        return []
    held = np.random.default_rng(seed).permutation(names)[: max(1, round(fraction * len(names)))]
    return list(train.index[groups.isin(held)])
