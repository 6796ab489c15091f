"""Every command of docs/benchmarks.md, run on downloads in miniature."""

import re
import shlex
from pathlib import Path

import pytest
from samples_bench import write_hest_1k, write_hest_bench, write_histoprism

import run_bench
import run_histoprism

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
SCRIPTS = {"run_bench.py": run_bench, "run_histoprism.py": run_histoprism}
SMALL = {  # what a miniature has in place of the real thing
    "run_bench.py": {"--encoder": "hed", "--weights": None, "--device": None, "--tasks": None},
    "run_histoprism.py": {"--encoder": "hed", "--weights": None, "--device": None},
}
FEWER = {
    "run_bench.py": ["--tasks", "SKCM"],
    "run_histoprism.py": ["--preset", "small", "--epochs", "1"],
}


def commands():
    """The lines of bash blocks, continued lines joined."""
    for block in re.findall(r"```bash\n(.*?)```", DOCS.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line)


def smaller(words):
    """The options of a command with those of the miniature."""
    script, options = words[1], []
    for word in words[2:]:
        if word.startswith("--"):
            options.append([word])
        else:
            options[-1].append(word)
    kept = []
    for name, *values in options:
        new = SMALL[script].get(name, values)
        kept += [name, *([new] if isinstance(new, str) else new)] if new is not None else []
    return script, kept + FEWER[script]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("downloads")
    write_hest_1k(place / "HEST")
    write_histoprism(place)
    write_hest_bench(place / "hest-bench", tasks=["SKCM"])
    for code in ("IDC", "COAD"):
        (place / "hest_bench" / code).rename(place / "hest-bench" / code)
    sets = place / "h.all.symbols.gmt"
    (place / "h.all.v2025.1.Hs.symbols.gmt").write_text(sets.read_text())
    wide = "\t".join(f"GENE{i}" for i in range(60))
    (place / "c5.go.v2025.1.Hs.symbols.gmt").write_text(f"GOBP_WIDE\tabout\t{wide}\n")
    return place


def test_the_document_has_its_three_recipes():
    assert [words[1] for words in commands()] == [
        "run_bench.py",
        "run_bench.py",
        "run_histoprism.py",
    ]


@pytest.mark.parametrize("words", commands(), ids=lambda w: "-".join(w[1:3]))
def test_a_command_runs(words, folder, call, monkeypatch):
    monkeypatch.chdir(folder)
    script, options = smaller(words)
    done = call(SCRIPTS[script], *options)
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout
