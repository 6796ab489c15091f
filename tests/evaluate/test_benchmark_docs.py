"""Every command of docs/benchmarks.md, run on downloads in miniature."""

import re
import shlex
import shutil
from pathlib import Path

import h5py
import pytest
import torch
from samples_bench import write_hest_1k, write_hest_bench, write_histoprism

import run_bench
import run_extract
import run_histoprism
from histokit.models.histoprism import OFFICIAL_CANCERS, HistoPrism
from histokit.models.stpath import STPath
from histokit.train import official

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
SCRIPTS = {
    "run_bench.py": run_bench,
    "run_histoprism.py": run_histoprism,
    "run_extract.py": run_extract,
    "histokit.train.official": official,
}
OTHERS = {  # what a miniature has in place of the real thing; None: the option is left out
    "run_bench.py": {"--encoder": "hed", "--weights": None, "--device": None, "--tasks": "SKCM"},
    "run_histoprism.py": {"--encoder": "hed", "--weights": None, "--device": None},
    "run_extract.py": {"--encoder": "hed", "--weights": None, "--device": None},
    "histokit.train.official": {},
}
SHORT = {"run_bench.py": ["--tasks", "SKCM"]}
SHORT["run_histoprism.py"] = ["--preset", "small", "--epochs", "1"]
DIM = 80  # of hed, whose features stand in for those of uni and gigapath


def commands():
    """The lines of bash blocks, continued lines joined."""
    for block in re.findall(r"```bash\n(.*?)```", DOCS.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line)


def smaller(words):
    """A script and the options of a command as they are for the miniature."""
    words = words[2:] if words[1] == "-m" else words[1:]
    script, options = words[0], []
    for word in words[1:]:
        if word.startswith("--"):
            options.append([word])
        else:
            options[-1].append(word)
    kept = []
    for name, *values in options:
        new = OTHERS[script].get(name, values)
        kept += [name, *([new] if isinstance(new, str) else new)] if new is not None else []
    return script, kept + SHORT.get(script, [])


def write_weights(place):
    """Checkpoints under the published names and shapes, drawn at random."""
    torch.manual_seed(0)
    for name in ("split_0.pt", "split_1.pt"):
        network = HistoPrism(DIM, 61, OFFICIAL_CANCERS, 16, feedforward_dim=8)
        torch.save({"model_state": network.state_dict()}, place / name)
    torch.save(STPath(DIM, 63, width=16, num_layers=1, mlp_dim=16).state_dict(), place / "stfm.pth")


def write_features(place):
    """Features of hed under the names of the encoders whose weights are not at hand."""
    folder = place / "bench/histoprism/data/features"
    for encoder in ("uni", "gigapath"):
        shutil.copytree(folder / "hed", folder / encoder)
        for path in (folder / encoder).glob("*.h5"):
            with h5py.File(path, "a") as file:
                file.attrs["encoder"] = encoder


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
    write_weights(place)
    made = place / "bench/histoprism/data"
    run_extract.main(run_extract.Options(source=str(place / "HEST"), out=str(made), encoder="hed"))
    write_features(place)
    return place


def test_the_document_has_its_recipes():
    found = [smaller(words)[0] for words in commands()]
    assert found[:3] == ["run_bench.py", "run_bench.py", "run_histoprism.py"]
    assert set(found) == set(SCRIPTS)


@pytest.mark.parametrize("words", commands(), ids=lambda w: "-".join(w[1:5]))
def test_a_command_runs(words, folder, call, monkeypatch):
    monkeypatch.chdir(folder)
    script, options = smaller(words)
    done = call(SCRIPTS[script], *options)
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout
