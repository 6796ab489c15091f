"""Look for what would make a score untrue, before training and at any time.

    python -m histokit.audit --data data/her2st --splits leave-one-slide-out --out audit
    python -m histokit.audit --metadata HEST_v1_1_0.csv --splits split_0 --out audit

Prints what it found and writes leakage.csv, slides.csv, findings.csv and audit.json. Exit code 0
without errors (warnings and notes allowed), 1 with errors, 2 where the input cannot be read.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from histokit.audit.leaks import (
    cohort_metadata,
    find_leakage,
    read_metadata,
    severities,
    unknown_patients,
)
from histokit.audit.slides import judge_slides, measure_slides
from histokit.core.errors import InputError
from histokit.core.files import atomic_path, make_folder, write_json
from histokit.core.options import Checked, option
from histokit.data.cohort import Cohort
from histokit.data.genes import select_panel
from histokit.data.splits import Split, make_folds, read_splits

__all__ = ["audit_training", "find_leakage", "refuse_leakage"]
_NAMED = 4  # slides named in a sentence; the tables name all
_ORDER = ("error", "warning", "note")


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Options of an audit."""

    data: str | None = option(None, "folder that run_extract.py wrote")
    encoder: str = option("efficientnet-lite0", "encoder whose features are looked at")
    splits: str | None = option(
        None,
        "splits to check for leakage: a CSV slide_id,split[,fold], a folder of HEST-Bench or "
        "HistoPrism splits, or with --data any --folds of run_train.py",
    )
    metadata: str | None = option(
        None,
        "CSV with slide_id (or id) and patient, perhaps dataset_title and image_sha256, that says "
        "what slides share",
        shown="slides.csv of --data and its images",
    )
    panel: str = option(
        "union", "genes to look at: union, common, or a file with one gene a line, as in training"
    )
    out: str = option("audit", "folder to write, made if absent")


@dataclasses.dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        leaks: as ``find_leakage`` returns them with the columns fold and severity.
        slides: as ``measure_slides`` returns them, or None where no data were given.
        findings: severity (error, warning, note), where (a fold, a slide, cohort), finding.
    """

    leaks: pd.DataFrame
    slides: pd.DataFrame | None
    findings: pd.DataFrame


def leaks_of_folds(metadata: pd.DataFrame, folds: Sequence[tuple[str, Mapping]]) -> pd.DataFrame:
    """``find_leakage`` of every fold (name, slide ids by role), with columns fold and severity."""
    tables = []
    for name, roles in folds:
        leaks = find_leakage(metadata, roles)
        tables.append(leaks.assign(fold=name, severity=severities(leaks)))
    return pd.concat(tables, ignore_index=True)


def refuse_leakage(leaks: pd.DataFrame) -> None:
    """Raise InputError for the first patient, image or slide that a test shares with training."""
    errors = leaks[leaks["severity"] == "error"]
    if errors.empty:
        return
    first = errors.iloc[0]
    same = errors[(errors["fold"] == first["fold"]) & (errors["shared"] == first["shared"])]
    what = first["reason"].removeprefix("same ")
    shown = f" {first['shared']}" if what == "patient" else ""
    more = errors["fold"].nunique() - 1
    others = f", and so do {more} more folds" if more > 1 else ", and so does 1 more fold"
    raise InputError(
        f"fold {first['fold']} tests {_named(same['slide'])} and trains or validates on "
        f"{_named(same['partner_slide'])} of the same {what}{shown}{others if more else ''}, so "
        "scores would flatter; use --folds leave-one-patient-out, or --allow-leakage to train "
        "nevertheless"
    )


def audit_training(
    cohort: Cohort, folds: Sequence[Split], panel: str, folder: Path, leaks: pd.DataFrame
) -> None:
    """Audit the slides of a training into ``folder``; one that is complete is left alone."""
    if (folder / "audit.json").is_file():
        return
    named = [(f.name, {"train": f.train, "val": f.val, "test": f.test}) for f in folds]
    cohort = cohort.with_cancers(folds[0].cancers)  # a published split brings one list for all
    result = _audit(cohort, named, cohort_metadata(cohort.slides, cohort.folder), panel, leaks)
    write(result, folder, {"data": str(cohort.folder), "encoder": cohort.encoder, "panel": panel})
    counts = result.findings["severity"].value_counts()
    said = ", ".join(_counted(counts[name], name) for name in _ORDER if name in counts)
    print(f"audit: {said or 'nothing to distrust'}; see {folder}/findings.csv")


def training_leaks(cohort: Cohort, folds: Sequence[Split]) -> pd.DataFrame:
    """What the sides of a training's folds share."""
    named = [(f.name, {"train": f.train, "val": f.val, "test": f.test}) for f in folds]
    return leaks_of_folds(cohort_metadata(cohort.slides, cohort.folder), named)


def _audit(cohort, folds, metadata, panel: str, leaks: pd.DataFrame) -> Audit:
    found, slides = _on_leaks(leaks), None
    for name, roles in folds:
        found += _on_unknown(metadata, name, roles)
    if cohort is not None:
        members = list(dict.fromkeys(s for _, roles in folds for r in roles.values() for s in r))
        members = members or list(cohort.slides.index)
        trained = list(dict.fromkeys(s for _, roles in folds for s in _seen(roles))) or members
        genes = select_panel({s: cohort.gene_table(s) for s in trained}, panel)
        slides = measure_slides(cohort, members, genes)
        found += judge_slides(slides)
        for name, roles in folds:
            found += _on_cancers(cohort, name, roles)
    findings = pd.DataFrame(list(dict.fromkeys(found)), columns=["severity", "where", "finding"])
    rank = findings["severity"].map(_ORDER.index)
    return Audit(leaks, slides, findings.loc[rank.sort_values(kind="stable").index])


def _seen(roles: Mapping) -> list[str]:
    return [*roles.get("train", ()), *roles.get("val", ())]


def _on_leaks(leaks: pd.DataFrame) -> list[tuple[str, str, str]]:
    found = []
    keys = ["fold", "severity", "reason", "split", "partner_split"]
    for (fold, severity, reason, split, other), rows in leaks.groupby(keys, sort=False):
        slides, partners = rows["slide"].unique(), rows["partner_slide"].unique()
        if not other:
            text = (
                f"{_counted(len(slides), f'{split} slide')} not in the metadata: {_named(slides)}"
            )
        else:
            what = _counted(rows["shared"].nunique(), reason.removeprefix("same "))
            text = (
                f"{split} and {other} share {what.replace('studys', 'studies')}: "
                f"{len(slides)} {split} ({_named(slides)}) and {len(partners)} {other} slides "
                f"({_named(partners)})"
            )
        found.append((severity, f"fold {fold}", text))
    return found


def _on_unknown(metadata, name: str, roles: Mapping) -> list[tuple[str, str, str]]:
    unknown = unknown_patients(metadata, roles)
    found = []
    for split, rows in unknown.groupby("split", sort=False):
        slides = _counted(len(rows), f"{split} slide")
        text = f"{slides} without a patient, so a shared one would go unseen"
        found.append(("note", f"fold {name}", text))
    return found


def _on_cancers(cohort: Cohort, name: str, roles: Mapping) -> list[tuple[str, str, str]]:
    """Test slides of a cancer that no training slide has: histoprism is told none there."""
    cancers = cohort.slides["cancer"]
    known = set(cancers[_seen(roles)])
    strange = [s for s in roles.get("test", ()) if cancers[s] not in known]
    if not strange or not known:
        return []
    text = (
        f"{_named(strange)} in the test: no training slide has the cancer {cancers[strange[0]]}, "
        "so a model that is told the cancer is told none there"
    )
    return [("warning", f"fold {name}", text)]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _named(slides) -> str:
    names = list(dict.fromkeys(slides))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def write(audit: Audit, folder: Path, about: Mapping) -> None:
    """Write leakage.csv, slides.csv, findings.csv and, last, audit.json into ``folder``."""
    make_folder(folder)
    tables = {"leakage": audit.leaks, "findings": audit.findings}
    if audit.slides is not None:
        tables["slides"] = audit.slides.reset_index()
    for name, table in tables.items():
        with atomic_path(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    counts = audit.findings["severity"].value_counts().to_dict()
    rows = audit.findings.to_dict("records")
    write_json(folder / "audit.json", {**about, "counts": counts, "findings": rows})


def main(cfg: Options) -> None:
    """Audit data, splits, or both; exits with 1 where there are errors."""
    if cfg.data is None and cfg.metadata is None:
        raise InputError("nothing to audit; give --data, or --metadata with --splits")
    if cfg.data is None and cfg.splits is None:
        raise InputError("--metadata alone says nothing; give the splits to check with --splits")
    cohort = None if cfg.data is None else Cohort(cfg.data, cfg.encoder)
    if cfg.metadata:
        metadata = read_metadata(cfg.metadata)
    else:
        metadata = cohort_metadata(cohort.slides, cohort.folder)
    folds = []
    if cfg.splits and cohort is None:
        folds = read_splits(cfg.splits)
    elif cfg.splits:
        splits = make_folds(cohort.slides, cfg.splits, val_fraction=0.0, seed=0)
        folds = [(s.name, {"train": s.train, "val": s.val, "test": s.test}) for s in splits]
    leaks = leaks_of_folds(metadata, folds or [("none", {})])
    result = _audit(cohort, folds, metadata, cfg.panel, leaks)
    write(result, Path(cfg.out), dataclasses.asdict(cfg))
    for severity, where, finding in result.findings.itertuples(index=False):
        print(f"{severity:8}{where}: {finding}")
    counts = result.findings["severity"].value_counts()
    said = ", ".join(_counted(counts.get(name, 0), name) for name in _ORDER)
    print(f"wrote {said} to {cfg.out}")
    if counts.get("error", 0):
        sys.exit(1)
