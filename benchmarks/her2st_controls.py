"""What ridge reaches on her2st beside shuffled spots and library size alone, into RESULTS.md.

    python benchmarks/her2st_controls.py

Needs the features of benchmarks/her2st.py. Stopped and given again, it goes on.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from her2st import markdown, replace_between, row_of, train_and_score

from histokit.core.options import option, run
from histokit.data.views import LABELS
from histokit.evaluate.controls import controls_of
from histokit.evaluate.runs import Run


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    out: str = option("work/results", "folder with the features, for the runs")
    targets: list[str] = option(["counts10k-log1p", "log1p"], "targets to measure")
    results: str = option("RESULTS.md", "file whose part on controls is replaced")


def main(cfg: Options) -> None:
    """Train ridge with its controls on each target; write the table."""
    rows = []
    for target in cfg.targets:
        folder = Path(cfg.out) / "controls" / target
        data = str(Path(cfg.out) / "data")
        train_and_score(folder, data=data, model="ridge", target=target, controls=True)
        found = {"ridge on the image": folder}
        found |= {LABELS[k]: r.folder for k, r in _controls(folder).items()}
        for name, place in found.items():
            rows.append({"target": target, "model": name} | row_of(place / "eval/summary.csv"))
    replace_between(Path(cfg.results), "controls", markdown(pd.DataFrame(rows)))
    print(f"wrote the table to {cfg.results}; runs are in {cfg.out}/controls")


def _controls(folder: Path) -> dict[str, Run]:
    found = controls_of(Run(folder))
    return {kind: found[label] for kind, label in LABELS.items() if label in found}


if __name__ == "__main__":
    run(main, Options, __doc__)
