"""Device times on an H100 as arithmetic predicts them, to be read beside measured ones.

benchmarks/results/predicted-h100.csv has a row for each op, case and kind of kernels that there is
a prediction for: milliseconds, one number or a range. It comes from bytes over 3.0 TB/s and
operations over what the instructions used reach there, not from a run.
"""

import csv
from pathlib import Path

FILE = Path(__file__).resolve().parent / "results" / "predicted-h100.csv"
KERNELS = ("plain", "tensor cores")


def predicted(op: str, case: str, tensor_cores: bool) -> str:
    """Milliseconds of a call, as the table gives them; empty where it does not.

    Args:
        op: the op's name in the benchmark.
        case: the sizes as the benchmark prints them.
        tensor_cores: whether kernels on tensor cores were asked for.
    """
    with open(FILE, newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if (row["op"], row["case"]) == (op, case)]
    found = {row["kernels"]: row["predicted_ms"] for row in rows}
    return found.get(KERNELS[tensor_cores], "")


def beside(measured: str, expected: str) -> str:
    """A measured time, and the predicted one where there is one."""
    return f"{measured} (H100, predicted: {expected})" if expected else measured
