"""run_predict.py as a user runs it: slides with and without counts, and what goes wrong."""

import json
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import histokit
import run_eval
import run_extract
import run_predict
import run_train
from histokit.data.cohort import Cohort
from histokit.data.genes import normalize
from histokit.data.synthetic import make_cohort
from histokit.evaluate.runs import Run
from histokit.evaluate.topics.signatures import signature_score

FILES = {"h5ad": "prediction.h5ad", "geojson": "tiles.geojson.gz", "page": "page/index.html",
         "spatialdata": "prediction.zarr/zarr.json", "overlays": "overlays/genes.png"}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A cohort, its features, a ridge run with its evaluation, and a run that is told cancers."""
    folder = tmp_path_factory.mktemp("study")
    cohort = make_cohort(folder / "cohort", size=1200, num_genes=190).parent
    data, hed = str(folder / "data"), {"encoder": "hed"}
    run_extract.main(run_extract.Options(source=str(cohort), out=data, **hed))
    for model, more in (("ridge", {}), ("histoprism", {"epochs": 2, "preset": "small"})):
        options = {"data": data, "model": model, "run": str(folder / model), "folds": "2"}
        run_train.main(run_train.Options(**options, **hed, **more))
    quiet = {"predictions": False, "pictures": False}
    run_eval.main(run_eval.Options(run=[str(folder / "ridge")], **quiet))
    return folder


@pytest.fixture
def predict(study, call, tmp_path):
    """Run the script; returns what it said and the slide's folder."""

    def run(*given, model="ridge", slide="IDC-4", source=None, out=None):
        source = source or study / "cohort" / "new"
        out = out or tmp_path / "maps"
        said = call(run_predict, "--run", study / model, "--source", source, "--out", out, *given)
        return said, out / slide

    return run


def refused(said, *words):
    """One sentence on stderr, exit code 2."""
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    for word in words:
        assert word in said.stderr


def by_hand(study, cohort, slide_id, model="ridge", cancer="IDC"):
    """Predictions of each fold's own model, (folds, N, G)."""
    slide = cohort.load(slide_id, counts=False)
    folds = Run(study / model).folds
    genes = [list(fold.genes["gene"]) for fold in folds]
    common = [gene for gene in genes[0] if gene in genes[1]]
    parts = []
    for fold, own in zip(folds, genes, strict=True):
        found = fold.load_model().predict(slide.features, cancer).numpy()
        parts.append(found[:, [own.index(gene) for gene in common]])
    return np.stack(parts), common


def test_a_slide_without_counts_gets_the_mean_of_the_folds(study, predict):
    said, folder = predict("--cancer", "IDC")
    assert said.returncode == 0, said.stderr
    for path in FILES.values():
        assert (folder / path).is_file(), path
    found = anndata.read_h5ad(folder / FILES["h5ad"])
    cohort = Cohort(folder.parent / "data", "hed")
    parts, genes = by_hand(study, cohort, "IDC-4")
    assert found.var_names.tolist() == genes
    np.testing.assert_allclose(found.X, parts.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.layers["spread"], parts.std(axis=0, ddof=1), atol=1e-5)
    slide = cohort.load("IDC-4", counts=False)
    np.testing.assert_array_equal(found.obsm["spatial"], slide.centers)
    assert found.var["trusted"].any()
    assert found.uns["histokit"]["unit"] == "log(1 + counts per 10,000)"
    assert "measured" not in found.layers
    assert (folder.parent / "index.html").is_file()


def test_one_fold_is_its_model_and_has_no_spread(study, predict):
    name = Run(study / "ridge").folds[1].name
    _, folder = predict("--fold", name, "--formats", "h5ad")
    found = anndata.read_h5ad(folder / FILES["h5ad"])
    (part,) = by_hand(study, Cohort(folder.parent / "data", "hed"), "IDC-4")[0][1:]
    assert found.n_vars >= part.shape[1]
    common = found[:, by_hand(study, Cohort(folder.parent / "data", "hed"), "IDC-4")[1]]
    np.testing.assert_allclose(common.X, part, atol=1e-5)
    assert "spread" not in found.layers


def test_what_was_measured_stands_beside_it_and_nan_where_it_was_not(study, predict):
    given = ["--slides", "SKCM-2", "--formats", "h5ad"]
    said, folder = predict(*given, source=study / "cohort", slide="SKCM-2")
    assert "trained 1 of the 2 models" in said.stdout
    found = anndata.read_h5ad(folder / FILES["h5ad"])
    cohort = Cohort(study / "data", "hed")
    panel = Run(study / "ridge").folds[0].genes.set_index("gene").loc[found.var_names].reset_index()
    slide = cohort.load("SKCM-2", panel)
    truth = normalize(slide.counts, slide.library_size, "counts10k-log1p").toarray()
    measured = found.layers["measured"].toarray()
    rows = pd.Index(slide.barcodes).get_indexer(found.obs_names)
    np.testing.assert_allclose(measured[:, slide.measured], truth[rows][:, slide.measured])
    assert np.isnan(measured[:, ~slide.measured]).all()


def test_an_unknown_cancer_is_said_and_told_as_none(study, predict):
    said, folder = predict("--cancer", "XYZ", "--formats", "h5ad", model="histoprism")
    assert "not trained on the cancer code XYZ" in said.stdout
    assert "was never evaluated" in said.stdout
    found = anndata.read_h5ad(folder / FILES["h5ad"])
    assert not found.var["trusted"].any()
    assert found.var["pcc"].isna().all()
    slide = Cohort(folder.parent / "data", "hed").load("IDC-4", counts=False)
    first = Run(study / "histoprism").folds[0].load_model()
    hidden = first.embed(slide.features, "XYZ", allow_unknown=True)
    assert torch.isfinite(hidden).all()


def write_sets(path, **sets):
    lines = ["\t".join([name, "na", *genes]) for name, genes in sets.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_scores_are_those_of_the_predicted_columns(study, predict, tmp_path):
    genes = list(Run(study / "ridge").folds[0].genes["gene"][:6])
    sets = write_sets(tmp_path / "sets.gmt", WIDE=[*genes, "NOGENE"], FEW=[*genes[:4], "NOGENE"])
    said, folder = predict("--gene-sets", sets, "--formats", "h5ad")
    found = anndata.read_h5ad(folder / FILES["h5ad"])
    expected = signature_score(found[:, genes].X)
    np.testing.assert_allclose(found.obsm["scores"]["WIDE"], expected, atol=1e-4)
    assert list(found.obsm["scores"]) == ["WIDE"]
    assert "FEW is not scored: 4 of its 5 genes are predicted, and 5 are needed" in said.stdout


def test_gene_sets_that_were_edited_are_scored_again(study, predict, tmp_path):
    genes = list(Run(study / "ridge").folds[0].genes["gene"])
    for first in (0, 10):
        sets = write_sets(tmp_path / "sets.gmt", SET=genes[first : first + 6 + first])
        _, folder = predict("--gene-sets", sets, "--formats", "h5ad")
        found = anndata.read_h5ad(folder / FILES["h5ad"])
        expected = signature_score(found[:, genes[first : first + 6 + first]].X)
        np.testing.assert_allclose(found.obsm["scores"]["SET"], expected, atol=1e-4)


def test_a_slide_of_another_kind_is_flagged(study, predict, tmp_path):
    picture = Image.open(study / "cohort" / "new" / "IDC-4.tif").convert("RGB")
    (tmp_path / "odd").mkdir()
    turned = Image.fromarray(np.asarray(picture)[..., ::-1])  # blue for red
    turned.save(tmp_path / "odd" / "blue.png")
    Image.fromarray(255 - np.asarray(picture)).save(tmp_path / "odd" / "inverted.png")
    part = picture.crop((450, 450, 750, 750)).resize((1200, 1200), Image.Resampling.BICUBIC)
    part.save(tmp_path / "odd" / "magnified.png")  # four times
    usual, _ = predict("--formats", "h5ad")
    given = ["--formats", "h5ad", "--mpp", 0.5, "--no-mask"]
    odd, folder = predict(*given, source=tmp_path / "odd", slide="blue")
    assert "looks like the training slides" in usual.stdout
    for name in ("blue", "inverted", "magnified"):
        assert f"{name}: The slide lies outside what the model was trained on" in odd.stdout
        found = anndata.read_h5ad(folder.parent / name / FILES["h5ad"])
        assert (found.obs["novelty"] > 1).mean() > 0.5


def test_the_same_command_keeps_what_is_finished(predict):
    _, folder = predict("--formats", "h5ad", "geojson")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    again, _ = predict("--formats", "h5ad", "geojson")
    assert "predicted already" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before
    gene = anndata.read_h5ad(folder / FILES["h5ad"]).var_names[3]
    other, _ = predict("--formats", "h5ad", "geojson", "--genes", gene)
    assert "predicted already" not in other.stdout
    assert json.loads((folder / "prediction.json").read_text())["made_from"]["options"]["genes"]


def test_a_map_of_which_a_file_is_lost_is_written_again(predict):
    _, folder = predict("--formats", "h5ad")
    (folder / FILES["h5ad"]).unlink()
    again, _ = predict("--formats", "h5ad")
    assert "predicted already" not in again.stdout
    assert (folder / FILES["h5ad"]).is_file()


def test_slides_of_one_source_are_kept_when_asked_for_one_by_one(study, predict):
    for slide in ("IDC-1", "IDC-2"):
        predict("--slides", slide, "--formats", "h5ad", source=study / "cohort")
    again, folder = predict("--slides", "IDC-1", "--formats", "h5ad", source=study / "cohort")
    assert "IDC-1: predicted already" in again.stdout
    both = ("--slides", "IDC-1", "IDC-2", "--formats", "h5ad")
    together, _ = predict(*both, source=study / "cohort")
    assert together.stdout.count("predicted already") == 2
    assert set(Cohort(folder.parent / "data", "hed").slides.index) == {"IDC-1", "IDC-2"}
    index = (folder.parent / "index.html").read_text()
    assert index.count("<li>") == 2
    assert "tissue of IDC-2" in index


def test_slides_of_another_extraction_join_the_index(study, call, tmp_path):
    for k, slide in enumerate(("IDC-1", "IDC-2")):
        data = tmp_path / f"data{k}"
        shutil.copytree(study / "data", data)
        for other in (data / "thumbnails").glob("*.jpg"):
            if other.stem != slide:
                other.unlink()
        given = ["--run", study / "ridge", "--data", data, "--slides", slide]
        said = call(run_predict, *given, "--formats", "page", "--out", tmp_path / "maps")
        assert said.returncode == 0, said.stderr
        shutil.rmtree(data)
    html = (tmp_path / "maps" / "index.html").read_text()
    assert html.count("<li>") == 2
    for slide in ("IDC-1", "IDC-2"):
        for link in (f'href="{slide}/page/index.html"', f'src="{slide}/thumbnail.jpg"'):
            assert link in html
            assert (tmp_path / "maps" / link.split('"')[1]).is_file()


def test_a_run_of_joined_encoders_predicts_spots_and_has_no_single_grid(study, call, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(study / "data", data)
    wide = ["--encoder", "hed", "--scales", "224"]
    call(run_extract, "--source", study / "cohort", "--out", data, *wide)
    train = ["--encoder", "hed+hed-224um", "--model", "ridge", "--folds", "2"]
    call(run_train, "--data", data, *train, "--run", tmp_path / "both")
    given = ["--run", tmp_path / "both", "--out", tmp_path / "maps", "--formats", "h5ad"]
    said = call(run_predict, *given, "--source", study / "cohort", "--slides", "IDC-1")
    assert said.returncode == 0, said.stderr
    found = anndata.read_h5ad(tmp_path / "maps" / "IDC-1" / FILES["h5ad"])
    parts, genes = by_hand(tmp_path, Cohort(data, "hed+hed-224um"), "IDC-1", "both")
    assert found.var_names.tolist() == genes
    np.testing.assert_allclose(found.X, parts.mean(axis=0), atol=1e-4)
    assert json.loads(found.uns["histokit"]["side"]) == 224  # of the first, 112 um
    bare = call(run_predict, *given, "--source", study / "cohort" / "new")
    refused(bare, "patches of 2 sizes", "IDC-4")


def test_an_extraction_that_is_there_is_taken(study, call, tmp_path):
    given = ["--run", study / "ridge", "--out", tmp_path, "--slides", "IDC-1", "--formats", "h5ad"]
    said = call(run_predict, *given, "--data", study / "data")
    assert said.returncode == 0, said.stderr
    assert not (tmp_path / "data").exists()
    refused(call(run_predict, *given), "--source", "--data", "one of the two")
    both = ["--data", study / "data", "--source", study / "cohort"]
    refused(call(run_predict, *given, *both), "one of the two")
    for idle in (["--cancer", "IDC"], ["--mpp", 0.5], ["--mask", "m.png"], ["--no-mask"]):
        ignored = call(run_predict, *given, "--data", study / "data", *idle)
        refused(ignored, f"{idle[0]} is for slides that are extracted here")
    official = ["--official", "stpath", "--data", study / "data", "--out", tmp_path]
    refused(call(run_predict, *official), "--checkpoint FILE")


def test_features_of_another_kind_are_refused_by_their_key(study, predict, tmp_path):
    other = tmp_path / "study"
    shutil.copytree(study / "ridge", other / "ridge")
    config = json.loads((other / "ridge" / "config.json").read_text())
    config["features"]["transform"] = "another"
    (other / "ridge" / "config.json").write_text(json.dumps(config))
    said, folder = predict(model=other / "ridge")
    refused(said, "features with transform 'another'")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--fold", "9"], ["no fold '9'"]),
        (["--genes", "NOGENE"], ["NOGENE"]),
        (["--mask", "absent.geojson"], ["absent.geojson"]),
        (["--eval", "/nowhere"], ["is no evaluation"]),
        (["--batch-size", "many"], ["--batch-size must be auto or a number"]),
        (["--mask", "a.png", "--no-mask"], ["--mask", "--no-mask"]),
        (["--signature", "nowhere"], ["nowhere is neither a file"]),
        (["--slides", "IDC-9"], ["no slide 'IDC-9'"]),
    ],
)
def test_faults_are_one_sentence_and_leave_nothing_half_written(given, words, predict):
    said, folder = predict(*given)
    refused(said, *words)
    assert not folder.exists()
    assert not list(folder.parent.glob(".*.tmp"))


def test_training_leaves_slides_without_counts_out(study, call, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(study / "data", data)
    new = study / "cohort" / "new"
    call(run_extract, "--source", new, "--out", data, "--encoder", "hed")
    train = ["--encoder", "hed", "--model", "mean", "--folds", "2", "--run", tmp_path / "run"]
    said = call(run_train, "--data", data, *train)
    assert said.returncode == 0, said.stderr
    assert "1 slides have no counts and take no part, such as IDC-4" in said.stdout
    assert all("IDC-4" not in set(f.split["slide_id"]) for f in Run(tmp_path / "run").folds)
    bare = tmp_path / "bare"
    call(run_extract, "--source", new, "--out", bare, "--encoder", "hed")
    refused(call(run_train, "--data", bare, *train), "no slide", "has counts")


def test_python_and_the_script_agree(study, predict):
    _, folder = predict("--cancer", "IDC", "--formats", "h5ad")
    slide = histokit.read_slide(study / "cohort" / "new" / "IDC-4.tif")
    found = histokit.predict(study / "ridge", slide, cancer="IDC")
    written = anndata.read_h5ad(folder / FILES["h5ad"])
    np.testing.assert_array_equal(found.X, written.X)
    pd.testing.assert_frame_equal(found.var, written.var)
    cohort = histokit.extract_features(slide, folder.parent / "own", "hed")
    with h5py.File(folder.parent / "data" / "features" / "hed" / "IDC-4.h5") as file:
        np.testing.assert_array_equal(cohort.load("IDC-4", counts=False).features, file["features"])
