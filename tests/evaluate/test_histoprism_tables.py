"""HistoPrism's tables from HEST-1k in miniature, against a re-computation from its files."""

import json

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from samples_bench import GENES, HEST_1K, ROLES_1K, gene_id, write_hest_1k, write_histoprism
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge

import run_histoprism
import run_train
from histokit.evaluate.gene_lists import read_lists
from histokit.evaluate.runs import Run

MODELS = ("ridge-hest-no-pca", "histoprism")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("histoprism")
    write_hest_1k(folder / "HEST")
    return write_histoprism(folder, absent=("TENX500",))


def options(files, out, **more):
    given = {
        "source": str(files / "HEST"),
        "splits": str(files / "splits"),
        "panel": str(files / "stpath_genes.yaml"),
        "lists": str(files / "hest_bench"),
        "gene_map": str(files / "symbol2ensembl.json"),
        "gene_sets": [str(files / "h.all.symbols.gmt")],
        "out": str(out),
        "encoder": "hed",
        "models": list(MODELS),
        "preset": "small",
        "epochs": 2,
        "allow_missing": True,
    }
    return run_histoprism.Options(**given | more)


@pytest.fixture(scope="module")
def bench(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("tables")
    run_histoprism.main(options(files, out))
    return out


def slide_of(bench, files, name):
    """Features, and log1p of raw counts by id as the authors make them: logs added by id."""
    with h5py.File(bench / "data/features/hed" / f"{name}.h5") as file:
        features, barcodes = file["features"][:], file["barcodes"].asstr()[:]
    data = anndata.read_h5ad(files / "HEST/st" / f"{name}.h5ad")
    mapping = json.loads((files / "symbol2ensembl.json").read_text())
    ids = [mapping.get(g, g.split(".")[0]) for g in data.var_names]
    logs = pd.DataFrame(np.log1p(data.to_df().to_numpy().astype(float)), index=data.obs_names)
    return features, logs.T.groupby(ids).sum().T.loc[barcodes]


def test_the_tables_are_those_of_a_recomputation(bench, files):
    panel = [*map(gene_id, GENES), "ENSMUSG00000000001"]
    scores = []
    for split, roles in ROLES_1K.items():
        train = [slide_of(bench, files, s) for r in ("train", "val") for s in roles[r].split()]
        x = np.concatenate([f for f, _ in train])
        y = np.concatenate([t.reindex(columns=panel, fill_value=0.0) for _, t in train])
        ridge = Ridge(alpha=100 / (x.shape[1] * 50), solver="lsqr", fit_intercept=False,
                      max_iter=1000, random_state=1)  # fmt: skip
        ridge.fit(x.astype(np.float32), y.astype(np.float32))
        for name in roles["test"].split():
            features, target = slide_of(bench, files, name)
            predicted = pd.DataFrame(ridge.predict(features), target.index, panel)
            code = HEST_1K[name][1]
            listed = json.loads((files / f"hest_bench/{code}/var_50genes.json").read_text())
            for genes, figure in ((map(gene_id, listed["genes"]), "top50"), (target, "all")):
                values = [pearsonr(predicted[g], target[g])[0] for g in genes if target[g].std()]
                scores.append((split, code, figure, np.mean(values)))
    scores = pd.DataFrame(scores, columns=["split", "cancer", "figure", "value"])
    table = pd.read_csv(bench / "histoprism.csv")
    table = table[table["run"] == "ridge-hest-no-pca"].set_index(["task", "figure"])["value"]
    for figure, own in scores.groupby("figure"):
        by_cancer = own.groupby(["cancer", "split"])["value"].mean().groupby("cancer").mean()
        expected = {"macro": by_cancer.mean(), "micro": own["value"].mean()}
        for kind, value in expected.items():
            assert table["average", f"pcc-{figure}-{kind}"] == pytest.approx(value, abs=1e-5)
        for cancer, value in by_cancer.items():
            assert table[cancer, f"pcc-{figure}-cancer"] == pytest.approx(value, abs=1e-5)


def test_genes_share_no_slides_test_and_the_run_keeps_its_map(bench):
    for model in MODELS:
        kept = pd.read_csv(bench / "runs" / model / "gene_map.csv")
        assert len(kept) == len(GENES) + 2
    split = pd.read_csv(bench / "runs/histoprism/folds/split_0/split.csv").set_index("slide_id")
    assert split["cancer"]["SPA116"] == "Cancer_Unspecified"
    assert set(split.index[split["split"] == "test"]) == {"TENX99", "TENX111"}


def test_pathways_clusters_and_published_figures_stand_beside(bench):
    for model in MODELS:
        folder = bench / "runs" / model / "eval"
        assert (folder / "coherence_h.all.symbols.csv").is_file()
        assert set(pd.read_csv(folder / "clusters.csv")["level"]) == {"slide", "spot"}
    assert (bench / "comparison" / "report.html").is_file()
    table = pd.read_csv(bench / "histoprism.csv")
    assert table["published"].isna().all()  # the encoder is not the paper's
    assert not table["comparable"].any()


def test_absent_slides_are_listed(files, tmp_path, call):
    given = options(files, tmp_path / "out", allow_missing=False)
    arguments = []
    for name in ("source", "splits", "panel", "lists", "encoder", "out"):
        arguments += [f"--{name}", getattr(given, name)]
    done = call(run_histoprism, *arguments)
    assert done.returncode == 2
    assert "1 of 9 slides of the splits are not in" in done.stderr
    assert "TENX500; download them, or leave them out with --allow-missing" in done.stderr
    assert not (tmp_path / "out" / "data").exists()


def test_lists_by_cancer(files):
    lists = read_lists(files / "hest_bench")
    assert lists.of("COAD") == GENES[10:40]
    assert str(lists) == "a list of 30 genes for each of 2 cancers"
    with pytest.raises(Exception, match="no gene list for slides of the cancer SKCM; lists are"):
        lists.of("SKCM")
    with pytest.raises(Exception, match=r"holds no CODE/var_50genes\.json"):
        read_lists(files / "splits")


def test_gaps_of_the_codes_are_no_code(files, bench, tmp_path):
    run_train.main(
        run_train.Options(
            data=str(bench / "data"), encoder="hed", model="histoprism", preset="small", epochs=1,
            panel="common", target="log1p", gene_map=str(files / "symbol2ensembl.json"),
            folds=str(files / "splits"), cancer_codes="unfilled",
            standardize="none", allow_missing=True, allow_leakage=True, run=str(tmp_path / "run"),
        )
    )  # fmt: skip
    first, second = Run(tmp_path / "run").folds
    model = first.load_model()
    assert model.cancers == ["COAD", "IDC", "LUSC"]
    assert second.load_model().cancers == ["COAD", "IDC", "LUSC"]
    assert (model.cancer_code(""), model.knows_cancer("")) == (-1, True)
    told = dict(zip(first.split["slide_id"], first.split["cancer"], strict=True))
    assert (told["SPA116"], told["TENX62"]) == ("", "LUSC")
    x = torch.rand(5, model.input_dim)
    assert torch.equal(model.predict(x, ""), model(x, -1))
