"""HEST-Bench by one command, against a re-computation with scikit-learn and SciPy."""

import os

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from samples_bench import LISTED, SPLITS, write_hest_bench
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

import run_bench
from histokit.core.errors import InputError
from histokit.evaluate.leaderboard import printed


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    return write_hest_bench(tmp_path_factory.mktemp("hest-bench"))


@pytest.fixture(scope="module")
def board(download, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    run_bench.main(run_bench.Options(source=str(download), out=str(out), encoder="hed"))
    return out


def slide_of(board, download, task, slide):
    """Features and log1p counts of the listed genes, joined by barcode."""
    with h5py.File(board / task / "data/features/hed" / f"{slide}.h5") as file:
        features, names = file["features"][:], file["barcodes"].asstr()[:]
    counts = anndata.read_h5ad(download / task / "adata" / f"{slide}.h5ad")
    # lsqr stops early: one unit in the last place of a target moves a figure by 4e-4 here
    return features, np.log1p(counts[names, LISTED].X.astype(np.float64)).astype(np.float32)


def recipe(train, test, components):
    """hest.bench to the letter: mean over genes of the PCC over all test spots."""
    x, y = map(np.concatenate, zip(*train, strict=True))
    new, truth = map(np.concatenate, zip(*test, strict=True))
    if components:
        scaler = StandardScaler().fit(x)
        pca = PCA(min(256, *x.shape), random_state=1).fit(scaler.transform(x))
        x, new = (pca.transform(scaler.transform(v)).astype(np.float32) for v in (x, new))
    ridge = Ridge(alpha=100 / (x.shape[1] * 50), solver="lsqr", fit_intercept=False,
                  max_iter=1000, random_state=1)  # fmt: skip
    predicted = ridge.fit(x, y).predict(new)
    return np.mean([pearsonr(predicted[:, g], truth[:, g])[0] for g in range(len(LISTED))])


@pytest.mark.parametrize(("model", "components"), [("ridge-hest", 1), ("ridge-hest-no-pca", 0)])
def test_the_pooled_figures_are_those_of_the_recipe(board, download, model, components):
    table = pd.read_csv(board / "leaderboard.csv")
    means = []
    for task, tests in SPLITS.items():
        slides = {s: slide_of(board, download, task, s) for test in tests for s in test}
        folds = [
            recipe([slides[s] for s in slides if s not in test], [slides[s] for s in test],
                   components)
            for test in tests
        ]  # fmt: skip
        row = table[(table["task"] == task) & (table["model"] == model)].iloc[0]
        assert row["pooled"] == pytest.approx(np.mean(folds), abs=1e-5)
        assert row["deviation"] == pytest.approx(np.std(folds), abs=1e-5)
        means.append(row["pooled"])
    average = table[(table["task"] == "average") & (table["model"] == model)].iloc[0]
    assert average["pooled"] == pytest.approx(np.mean(means))
    assert np.isnan(average["published"])  # three of nine tasks


def test_the_sound_recipe_stands_beside_it(board):
    table = pd.read_csv(board / "leaderboard.csv")
    assert set(zip(table["model"], table["target"], strict=True)) == {
        ("ridge-hest", "log1p"), ("ridge-hest-no-pca", "log1p"), ("ridge", "log1p"),
        ("ridge", "counts10k-log1p"),
    }  # fmt: skip
    normalized = table[table["target"] == "counts10k-log1p"]
    assert normalized["pooled"].isna().all()
    assert normalized["slide"].notna().all()
    assert len(table) == 4 * (len(SPLITS) + 1)


def test_the_same_command_goes_on_from_what_is_there(board, download, capsys):
    before = {p: p.stat().st_mtime_ns for p in board.rglob("*.safetensors")}
    evaluated = {p: p.stat().st_mtime_ns for p in board.rglob("summary.csv")}
    run_bench.main(run_bench.Options(source=str(download), out=str(board), encoder="hed"))
    assert {p: p.stat().st_mtime_ns for p in board.rglob("*.safetensors")} == before
    assert {p: p.stat().st_mtime_ns for p in board.rglob("summary.csv")} == evaluated
    said = capsys.readouterr().out
    assert "HEST-Bench" not in said.splitlines()[0]
    assert "ridge-hest-no-pca" in said


def test_a_run_is_scored_again_where_a_fold_was_trained_again(tmp_path):
    assert not run_bench.is_evaluated(tmp_path)
    weights = tmp_path / "folds/0/model.safetensors", tmp_path / "folds/1/model.safetensors"
    for number, path in enumerate((*weights, tmp_path / "eval/manifest.json")):
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, ns=(number * 1000, number * 1000))
    assert run_bench.is_evaluated(tmp_path)
    os.utime(weights[0], ns=(5000, 5000))
    assert not run_bench.is_evaluated(tmp_path)


def test_embeddings_that_are_there_are_taken(board, download, tmp_path):
    made = tmp_path / "made" / "SKCM"
    made.mkdir(parents=True)
    for slide in ("TENX115", "TENX117"):
        with h5py.File(board / "SKCM/data/features/hed" / f"{slide}.h5") as own:
            features, names, coords = own["features"][:], own["barcodes"][:], own["coords"][:]
        with h5py.File(made / f"{slide}.h5", "w") as file:
            file["embeddings"], file["coords"], file["barcodes"] = features, coords, names
    options = {"source": str(download), "out": str(tmp_path / "out"), "tasks": ["SKCM"]}
    options |= {"encoder": "uni2", "features_from": str(tmp_path / "made")}
    run_bench.main(run_bench.Options(**options, models=["ridge-hest"]))
    taken = pd.read_csv(tmp_path / "out" / "leaderboard.csv")
    whole = pd.read_csv(board / "leaderboard.csv")
    pick = {"task": "SKCM", "model": "ridge-hest"}
    first, second = (t[(t[list(pick)] == pd.Series(pick)).all(axis=1)] for t in (taken, whole))
    assert first["pooled"].iloc[0] == pytest.approx(second["pooled"].iloc[0], abs=1e-6)


def test_published_figures_are_found_by_the_encoders_names():
    assert printed("SKCM", "ridge-hest", "uni")[0] == 0.6254
    assert printed("SKCM", "ridge-hest", "uni@trident")[0] == 0.6254
    assert printed("average", "ridge-hest", "h0-mini@cls")[0] == 0.3957
    assert np.isnan(printed("SKCM", "ridge-hest", "h0-mini")[0])  # the class token alone is theirs
    assert printed("IDC", "bpbooster", "virchow2")[0] > 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: None, "has no READ"),
        (lambda d: (d / "SKCM/var_50genes.json").unlink(), "lacks var_50genes.json"),
    ],
)
def test_a_download_that_is_not_whole_is_named(change, sentence, tmp_path):
    source = write_hest_bench(tmp_path / "in", ["SKCM"])
    change(source)
    tasks = ["READ"] if "READ" in sentence else []
    options = run_bench.Options(source=str(source), out=str(tmp_path / "out"), tasks=tasks)
    with pytest.raises(InputError, match=sentence):
        run_bench.main(options)
    with pytest.raises(InputError, match="holds no task of HEST-Bench"):
        run_bench.main(run_bench.Options(source=str(tmp_path), out=str(tmp_path / "out")))
