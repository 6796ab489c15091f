"""Which slides train, validate and test: folds from rules, files and published folders."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.core.files import file_id
from histokit.core.tables import read_table

ROLES = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Split:
    """One fold: slide ids by role.

    Attributes:
        name: what the fold is called, any text.
        train, val, test: slide ids; no slide has two roles.
        cancers: oncotree code by slide id where the split brings its own, else empty.
    """

    name: str
    train: list[str]
    val: list[str]
    test: list[str]
    cancers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def id(self) -> str:
        """The name of the fold's folder."""
        return file_id(self.name)

    def table(self, slides: pd.DataFrame) -> pd.DataFrame:
        """slide_id, split, cancer, patient of every slide in the fold."""
        rows = [(s, role) for role in ("train", "val", "test") for s in getattr(self, role)]
        frame = pd.DataFrame(rows, columns=["slide_id", "split"])
        return frame.join(slides[["cancer", "patient"]], on="slide_id")


def make_folds(
    slides: pd.DataFrame,
    folds: str,
    val_fraction: float,
    seed: int,
    allow_missing: bool = False,
    codes: str = "split",
) -> list[Split]:
    """Folds of a cohort.

    Args:
        slides: index slide_id, column patient.
        folds: a number of folds that share no patient; ``auto``, four of them or one a patient,
            or one a slide where there is one patient; ``leave-one-slide-out``,
            ``leave-one-patient-out``; a CSV ``slide_id,split``
            with an optional third column ``fold``; a HEST-Bench task folder (``train_0.csv``,
            ``test_0.csv``, ...); or a folder with ``train_split.csv``, ``val_split.csv``,
            ``test_split.csv``, as HistoPrism published, or one that holds several such folders.
        val_fraction: share of a fold's training patients that validate where the split names no
            validation slides; at least one patient, or one slide where there is one patient.
        seed: the seed of that choice.
        allow_missing: leave slides out that a split names and the cohort lacks, and say so.
        codes: which oncotree codes of a published split are taken, as ``read_cancers`` has them,
            or those of the ``cohort``.

    Raises:
        InputError: slides that the cohort lacks, a fold without training or test slides, names of
            folds that differ in case only.
    """
    if folds == "auto":
        patients = slides["patient"].nunique()
        folds = str(min(4, patients)) if patients > 1 else "leave-one-slide-out"
    if folds.isdecimal():
        named = _by_patient(slides, int(folds))
    elif folds == "leave-one-slide-out":
        named = [
            (s, {"train": [t for t in slides.index if t != s], "test": [s]}) for s in slides.index
        ]
    elif folds == "leave-one-patient-out":
        named = _leave_one_patient_out(slides)
    elif Path(folds).exists():
        named = read_splits(folds)
    else:
        raise InputError(
            f"--folds {folds} is neither auto, a number, leave-one-slide-out, "
            "leave-one-patient-out, a CSV file nor a folder of splits"
        )
    _check_names([name for name, _ in named])
    if allow_missing:
        named = [(name, _there(name, roles, slides)) for name, roles in named]
    published = {p.resolve().name: p for p in published_splits(folds)}
    cancers = {name: read_cancers(p, codes) for name, p in published.items()}
    return [
        dataclasses.replace(
            _checked(name, roles, slides, val_fraction, seed), cancers=cancers.get(name, {})
        )
        for name, roles in named
    ]


def idle_slides(slides: pd.DataFrame, folds: list[Split]) -> list[str]:
    """Slides of the cohort that no fold trains, validates or tests."""
    used = {s for fold in folds for role in ROLES for s in getattr(fold, role)}
    return [slide for slide in slides.index if slide not in used]


def _check_names(names: list[str]) -> None:
    """Fold names become folders, also on file systems that do not tell A from a."""
    ids = Counter(file_id(name).casefold() for name in names)
    alike = [name for name in names if ids[file_id(name).casefold()] > 1]
    if alike:
        raise InputError(
            f"the folds {alike[0]!r} and {alike[1]!r} differ in upper and lower case only; "
            "rename one (they are patients under leave-one-patient-out)"
        )


def _leave_one_patient_out(slides: pd.DataFrame) -> list[tuple[str, dict]]:
    patients = slides["patient"]
    if patients.nunique() < 2:
        raise InputError(
            f"leave-one-patient-out needs two patients and all slides have the patient "
            f"{patients.iloc[0]!r}; correct the column patient if that is not so, or use "
            "--folds leave-one-slide-out with --allow-leakage"
        )
    if (patients == "").any():
        raise InputError(
            f"slide {patients.index[patients == ''][0]} has no patient; fill the column patient or "
            "name folds in a CSV slide_id,split,fold"
        )
    return [
        (
            patient,
            {
                "train": list(slides.index[patients != patient]),
                "test": list(slides.index[patients == patient]),
            },
        )
        for patient in sorted(patients.unique())
    ]


def read_splits(path: str | Path) -> list[tuple[str, dict[str, list[str]]]]:
    """Name and slide ids by role of each fold that a file or a folder of splits lists."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"the splits {path} do not exist; expected a CSV file or a folder")
    return _from_folder(path) if path.is_dir() else _from_csv(path)


def _by_patient(slides: pd.DataFrame, count: int) -> list[tuple[str, dict]]:
    """Deal the patients of each cancer out in turn, so that a cancer is in most trainings."""
    patients = slides.sort_values(["cancer", "patient"])["patient"].unique()
    if not 2 <= count <= len(patients):
        raise InputError(
            f"--folds {count} cannot be made of {len(patients)} patients; give 2 to "
            f"{len(patients)}, or leave-one-slide-out"
        )
    fold = slides["patient"].map({p: i % count for i, p in enumerate(patients)})
    return [
        (str(k), {"train": list(slides.index[fold != k]), "test": list(slides.index[fold == k])})
        for k in range(count)
    ]


def _from_csv(path: Path) -> list[tuple[str, dict]]:
    table = read_table(path, ("slide_id", "split"), "CSV of splits slide_id,split[,fold]")
    if table.empty:
        raise InputError(f"{path} lists no slide; expected lines of slide_id,split[,fold]")
    wrong = table[~table["split"].isin(ROLES)]
    if len(wrong):
        raise InputError(
            f"{path} gives slide {wrong.slide_id.iloc[0]} the split {wrong.split.iloc[0][:40]!r}; "
            "expected train, val or test"
        )
    if "fold" not in table:
        table["fold"] = "0"
    for column in ("slide_id", "fold"):
        blank = table[table[column] == ""]
        if len(blank):
            raise InputError(
                f"{path} has a row ({', '.join(blank.iloc[0])}) without {column}; name the fold of "
                "each row (NA is a name like any other), or leave the column fold out"
            )
    return [
        (name, {role: list(part) for role, part in rows.groupby("split")["slide_id"]})
        for name, rows in table.groupby("fold", sort=False)
    ]


def _from_folder(path: Path) -> list[tuple[str, dict]]:
    if published := published_splits(path):
        return [
            (place.resolve().name, {role: _ids(place / f"{role}_split.csv") for role in ROLES})
            for place in published
        ]
    path = path / "splits" if (path / "splits").is_dir() else path
    # a fold that lacks one of its two files is refused when that is read, not left out
    numbers = sorted(
        {
            int(number)
            for role in ("train", "test")
            for file in path.glob(f"{role}_*.csv")
            if (number := file.stem.removeprefix(f"{role}_")).isdecimal()
        }
    )
    if not numbers:
        raise InputError(f"{path} holds neither test_0.csv, train_0.csv, ... nor test_split.csv")
    return [
        (str(k), {"train": _ids(path / f"train_{k}.csv"), "test": _ids(path / f"test_{k}.csv")})
        for k in numbers
    ]


def _ids(file: Path) -> list[str]:
    ids = list(read_table(file, ("sample_id",), "published split")["sample_id"])
    if "" in ids:
        raise InputError(f"{file} has a row without sample_id; name the slide or remove the row")
    return ids


def published_splits(path: str | Path) -> list[Path]:
    """The folder itself where it holds ``test_split.csv``, else those in it that do, by name."""
    path = Path(path)
    for place in (path, path / "splits") if path.is_dir() else ():
        if (place / "test_split.csv").is_file():
            return [place]
        if found := sorted(file.parent for file in place.glob("[!.]*/test_split.csv")):
            return found
    return []


def read_cancers(path: Path, codes: str = "split") -> dict[str, str]:
    """Oncotree codes by slide id that a folder of published splits brings, else none.

    Args:
        path: one of ``published_splits``.
        codes: ``split`` takes ``oncotree_code_filled``, in which HistoPrism's authors fill the gaps
            of HEST's metadata with names of their own (a blank is no code there: the cohort's
            stays); ``unfilled`` takes HEST's own ``oncotree_code``, where a blank says that a slide
            has none; ``cohort`` takes nothing.
    """
    column = {"split": "oncotree_code_filled", "unfilled": "oncotree_code"}.get(codes)
    found = {}
    for role in ROLES if column else ():
        table = read_table(path / f"{role}_split.csv", ("sample_id",), "published split")
        if column in table:
            found |= dict(zip(table["sample_id"], table[column], strict=True))
    return {s: c for s, c in found.items() if c} if codes == "split" else found


def _there(name: str, roles: dict, slides: pd.DataFrame) -> dict:
    """The roles of a fold without slides that the cohort lacks."""
    lacking = [s for members in roles.values() for s in members if s not in slides.index]
    if lacking:
        print(
            f"fold {name}: {len(lacking)} slides of the split are not extracted and left out: "
            f"{', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}"
        )
    return {role: [s for s in members if s in slides.index] for role, members in roles.items()}


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
            "extract them, or leave them out with --allow-missing"
        )
    if not val:
        val = choose_validation(slides.loc[train], val_fraction, seed)
    return Split(name, [s for s in train if s not in val], val, test)


def groups_of(slides: pd.DataFrame) -> pd.Series:
    """What is held out together, by slide: whole patients, or slides where there is one patient."""
    groups = slides["patient"]
    return groups if groups.nunique() > 1 else pd.Series(slides.index, index=slides.index)


def choose_validation(train: pd.DataFrame, fraction: float, seed: int) -> list[str]:
    """Validation slides: whole patients, or slides of the only patient; none of a single slide.

    Args:
        train: index slide_id, column patient.
        fraction: share of the patients, or slides; at least one, none for 0.
        seed: the seed of the choice.
    """
    groups = groups_of(train)
    names = np.array(sorted(groups.unique()))
    if len(names) == 1 or fraction == 0:
        return []
    held = np.random.default_rng(seed).permutation(names)[: max(1, round(fraction * len(names)))]
    return list(train.index[groups.isin(held)])


def describe_folds(folds: list[Split]) -> dict:
    """What config.json says of folds: their ids, names where these differ, slides by role."""
    return {
        "folds": [fold.id for fold in folds],
        "fold_names": {fold.id: fold.name for fold in folds if fold.id != fold.name},
        "fold_slides": {
            fold.id: {role: len(getattr(fold, role)) for role in ROLES} for fold in folds
        },
        "fold_members": {
            fold.id: {role: sorted(getattr(fold, role)) for role in ROLES} for fold in folds
        },
    }
