"""What training and test slides share that they must not: patients, images, studies."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.core.tables import read_table

COLUMNS = ["slide", "split", "partner_slide", "partner_split", "reason", "shared"]
# From the gravest; a pair of slides is reported once, for the gravest.
REASONS = ("same slide", "same image", "same patient", "same study")
ABSENT = "not in metadata"
_ROLES = ("test", "val", "train")
_ID_COLUMNS = ("slide_id", "id", "sample_id")
_MEGABYTE = 1 << 20


def find_leakage(
    metadata: pd.DataFrame, splits: pd.DataFrame | Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Pairs of slides on different sides of a split that share a patient, an image or a study.

    Args:
        metadata: one row a slide, its id in ``slide_id``, ``id``, ``sample_id`` or the index.
            ``patient`` is needed; ``dataset_title`` (the study, as HEST names it) and
            ``image_sha256`` (any fingerprint of the image) are used where they exist. HEST numbers
            patients within a study, so with ``dataset_title`` a patient is the two together. An
            empty cell is unknown and equals nothing.
        splits: ``slide_id`` (or ``sample_id``) and ``split``, or slide ids by role; roles are
            train, val and test.

    Returns:
        Columns slide, split, partner_slide, partner_split, reason, shared (the patient, study or
        fingerprint). ``slide`` is on the side nearer the test. Every pair once, for the gravest of
        ``REASONS``; then one row, without a partner, for each slide that ``metadata`` lacks.

    Raises:
        InputError: no column of patients, a slide described twice, an unknown role.
    """
    assigned, known = _assigned(splits), _described(metadata)
    found = [_pairs(assigned.assign(key=assigned["slide"]), REASONS[0], itself=True)]
    for reason in REASONS[1:]:
        column = reason.removeprefix("same ")
        if column in known:
            keys = assigned["slide"].map(known[column]).fillna("")
            found.append(_pairs(assigned.assign(key=keys), reason))
    pairs = pd.concat(found, ignore_index=True).drop_duplicates(COLUMNS[:4])
    absent = assigned[~assigned["slide"].isin(known.index)]
    absent = absent.assign(partner_slide="", partner_split="", reason=ABSENT, shared="")
    return pd.concat([pairs, absent[COLUMNS]], ignore_index=True)


def severities(leaks: pd.DataFrame) -> np.ndarray:
    """How grave each row of ``find_leakage`` is.

    ``error``: a slide, image or patient shared with the test; ``warning``: one shared by training
    and validation, which makes early stopping too hopeful, or a slide without metadata; ``note``:
    a study in common, which is rarely avoidable but means one laboratory, stain and scanner.
    """
    shared = leaks["reason"].isin(REASONS[:3])
    grave = shared & (leaks["split"] == "test")
    light = (shared & ~grave) | (leaks["reason"] == ABSENT)
    return np.select([grave, light], ["error", "warning"], "note")


def unknown_patients(
    metadata: pd.DataFrame, splits: pd.DataFrame | Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Slides whose patient the metadata leave empty (slide, split): nothing clears them."""
    assigned, known = _assigned(splits), _described(metadata)
    return assigned[assigned["slide"].map(known["patient"]) == ""].reset_index(drop=True)


def read_metadata(path: str | Path) -> pd.DataFrame:
    """A metadata table with all cells as text; raises InputError for a file that is none."""
    return read_table(path, (), "metadata table")


def alike_patients(patients: Mapping[str, str]) -> list[list[str]]:
    """Patients that differ in writing only: case, blanks, leading zeros, ``.0`` of a number.

    Args:
        patients: by slide id.
    """
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(patients.values()):
        plain = re.sub(r"[\s_-]+", "", name.casefold()).removesuffix(".0").lstrip("0")
        groups.setdefault(plain, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def cohort_metadata(slides: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Metadata of an extracted cohort for ``find_leakage``, with a fingerprint of each image.

    Args:
        slides: slides.csv, indexed by slide_id.
        folder: the folder of the cohort.
    """
    prints = [image_fingerprint(row, folder) for row in slides.reset_index().to_dict("records")]
    columns = ["patient", "dataset_title"]
    known = slides[[name for name in columns if name in slides]].astype(str)
    return known.assign(image_sha256=prints)


def image_fingerprint(row: Mapping, folder: Path) -> str:
    """SHA-256 of the size and of 1 MB from the start, middle and end of a slide's image.

    A whole-slide image has gigabytes, and two that agree in this much are one. Where the image is
    not there any more the thumbnail stands in for it, whole; empty where that is missing too. An
    image saved again in another format is not recognized.
    """
    image = Path(str(row.get("image", "")))
    if not image.is_file():
        image = folder / "thumbnails" / f"{row['slide_id']}.jpg"
    if not image.is_file():
        return ""
    size = image.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(image, "rb") as file:
        for start in (0, size // 2, max(0, size - _MEGABYTE)):
            file.seek(start)
            digest.update(file.read(_MEGABYTE))
    return digest.hexdigest()


def _assigned(splits) -> pd.DataFrame:
    if isinstance(splits, Mapping):
        rows = [(slide, role) for role, members in splits.items() for slide in members]
        table = pd.DataFrame(rows, columns=["slide", "split"], dtype=str)
    else:
        name = next((c for c in _ID_COLUMNS if c in splits), None)
        if name is None or "split" not in splits:
            raise InputError(
                "splits need the columns slide_id and split; they have "
                f"{', '.join(map(str, splits.columns))}"
            )
        table = splits[[name, "split"]].set_axis(["slide", "split"], axis=1).astype(str)
    wrong = table[~table["split"].isin(_ROLES)]
    if len(wrong):
        raise InputError(
            f"slide {wrong['slide'].iloc[0]} has the split {wrong['split'].iloc[0]!r}; expected "
            "train, val or test"
        )
    return table.drop_duplicates().reset_index(drop=True)


def _described(metadata: pd.DataFrame) -> pd.DataFrame:
    """Index slide; columns patient, study, image where known: text without outer blanks."""
    name = next((c for c in _ID_COLUMNS if c in metadata), None)
    table = metadata.set_index(name) if name else metadata
    if "patient" not in table:
        raise InputError(
            "the metadata have no column patient, so shared patients cannot be told; add one, "
            "empty where unknown"
        )
    index = table.index.astype(str)
    if index.has_duplicates:
        raise InputError(f"the metadata describe slide {index[index.duplicated()][0]} twice")

    def text(column: str) -> pd.Series:
        return table[column].fillna("").astype(str).str.strip().set_axis(index)

    known = pd.DataFrame({"patient": text("patient")}, index=index)
    if "dataset_title" in table:
        known["study"] = text("dataset_title")
        both = (known["patient"] != "") & (known["study"] != "")
        known.loc[both, "patient"] = known["study"] + " / " + known["patient"]
    if "image_sha256" in table:
        known["image"] = text("image_sha256")
    return known


def _pairs(keyed: pd.DataFrame, reason: str, itself: bool = False) -> pd.DataFrame:
    """Rows of ``keyed`` (slide, split, key) with one key on different sides."""
    keyed = keyed[keyed["key"] != ""]
    rank = keyed["split"].map(_ROLES.index)
    keyed = keyed.assign(rank=rank)
    both = keyed.merge(keyed, on="key", suffixes=("", "_partner"))
    both = both[both["rank"] < both["rank_partner"]]
    if not itself:
        both = both[both["slide"] != both["slide_partner"]]
    both = both.rename(columns={"slide_partner": "partner_slide", "split_partner": "partner_split"})
    return both.assign(reason=reason, shared=both["key"])[COLUMNS]
