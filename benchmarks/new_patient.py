r"""What carries to a new patient: features, models and what did not help, on her2st.

    python benchmarks/new_patient.py --source ../shared/data/her2st \
        --third ../shared/data/her2st_A1

Patients, folds and scores are those of ``zoo.py``, the panel holds all genes. First the default
model on every kind of features, each also trained on one of two patients and scored on the other,
by which features are chosen for the third. Then other models on the best features. Writes
benchmarks/results/new-patient.csv, a row a test slide, and a part of RESULTS.md. Stopped and given
again, it goes on.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from her2st import markdown, replace_between
from stain import normalized
from zoo import beside, collect, perform, write_scores
from zoo_models import (
    FEATURES,
    HED,
    LITE1,
    LITE2,
    MORE_FEATURES,
    NET,
    NORMALIZED,
    OTHER_SCALE,
    SIZES,
    SMALL,
    TUNED,
    ZOO,
)
from zoo_run import PATIENTS, Measurement, Task, extract_as, write_split
from zoo_table import WORDS, by_unit, check, with_interval

import run_finetune
from histokit.core.options import option, run

SCORES = ROOT / "benchmarks" / "results" / "new-patient.csv"
DEFAULT = "ridge-low-rank, neighbors"
CHOSEN = "chosen on the other two patients"
KINDS = tuple(kind for kind in (*FEATURES, *MORE_FEATURES) if kind != TUNED)
RIDGES = [name for name in ZOO if name.startswith("ridge") and name != DEFAULT]
# rows of the table: model and features
ROWS = [(DEFAULT, kind) for kind in KINDS]
ROWS += [(DEFAULT, TUNED), (OTHER_SCALE, "plain"), (OTHER_SCALE, "best")]
ROWS += [(model, "best") for model in ("mean", *RIDGES, *SMALL)]
REFERENCE = (DEFAULT, "best")
FINAL = (*PATIENTS, *PATIENTS["C"])
AUTO = "auto, neighbors"
TUNED_EPOCHS = 5
INNER = tuple(f"{x}>{y}" for x in PATIENTS for y in PATIENTS if x != y)
STAGES = {"encoder": NET, "pool": "stages"}
BEST = STAGES | {"scales": SIZES}
# options by the name of the features that they make
EXTRACTED = {
    FEATURES["plain"]: {"encoder": NET},
    FEATURES["best"]: BEST,
    MORE_FEATURES["the last map, three sizes"]: {"encoder": NET, "scales": SIZES},
    MORE_FEATURES["four depths, one size"]: STAGES,
    MORE_FEATURES["best and 896 um"]: STAGES | {"scales": f"{SIZES},896"},
    MORE_FEATURES["best, 8 views"]: BEST | {"views": 8},
    LITE1: BEST | {"encoder": "efficientnet-lite1"},
    LITE2: BEST | {"encoder": "efficientnet-lite2"},
    HED: {"encoder": "hed", "scales": SIZES},
}


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """Options of the measurement."""

    out: str = option("work/new-patient", "folder for features and runs")
    models: list[str] = option(
        [], "measure rows of these and keep others; all if empty", choices=tuple(dict(ROWS))
    )
    features: list[str] = option(
        [], "measure rows of these and keep others; all if empty", choices=(*KINDS, TUNED)
    )


def main(cfg: Options) -> None:
    """Extract, train, score; then the table."""
    check(ROOT / cfg.results, "new-patient")
    if cfg.measure:
        extract(cfg)
        scores = measure(cfg)
        if (cfg.models or cfg.features) and SCORES.is_file():
            scores = beside(scores, pd.read_csv(SCORES), DEFAULT)
        write_scores(scores, SCORES)
    replace_between(ROOT / cfg.results, "new-patient", markdown(table(pd.read_csv(SCORES))))
    print(f"wrote the table to {cfg.results}")


def rows_of(cfg: Options) -> list[tuple[str, str]]:
    """Model and features of what is measured."""
    asked = [
        (model, kind)
        for model, kind in ROWS
        if model in (cfg.models or [model]) and kind in (cfg.features or [kind])
    ]
    return [row for row in ROWS if row in (*asked, REFERENCE)]


def extract(cfg: Options) -> None:
    """Every kind of features that is needed, of all sections; what is there is kept."""
    kinds = {kind for _, kind in rows_of(cfg)}
    names = {n for kind in kinds for n in (FEATURES | MORE_FEATURES)[kind].split("+")}
    names |= {NET} if TUNED in kinds else set()
    for source in (cfg.source, cfg.third):
        for name in EXTRACTED:
            if name in names:
                extract_as(source, f"{cfg.out}/data", EXTRACTED[name])
        if NORMALIZED in kinds:
            of_images = normalized(Path(source), Path(cfg.out) / "stain" / Path(source).name)
            extract_as(str(of_images), f"{cfg.out}/normalized", BEST)
    if TUNED in kinds:
        tune(cfg)


def tune(cfg: Options) -> None:
    """Tune the encoder of plain features on the training slides of each fold; as it comes."""
    split = Path(cfg.out) / "tuned.csv"
    write_split(tuple(PATIENTS), split)
    run_finetune.main(
        run_finetune.Options(
            data=f"{cfg.out}/data",
            run=f"{cfg.out}/tuned",
            encoder=NET,
            folds=str(split),
            target=cfg.target,
            panel="detected",
            epochs=TUNED_EPOCHS,
            val_fraction=0.0,
            views=1,
        )
    )


def measure(cfg: Options) -> pd.DataFrame:
    """Train and score what is missing; a row a test slide."""
    tasks = [
        Task(cfg.out, cfg.target, model, kind, None, 0, 0, folds)
        for model, kind in rows_of(cfg)
        for folds in parts(model, kind)
    ]
    perform(cfg, tasks, "training")
    scores = collect(tasks)
    inner = scores["fold"].str.contains(">")
    return scores.assign(protocol=scores["protocol"].mask(inner, "choosing"))


def parts(model: str, kind: str) -> list[tuple[str, ...]]:
    """Folds of each run of a model."""
    if model == AUTO or kind == TUNED:
        return [tuple(PATIENTS)]  # what takes long is tried on new patients alone
    return [INNER, FINAL] if model == DEFAULT else [FINAL]


def table(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each model and kind of features, and one for the features that are chosen."""
    scores = scores.assign(model=scores["model"] + "|" + scores["features"])
    found = {protocol: by_unit(scores, protocol) for protocol in (*WORDS, "choosing")}
    chosen = {p: best_for(p, found["choosing"]) for p in PATIENTS}
    label = f"{DEFAULT}|{CHOSEN}"
    for protocol in WORDS:
        own = found[protocol]
        own[label] = [own.loc[unit, chosen.get(unit, chosen["C"])] for unit in own.index]
    reference = "|".join(REFERENCE)
    rows = []
    for name in ("|".join(row) for row in ROWS):
        if name not in found["patients"]:
            continue  # not measured yet
        rows.append(_row(name, found, reference))
        if name == f"{DEFAULT}|{KINDS[-1]}":
            rows.append(_row(label, found, reference))
    return pd.DataFrame(rows)


def best_for(patient: str, choosing: pd.DataFrame) -> str:
    """The column with the largest mean over the folds that a patient has no part in."""
    own = choosing[[patient not in fold.split(">") for fold in choosing.index]]
    return own.mean().idxmax()


def _row(name: str, found: dict[str, pd.DataFrame], reference: str) -> dict[str, str]:
    model, kind = name.split("|")
    row = {"model": model, "features": kind}
    for protocol, words in WORDS.items():
        row[f"{words}: PCC"] = row[f"{words}: above the default on best features"] = "-"
        if name not in found[protocol]:
            continue
        own = found[protocol][name]
        row[f"{words}: PCC"] = f"{own.mean():.3f}"
        if name != reference:
            gain = with_interval(own - found[protocol][reference])
            row[f"{words}: above the default on best features"] = gain
    patients = found["patients"][name]
    row["A / B / C"] = " / ".join(f"{patients[p]:.3f}" for p in PATIENTS)
    inner = found["choosing"]
    row["trained on one patient"] = f"{inner[name].mean():.3f}" if name in inner else "-"
    return row


if __name__ == "__main__":
    run(main, Options, __doc__)
