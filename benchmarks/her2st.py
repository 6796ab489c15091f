"""Measure every model on the her2st sections and write the table into RESULTS.md.

    python benchmarks/her2st.py --source ../shared/data/her2st

Stopped and given again, it goes on: every stage skips what is finished.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import run_eval
import run_extract
import run_train
from histokit.core.files import atomic_path
from histokit.core.options import option, required, run
from histokit.evaluate.intervals import mean_interval, units_of

ENCODERS = ("efficientnet-lite0", "hed", "efficientnet-lite0-random")
TARGETS = ("counts10k-log1p", "log1p")
PAPER = "histoprism, paper"  # with the first encoder only: it takes as long as all the others
MODELS = {
    "mean": {"model": "mean"},
    "ridge-hest": {"model": "ridge-hest"},
    "ridge": {"model": "ridge"},
    "mlp": {"model": "mlp", "preset": "small"},
    PAPER: {"model": "histoprism", "preset": "paper"},
    "histoprism, small": {"model": "histoprism", "preset": "small"},
}
AGAINST = "ridge"
# The statistics of hed have units of their own; networks need them on one scale.
STANDARDIZE = {"hed": "train"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    source: str = required("folder of the her2st sections in the legacy layout")
    out: str = option("work/results", "folder for features and runs")
    encoders: list[str] = option(list(ENCODERS), "encoders to measure")
    targets: list[str] = option(list(TARGETS), "targets to measure")
    measure: bool = option(True, "train what is missing; without it, only write what is there")
    results: str = option("RESULTS.md", "file whose measured part is replaced")


def main(cfg: Options) -> None:
    """Extract, train and evaluate what is missing; write the tables of all that is there."""
    data = Path(cfg.out) / "data"
    for encoder in cfg.encoders if cfg.measure else ():
        run_extract.main(
            run_extract.Options(source=cfg.source, out=str(data), encoder=encoder, cancer="IDC")
        )
    wanted = {
        target: [
            (encoder, name)
            for encoder in cfg.encoders
            for name in MODELS
            if encoder == ENCODERS[0] or name != PAPER
        ]
        for target in cfg.targets
    }
    for target, pairs in wanted.items() if cfg.measure else ():
        for encoder, name in pairs:
            chosen = dict(MODELS[name])
            small = chosen.get("preset") == "small"
            chosen["standardize"] = STANDARDIZE.get(encoder, "none") if small else "none"
            folder = _folder(cfg, target, encoder, name)
            train_and_score(folder, data=str(data), encoder=encoder, target=target, **chosen)
    tables = []
    for target, pairs in wanted.items():
        rows = [
            {"encoder": encoder, "model": name} | _row(cfg, target, encoder, name)
            for encoder, name in pairs
            if (_folder(cfg, target, encoder, name) / "eval" / "summary.csv").is_file()
        ]
        tables.append(f"### Target {target}\n\n{markdown(pd.DataFrame(rows))}")
    machine = f"Measured on {platform.machine()}, Python {platform.python_version()}."
    replace_between(Path(cfg.results), "measured", "\n\n".join([machine, *tables]))
    print(f"wrote the tables to {cfg.results}; runs and reports are in {cfg.out}")


def _folder(cfg: Options, target: str, encoder: str, name: str) -> Path:
    return Path(cfg.out) / "runs" / target / encoder / name.replace(", ", "-")


def _row(cfg: Options, target: str, encoder: str, name: str) -> dict:
    """Figures of a run and how far it is above the reference of the same encoder."""
    folder = _folder(cfg, target, encoder, name)
    gain = above(folder, folder.with_name(AGAINST))
    return row_of(folder / "eval" / "summary.csv") | {f"above {AGAINST}: C [over sections]": gain}


def train_and_score(folder: Path, **options) -> None:
    """Train on the five folds and evaluate, where that is not done yet."""
    run_train.main(
        run_train.Options(
            panel="detected",
            run=str(folder),
            folds=str(ROOT / "benchmarks/her2st_folds.csv"),
            allow_leakage=True,  # sections of patient C test one another; B4 is apart
            **options,
        )
    )
    score(folder)


def score(folder: Path) -> None:
    """Evaluate a run, where that is not done yet."""
    if not (folder / "eval" / "summary.csv").is_file():
        run_eval.main(run_eval.Options(run=[str(folder)], predictions=False, pictures=False))


def row_of(path: Path) -> dict:
    """PCC and MSE of a summary.csv with intervals, for the C sections and for B4.

    The targets' variance stands beside the MSE; it is no estimate and has no interval.
    """
    summary = pd.read_csv(path, dtype={"group": str})
    summary = summary[summary["average"] == "mean"].set_index(["by", "group", "metric"])
    summary = summary[["value", "low", "high"]]
    row = {}
    for group, seen in (("C, one section held out [over sections]", "yes"), ("C -> B4", "no")):
        for metric, digits in (("pcc_hvg", 3), ("pcc_all", 3), ("mse", 3)):
            row[group, metric] = _cell(*summary.loc["patient_seen", seen, metric], digits)
        variance = summary.loc[("patient_seen", seen, "target_variance"), "value"]
        row[group, "target_variance"] = f"{variance:.3f}"
    return row


def above(folder: Path, reference: Path) -> str:
    """How much a run's PCC of the top 50 exceeds another's, section by section of patient C."""
    if folder == reference:
        return "-"
    pcc, other = (
        pd.read_csv(run / "eval/slides.csv", index_col="slide_id")["pcc_hvg"].drop("B4")
        for run in (folder, reference)
    )
    return with_interval(pcc - other)


def with_interval(values: pd.Series) -> str:
    """The mean over sections of patient C with its interval; ``-`` where a value does not exist.

    It says how sections of this patient vary, and nothing of other patients.
    """
    if values.isna().any():
        return "-"
    found = mean_interval(values.to_numpy(), units_of(["C"] * len(values)))
    return f"{values.mean():z.3f} [{found.low:z.3f}, {found.high:z.3f}]"


def _cell(value: float, low: float, high: float, digits: int) -> str:
    if pd.isna(value):
        return "-"  # a constant prediction has no correlation
    interval = "" if pd.isna(low) else f" [{low:z.{digits}f}, {high:z.{digits}f}]"
    return f"{value:z.{digits}f}{interval}"


def markdown(rows: pd.DataFrame) -> str:
    """A table of text, its columns named by words or by (group, metric)."""
    names = {"pcc_hvg": "PCC top 50", "pcc_all": "PCC all", "mse": "MSE"}
    names["target_variance"] = "target variance"
    heads = [c if isinstance(c, str) else f"{c[0]}: {names[c[1]]}" for c in rows.columns]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows.to_numpy()])


def replace_between(path: Path, name: str, text: str) -> None:
    """Replace what a file holds between the comments NAME:begin and NAME:end."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = path.read_text().split(begin)
    with atomic_path(path) as temporary:
        temporary.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    run(main, Options, __doc__)
