"""The folder of a run: its folds, what is said of them, and whose folder it is."""

from __future__ import annotations

import dataclasses
import platform
from importlib.metadata import version
from pathlib import Path

from histokit import __version__
from histokit.core.distributed import Team
from histokit.core.errors import InputError
from histokit.core.files import atomic_path, read_json, write_json
from histokit.core.precision import from_autocast
from histokit.data.cohort import Cohort, refuse_tuned
from histokit.data.features import difference, feature_identity
from histokit.data.gene_keys import GeneKey, gene_key
from histokit.data.gene_map import GENE_MAP, GeneMap, read_gene_map
from histokit.data.splits import Split, describe_folds, idle_slides, make_folds
from histokit.models.registry import MODELS
from histokit.train.options import FREE, Options


def choose_folds(cohort: Cohort, cfg: Options) -> list[Split]:
    """The folds of a training; closed forms never stop early and train on all slides."""
    fraction = cfg.val_fraction if MODELS[cfg.model].validates else 0.0
    return make_folds(
        cohort.slides, cfg.folds, fraction, cfg.seed, cfg.allow_missing, cfg.cancer_codes
    )


def refuse_seen(cohort: Cohort, folds: list[Split], controls: bool = False) -> None:
    """Refuse an encoder that was tuned on test slides of a fold.

    Args:
        cohort: the cohort.
        folds: the folds.
        controls: whether controls are trained too.

    Raises:
        InputError: as ``refuse_tuned``; or controls, for an encoder that was tuned on the true
            expression knows what shuffled spots are to hide.
    """
    tuned_on = set()
    if not cohort.by_fold:  # each file is read once, however many folds there are
        tuned_on = cohort.tuned_on(dict.fromkeys(s for fold in folds for s in _members(fold)))
    for fold in folds:
        if cohort.by_fold:
            tuned_on = cohort.of_fold(fold.id).tuned_on(_members(fold))
        refuse_tuned(cohort.encoder, tuned_on, fold.name, fold.test)
    if controls and tuned_on:
        raise InputError(
            f"--controls shuffles the spots that a model learns from, and the encoder "
            f"{cohort.encoder} was tuned on them unshuffled; leave the option out"
        )


def with_tuners(cohort: Cohort, folds: list[Split]) -> list[Split]:
    """Folds whose training slides are also those that tuned the encoder, for the audit of leaks.

    A validation slide that only chose the encoder's epoch is no training slide.
    """
    found = []
    for fold in folds:
        own = cohort.of_fold(fold.id)
        others = own.tuned_on(fold.train[:1]) - set(fold.val)
        others |= own.tuned_on(fold.train[:1], ("train",))
        found.append(
            dataclasses.replace(fold, train=[*fold.train, *sorted(others - set(fold.train))])
        )
    return found


def _members(fold: Split) -> list[str]:
    return [*fold.train, *fold.val, *fold.test]


def join_genes(cohort: Cohort, folds: list[Split], folder: Path, team: Team) -> GeneKey:
    """Decide how the genes of all slides in the folds are joined; say it, write it into the run."""
    members = dict.fromkeys(s for f in folds for s in (*f.train, *f.val, *f.test))
    key = gene_key((slide, cohort.gene_table(slide)) for slide in members)
    if team.first:
        print(key)
        with atomic_path(folder / "genes_matched.csv") as temporary:
            key.matched.to_csv(temporary)
    return key


def say_folds(cohort: Cohort, folds: list[Split]) -> None:
    """Print which slides no fold uses, and where a split's cancer codes are not the cohort's."""
    if idle := idle_slides(cohort.slides, folds):
        print(f"{len(idle)} slides of the cohort are in no fold, such as {idle[0]}")
    for fold in folds:
        known = cohort.slides["cancer"]
        other = [s for s, code in fold.cancers.items() if s in known and known[s] != code]
        if other:
            print(
                f"fold {fold.name}: the split gives {len(other)} slides another cancer code than "
                f"the cohort does, such as {other[0]} ({fold.cancers[other[0]]}, not "
                f"{known[other[0]]}); the split's are used, --cancer-codes cohort keeps the others"
            )


def features_of(cohort: Cohort, folds: list[Split]) -> dict:
    """The identity of the features of a training."""
    about = cohort.of_fold(folds[0].id).provenance(folds[0].train[0])
    return shared_identity(about) if cohort.by_fold else feature_identity(about)


def shared_identity(about: dict) -> dict:
    """What the features of all folds share where each has its own encoder: all but its weights."""
    return {k: v for k, v in feature_identity(about).items() if k != "weights_sha256"}


def claim(
    folder: Path,
    cfg: Options,
    cohort: Cohort,
    folds: list[Split],
    control: dict | None = None,
    features: dict | None = None,
) -> None:
    """Write config.json, or check that the run in the folder is this one.

    Args:
        folder: the folder of the run.
        cfg: the options, resolved.
        cohort: the cohort.
        folds: the folds.
        control: what the run is a control of.
        features: the identity of the features; read from the cohort by default.

    Raises:
        InputError: the folder holds another run.
    """
    free = {f.name for f in dataclasses.fields(cfg) if f.metadata["group"] in FREE} | {"run"}
    options = dataclasses.asdict(cfg) | {"data": str(Path(cfg.data).resolve())}
    config = {
        "options": options,
        **describe_folds(folds),
        "features": features or features_of(cohort, folds),
        "environment": {name: version(name) for name in ("torch", "numpy", "scikit-learn")}
        | {"python": platform.python_version(), "histokit": __version__},
    }
    if control:
        config["control"] = control
    path = folder / "config.json"
    if path.is_file():
        _refuse_another_map(folder, cohort.gene_map)
    if cohort.gene_map and not path.is_file():  # an evaluation reads it there
        cohort.gene_map.write(folder / GENE_MAP)
    if path.is_file():
        there = read_json(path)
        there["options"] = from_autocast(there["options"])
        # an option newer than the run in the folder had its default, or its preset's, then
        same = ["data", "model", "run", "encoder", "preset"] + ["init", "programs"] * bool(
            cfg.programs
        )
        defaults = type(cfg)(**{name: getattr(cfg, name) for name in same})
        defaults = dataclasses.asdict(defaults.resolved())
        for name, value in options.items():
            known = there["options"].get(name, defaults[name])
            known = str(Path(known).resolve()) if name == "data" else known
            if name not in free and known != value:
                raise InputError(
                    f"{folder} holds a run with --{name.replace('_', '-')} "
                    f"{there['options'].get(name)}, not {value}; give another --run or delete it"
                )
        # what a run in the folder does not record, because it is older, is not compared
        other = [
            name
            for name in ("folds", "fold_names", "fold_slides", "fold_members")
            if there.get(name, config[name]) != config[name]
        ]
        if other or difference(there["features"], config["features"]):
            name = other[0] if other else "features"
            raise InputError(
                f"{folder} was begun with other {name.replace('_', ' ')} ({there[name]}, now "
                f"{config[name]}); give another --run or delete it"
            )
    else:
        write_json(path, config)


def _refuse_another_map(folder: Path, given: GeneMap | None) -> None:
    """Raise InputError where the file of --gene-map is another than when a run was begun."""
    kept = folder / GENE_MAP
    if given and kept.is_file() and read_gene_map(kept, given.merge) != given:
        raise InputError(
            f"{folder} was begun with another map of symbols to ids, which it keeps in {GENE_MAP}; "
            "give --gene-map the same file, or give another --run"
        )
