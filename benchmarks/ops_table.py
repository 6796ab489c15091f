"""The tables of README.md and docs/ops.md from benchmarks/results/ops-cpu-SET.csv.

    python benchmarks/ops_table.py            # writes all in place

A table stands between the lines ``<!-- ops SET -->`` and ``<!-- /ops -->``.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLACES = {ROOT / "README.md": ("avx2",), ROOT / "docs" / "ops.md": ("avx512", "avx2")}


def pattern(instructions: str) -> re.Pattern:
    """The place of the table of an instruction set."""
    return re.compile(rf"(<!-- ops {instructions} -->\n).*?(<!-- /ops -->)", re.DOTALL)


def ratio(text: str) -> str:
    """``4.7``, ``45``: two digits."""
    value = float(text)
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def table(rows: list[dict]) -> str:
    """One line an op: our time, how much faster than the best rival and than the naive form."""
    lines = [
        "| op | ms | best form of stock torch | gain | naive form | gain | of the rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for op in dict.fromkeys(row["op"] for row in rows):
        own = [row for row in rows if row["op"] == op]
        ours = next(row for row in own if row["kind"] == "ours")
        best = next(row for row in own if row["best_rival"])
        naive = next(row for row in own if row["kind"] == "naive")
        limit = {"matrix": "products", "copy": "copying", "read": "reading"}
        rate = f"{float(ours['fraction']):.0%} of {limit[ours['fraction_of'].split()[0]]}"
        lines.append(
            f"| `{op.split()[0]}`, {ours['size']} | {float(ours['ms_p50']):.0f} "
            f"| {best['provider']} | {ratio(best['ratio'])}x "
            f"| {naive['provider']} | {ratio(naive['ratio'])}x | {rate} |"
        )
    first = rows[0]
    lines.append(f"\n{first['cpu']}, float32, torch {first['torch']}, {first['date']}.")
    return "\n".join(lines) + "\n"


def measured(instructions: str) -> str:
    """The table of what was measured with an instruction set."""
    with open(RESULTS / f"ops-cpu-{instructions}.csv", newline="") as handle:
        return table(list(csv.DictReader(handle)))


def main() -> None:
    """Write every table into its place."""
    for place, sets in PLACES.items():
        text = place.read_text()
        for name in sets:
            found = measured(name)
            text = pattern(name).sub(lambda match, found=found: match[1] + found + match[2], text)
        place.write_text(text)


if __name__ == "__main__":
    main()
