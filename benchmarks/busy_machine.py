"""An epoch of HistoPrism alone, and beside processes that take every core: what sharing costs.

    python benchmarks/busy_machine.py --data DATA

DATA is an extraction. Each training runs as run_train.py does, once with few and once with many
epochs, so that the time between is that of epochs alone. Beside it runs one busy loop a core; a
fair share of the machine is then half of it, which would take twice the time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from histokit.core.options import Checked, option, required, run
from histokit.core.threads import available_cpus

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Options(Checked):
    """Command line."""

    data: str = required("an extraction; two folds of it are trained on")
    encoder: str = option("hed", "whose features are there")
    epochs: int = option(20, "epochs whose time is measured", least=1)
    repeat: int = option(3, "measurements, of which the median counts", least=1)
    libraries_own: bool = option(False, "leave waiting at barriers to the libraries, as a contrast")


def main(cfg: Options) -> None:
    """Print seconds of an epoch alone and beside busy loops, and their ratio."""
    alone = statistics.median(_epoch(cfg) for _ in range(cfg.repeat))
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(available_cpus())
    ]
    try:
        beside = statistics.median(_epoch(cfg) for _ in range(cfg.repeat))
    finally:
        for loop in loops:
            loop.kill()
    print(f"an epoch alone {alone:.2f} s, beside {len(loops)} busy loops {beside:.2f} s", end="")
    print(f": {beside / alone:.2f} times as long")


def _epoch(cfg: Options) -> float:
    few, many = (_seconds(cfg, epochs) for epochs in (1, 1 + cfg.epochs))
    return (many - few) / cfg.epochs


def _seconds(cfg: Options, epochs: int) -> float:
    environment = dict(os.environ)
    if cfg.libraries_own:
        environment["GOMP_SPINCOUNT"] = "300000"  # libgomp's own, where threads are not too many
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "run_train.py", "--data", cfg.data, "--run", folder]
        command += ["--model", "histoprism", "--preset", "small", "--epochs", str(epochs)]
        command += ["--patience", str(epochs + 1)]
        command += ["--encoder", cfg.encoder, "--folds", "2"]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        return time.perf_counter() - start


if __name__ == "__main__":
    run(main, Options, __doc__)
