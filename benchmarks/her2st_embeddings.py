"""How BP-Booster's embeddings cluster on her2st and what the clusters say, into RESULTS.md.

    python benchmarks/her2st_embeddings.py

Needs the runs of benchmarks/her2st_boost.py.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from her2st import markdown, replace_between, with_interval

import run_eval
from histokit.core.options import option, run
from histokit.evaluate.topics.embeddings import NAMES, REFINED

RUNS = ("random", "programs", "preset small")
COLUMNS = {
    "effective_dimensions": "effective dimensions",
    "silhouette": "silhouette [over sections]",
    "explained": "variance of the top 50 explained [over sections]",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    runs: str = option(
        "work/results/boost/counts10k-log1p/seed-0", "folder with the runs of her2st_boost.py"
    )
    out: str = option("work/results/embeddings", "folder for the evaluations")
    results: str = option("RESULTS.md", "file whose part on embeddings is replaced")


def main(cfg: Options) -> None:
    """Evaluate what is missing; write the table over the C sections."""
    rows = []
    for name in RUNS:
        place = Path(cfg.out) / name
        if not (place / "embeddings.csv").is_file():
            run_eval.main(
                run_eval.Options(
                    run=[str(Path(cfg.runs) / name)],
                    out=str(place),
                    predictions=False,
                    pictures=False,
                )
            )
        table = pd.read_csv(place / "embeddings.csv")
        table = table[table["slide_id"] != "B4"]
        for embedding, part in table.groupby("embedding", sort=False):
            if embedding == REFINED or name == RUNS[0]:
                shown = NAMES[embedding] + f", {name}" * (embedding == REFINED)
                rows.append({"embedding": shown} | _cells(part))
    replace_between(Path(cfg.results), "embeddings", markdown(pd.DataFrame(rows)))
    print(f"wrote the table to {cfg.results}; evaluations are in {cfg.out}")


def _cells(part: pd.DataFrame) -> dict[str, str]:
    cells = {shown: with_interval(part[column]) for column, shown in COLUMNS.items()}
    mean = part["effective_dimensions"].mean()
    cells[COLUMNS["effective_dimensions"]] = f"{mean:.1f}"
    return cells


if __name__ == "__main__":
    run(main, Options, __doc__)
