"""Mutants of every file that is read: each is read or refused, none crashes, hangs or exhausts.

HISTOKIT_FUZZ=6500 tries so many instead of a few hundred.
"""

import os
import queue
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from fuzz_readers import pristine, readers

SECONDS = 30  # of one mutant
MUTANTS = int(os.environ.get("HISTOKIT_FUZZ", "300"))


class Child:
    """A process that reads mutants in a folder of its own."""

    def __init__(self, good: Path, folder: Path):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        here = Path(__file__).parent
        paths = os.pathsep.join(map(str, (here, *here.parents[:2])))
        self.process = subprocess.Popen(
            [sys.executable, str(here / "fuzz_readers.py"), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.lines = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        assert self.next(120) == "ready"

    def _listen(self):
        for line in self.process.stdout:
            if line.startswith(("ready", "ok", "refused", "foreign", "no sentence")):
                self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def next(self, seconds):
        """The next answer; what happened to the process where there is none."""
        try:
            answer = self.lines.get(timeout=seconds)
        except queue.Empty:
            self.end()
            return "hang"
        return f"crash {self.process.wait()}" if answer is None else answer

    def ask(self, reader, seed):
        self.process.stdin.write(f"{reader}\t{seed}\n")
        self.process.stdin.flush()
        return self.next(SECONDS)

    def end(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    pristine(folder)
    return folder


def test_good_inputs_are_read(good):
    for name, (path, read) in readers(good).items():
        read(good / path)
        assert (good / path).is_file(), name


def test_mutants_are_read_or_refused_in_one_sentence(good, tmp_path):
    names, wrong, answers = list(readers(good)), [], Counter()
    child = Child(good, tmp_path / "child")
    try:
        for number in range(MUTANTS):
            reader, seed = names[number % len(names)], 1 + number // len(names)
            answer = child.ask(reader, seed)
            answers[answer.split()[0]] += 1
            if answer not in ("ok", "refused"):
                wrong.append(f"{reader}, seed {seed}: {answer}")
            if answer == "hang" or answer.startswith("crash"):
                child.end()
                child = Child(good, tmp_path / "child")
    finally:
        child.end()
    print(dict(answers))
    assert not wrong, "\n".join(wrong)
    assert answers["refused"] > MUTANTS // 4
