import json
from types import SimpleNamespace

import cohorts
import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import run_predict
from histokit.core.errors import InputError
from histokit.data.genes import read_gene_list
from histokit.data.official_genes import read_outputs
from histokit.evaluate.controls import open_cohort
from histokit.evaluate.views import check_features
from histokit.maps.official import OfficialHistoPrism, open_official
from histokit.maps.slide import map_slide
from histokit.models import outputs
from histokit.models.histoprism import OFFICIAL_CANCERS
from histokit.models.official import HISTOPRISM_CODES, ORGAN_OF
from histokit.models.stpath import ORGANS

D, H, FF, G = 16, 16, 8, 5
# ids in an order that their symbols do not have
SYMBOLS = {
    "GENE4": "ENSG00000000001",
    "GENE0": "ENSG00000000003",
    "GENE2": "ENSG00000000002",
    "ALIAS": "ENSG00000000002",
    "Xkr4": "ENSMUSG00000000001",
    "ENSG00000000004": "ENSG00000000004",
}


class Harm:
    """Writes a file when it is unpickled the usual way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class Scalar(float):
    """A number as a YAML library reads it."""

    def __reduce__(self):
        return Scalar, (float(self),)


def draw(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes.items()}


def histoprism_state():
    shapes = {
        "img_conv.gconv.att_src": (1, 1, D),
        "img_conv.gconv.att_dst": (1, 1, D),
        "img_conv.gconv.bias": (D,),
        "img_conv.gconv.lin.weight": (D, D),
        "img_norm.weight": (D,),
        "img_norm.bias": (D,),
        "input_proj.weight": (H, D),
        "input_proj.bias": (H,),
        "onco_embedder.weight": (D, 29),
        "onco_embedder.bias": (D,),
        "conditioner.attention.in_proj_weight": (3 * D, D),
        "conditioner.attention.in_proj_bias": (3 * D,),
        "conditioner.attention.out_proj.weight": (D, D),
        "conditioner.attention.out_proj.bias": (D,),
        "conditioner.norm.weight": (D,),
        "conditioner.norm.bias": (D,),
        "gene_regression_head.0.weight": (H, H),
        "gene_regression_head.0.bias": (H,),
        "gene_regression_head.1.weight": (H,),
        "gene_regression_head.1.bias": (H,),
        "gene_regression_head.4.weight": (G, H),
        "gene_regression_head.4.bias": (G,),
    }
    for layer in ("transformer.layers.0.", "transformer.layers.1."):
        shapes |= {
            f"{layer}self_attn.in_proj_weight": (3 * H, H),
            f"{layer}self_attn.in_proj_bias": (3 * H,),
            f"{layer}self_attn.out_proj.weight": (H, H),
            f"{layer}self_attn.out_proj.bias": (H,),
            f"{layer}linear1.weight": (FF, H),
            f"{layer}linear1.bias": (FF,),
            f"{layer}linear2.weight": (H, FF),
            f"{layer}linear2.bias": (H,),
        }
        for norm in ("norm1", "norm2"):
            shapes |= {f"{layer}{norm}.weight": (H,), f"{layer}{norm}.bias": (H,)}
    assert len(shapes) == 46
    return draw(shapes)


def layer_of(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm_of(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def attend(q, k, v, heads, bias=0.0):
    """(N, d) each: softmax attention of ``heads`` heads."""
    q, k, v = (t.view(len(t), heads, -1).transpose(0, 1) for t in (q, k, v))
    score = q @ k.mT / q.shape[-1] ** 0.5 + bias
    return (score.softmax(-1) @ v).transpose(0, 1).flatten(1)


def histoprism_equations(state, x, code):
    """The published inference: with one key, cancer cross-attention adds a constant."""
    state = {key: value.double() for key, value in state.items()}
    onehot = torch.zeros(29, dtype=torch.double)
    if code is not None:
        onehot[code] = 1
    context = layer_of(state, "onco_embedder", onehot)
    attention = "conditioner.attention."
    value = state[f"{attention}in_proj_weight"][2 * D :] @ context
    value = value + state[f"{attention}in_proj_bias"][2 * D :]
    h = x.double() + layer_of(state, f"{attention}out_proj", value)
    h = layer_of(state, "input_proj", norm_of(state, "conditioner.norm", h))
    for name in ("transformer.layers.0", "transformer.layers.1"):
        weight = state[f"{name}.self_attn.in_proj_weight"]
        qkv = F.linear(h, weight, state[f"{name}.self_attn.in_proj_bias"]).chunk(3, dim=1)
        attended = layer_of(state, f"{name}.self_attn.out_proj", attend(*qkv, heads=8))
        h = norm_of(state, f"{name}.norm1", h + attended)
        inner = layer_of(state, f"{name}.linear1", h).relu()
        h = norm_of(state, f"{name}.norm2", h + layer_of(state, f"{name}.linear2", inner))
    head = "gene_regression_head"
    h = norm_of(state, f"{head}.1", layer_of(state, f"{head}.0", h)).relu()
    return layer_of(state, f"{head}.4", h).numpy()


def stpath_state(organs=25):
    shapes = {
        "input_encoder.image_embed.weight": (H, D),
        "input_encoder.image_embed.bias": (H,),
        "input_encoder.gene_embed.weight": (H, G + 2),
        "input_encoder.tech_embed.weight": (5, H),
        "input_encoder.organ_embed.weight": (organs, H),
        "gene_exp_head.0.weight": (H,),
        "gene_exp_head.0.bias": (H,),
        "gene_exp_head.1.weight": (G + 2, H),
        "gene_exp_head.1.bias": (G + 2,),
    }
    for block in ("model.blks.0.", "model.blks.1."):
        shapes |= {
            f"{block}attn.layernorm_qkv.0.weight": (H,),
            f"{block}attn.layernorm_qkv.0.bias": (H,),
            f"{block}attn.layernorm_qkv.1.weight": (3 * H, H),
            f"{block}attn.layernorm_qkv.1.bias": (3 * H,),
            f"{block}attn.W_output.0.weight": (H, H),
            f"{block}attn.W_output.0.bias": (H,),
            f"{block}attn.edge_bias.0.weight": (4, 3),
            f"{block}mlp.fc1.weight": (FF, H),
            f"{block}mlp.fc1.bias": (FF,),
            f"{block}mlp.norm.weight": (FF,),
            f"{block}mlp.norm.bias": (FF,),
            f"{block}mlp.fc2.weight": (H, FF),
            f"{block}mlp.fc2.bias": (H,),
        }
    return draw(shapes, seed=1)


def stpath_equations(state, x, centers, technology, organ):
    """All genes masked; each axis of the coordinates from 0 to 100."""
    state = {key: value.double() for key, value in state.items()}
    centers = torch.from_numpy(centers)
    places = (centers - centers.min(0).values) / (centers.max(0).values - centers.min(0).values)
    distance = torch.cdist(100 * places, 100 * places, compute_mode="donot_use_mm_for_euclid_dist")
    encoder = "input_encoder"
    h = layer_of(state, f"{encoder}.image_embed", x.double())
    h = h + state[f"{encoder}.gene_embed.weight"][:, 1]
    h = h + state[f"{encoder}.tech_embed.weight"][technology]
    h = h + state[f"{encoder}.organ_embed.weight"][organ]
    for block in ("model.blks.0", "model.blks.1"):
        qkv = norm_of(state, f"{block}.attn.layernorm_qkv.0", h)
        qkv = layer_of(state, f"{block}.attn.layernorm_qkv.1", qkv).chunk(3, dim=1)
        slope = state[f"{block}.attn.edge_bias.0.weight"][:, 2]
        attended = attend(*qkv, heads=4, bias=slope[:, None, None] * distance)
        h = h + layer_of(state, f"{block}.attn.W_output.0", attended)
        inner = F.gelu(layer_of(state, f"{block}.mlp.fc1", h))
        h = h + layer_of(state, f"{block}.mlp.fc2", norm_of(state, f"{block}.mlp.norm", inner))
    h = norm_of(state, "gene_exp_head.0", h)
    return layer_of(state, "gene_exp_head.1", h)[:, 2:].numpy()


@pytest.fixture
def genes(tmp_path):
    path = tmp_path / "symbol2ensembl.json"
    path.write_text(json.dumps(SYMBOLS))
    return path


@pytest.fixture
def histoprism(tmp_path, genes):
    """The state, and the predictor of the checkpoint as training writes it."""
    state, path = histoprism_state(), tmp_path / "best_model.pt"
    checkpoint = {
        "epoch": 7,
        "model_state": state,
        "optimizer_state": {"param_groups": [{"lr": Scalar(5e-5)}], "x": Harm(tmp_path / "harmed")},
        "scheduler_state": {"base_lrs": [Scalar(5e-5)]},
        "best_val_loss": 0.1,
    }
    torch.save(checkpoint, path)
    return state, open_official("histoprism", path, genes)


@pytest.fixture
def stpath(tmp_path, genes):
    state, path = stpath_state(), tmp_path / "stfm.pth"
    torch.save(state, path)
    return state, open_official("stpath", path, genes)


def slide(cancer="IDC", technology="Visium", dim=D, count=11):
    rng = np.random.default_rng(2)
    return SimpleNamespace(
        slide_id="S1",
        cancer=cancer,
        technology=technology,
        centers=rng.uniform([50_000, 20_000], [90_000, 23_000], (count, 2)),
        features=torch.from_numpy(rng.normal(size=(count, dim)).astype(np.float32)),
    )


@pytest.mark.parametrize(
    ("cancer", "code"),
    [
        ("IDC", 7),
        ("HCC", 28),
        ("SCCRCC", 16),  # HEST's name of CCRCC
        ("LUAD", 11),  # of LUNG
        ("OS", None),
        # in the authors' vocabulary, but no slide trained them, or only two of the cervix
        ("Healthy", None),
        ("LUSC", None),
        ("Unknown", None),
    ],
)
def test_histoprism_is_what_its_equations_say(histoprism, tmp_path, cancer, code):
    state, official = histoprism
    view = slide(cancer)
    found = official.on(view).block(0, G)
    expected = histoprism_equations(state, view.features, code)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert official.knows_cancer(cancer) == (code is not None)
    assert bool(official.said(view)) == (code is None)
    assert not (tmp_path / "harmed").exists()


def test_codes_without_training_slides_are_those_of_the_splits(shared):
    trained = set()
    for split in (0, 1):
        folder = shared / "hest" / f"histoprism_split_{split}"
        assert (folder / "oncotree_code_list.txt").read_text().split() == OFFICIAL_CANCERS
        lines = (folder / "train_split.csv").read_text().splitlines()
        column = lines[0].split(",").index("oncotree_code")
        trained |= {line.split(",")[column] for line in lines[1:]}
    assert set(HISTOPRISM_CODES.values()) == trained - {"", "Unknown"}


@pytest.mark.parametrize(
    ("cancer", "organ", "technology", "row"),
    [
        ("IDC", 5, "Visium", 2),
        ("CCRCC", 9, "Spatial Transcriptomics", 1),
        ("READ", 6, "10x Xenium", 3),
        ("SOC", 24, "Visium HD", 4),  # the authors count HEST's ovaries among the others
        ("Unknown", 0, "", 0),  # no "Others": their alignment turns it into the padding
    ],
)
def test_stpath_is_what_its_equations_say(stpath, cancer, organ, technology, row):
    state, official = stpath
    view = slide(cancer, technology)
    before = view.centers.copy()
    found = official.on(view).block(0, G)
    expected = stpath_equations(state, view.features, view.centers, row, organ)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(view.centers, before)
    assert len(official.said(view)) == 2 * (row == 0)


def test_stpath_organs():
    assert len(ORGANS) == 25
    assert set(ORGAN_OF.values()) <= set(ORGANS)
    assert ORGANS.index("Glioma") == 20  # not what a glioblastoma of HEST is: that is a brain
    assert ORGAN_OF["GBM"] == "Brain"


@pytest.mark.parametrize(("name", "encoder"), [("histoprism", "uni"), ("stpath", "gigapath")])
def test_what_is_said_of_a_model(request, name, encoder):
    official = request.getfixturevalue(name)[1]
    assert official.target == official.run.config["options"]["target"] == "log1p"
    assert official.features == {"encoder": encoder, "patch_um": 112.0, "dimension": D}
    assert official.about["official"] == name
    assert len(official.about["weights_sha256"]) == 64
    assert len(official.folds) == len(official.models) == 1
    assert official.models[0].standardizer.how == "none"
    assert "IDC" in official.cancers()
    assert official.knows_cancer("")  # a slide without a code is told none, as in training
    assert not official.knows_cancer("UCEC")
    with pytest.raises(InputError, match=f"16 dimensions, those of {encoder}, and slide S1 has 9"):
        official.on(slide(dim=9))
    broken = slide()
    broken.features[0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        official.on(broken)


def test_outputs_are_the_sorted_ids(histoprism):
    table = histoprism[1].genes
    assert list(table.index) == ["GENE4", "GENE2", "GENE0", "ENSG00000000004", "Xkr4"]
    assert list(table["gene_id"]) == sorted(set(SYMBOLS.values()))
    assert list(table["symbol"]) == ["GENE4", "GENE2", "GENE0", "", "Xkr4"]
    assert table[["train_mean", "train_sd"]].isna().all(axis=None)


def test_the_published_list_is_in_the_order_of_the_outputs(shared):
    path = shared / "genesets" / "stpath_genes.yaml"
    table = read_outputs(path, 38_982, path)
    assert list(table["gene_id"]) == read_gene_list(path)


def test_lists_that_do_not_fit_are_refused(tmp_path, genes):
    ids = sorted(set(SYMBOLS.values()))
    lists = {
        "short.txt": (ids[:4], "names 4 genes and .* predicts 5"),
        "shuffled.txt": (ids[::-1], "sorted order"),
        "symbols.txt": (list("ABCDE"), "does not list Ensembl ids"),
    }
    for name, (listed, said) in lists.items():
        (tmp_path / name).write_text("\n".join(listed))
        with pytest.raises(InputError, match=said):
            read_outputs(tmp_path / name, G, tmp_path / "model.pt")
    genes.write_text(json.dumps({"genes": ids}))
    with pytest.raises(InputError, match="no map of symbols"):
        read_outputs(genes, G, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"symbol2ensembl\.json of github"):
        read_outputs(None, G, tmp_path / "model.pt")


def test_other_checkpoints_are_refused(tmp_path, genes):
    path = tmp_path / "model.pt"
    torch.save(stpath_state(), path)
    with pytest.raises(
        InputError, match=r"lacks input_proj\.weight and holds the unexpected input_encoder\.image"
    ):
        open_official("histoprism", path, genes)
    torch.save(histoprism_state(), path)
    with pytest.raises(
        InputError, match=r"lacks gene_exp_head\.0\.bias .* unexpected conditioner\.attention\.in"
    ):
        open_official("stpath", path, genes)
    torch.save(histoprism_state() | {"input_proj.weight": torch.ones(3)}, path)
    with pytest.raises(InputError, match="is no matrix"):
        open_official("histoprism", path, genes)
    torch.save(histoprism_state() | {"extra.weight": torch.ones(3)}, path)
    with pytest.raises(InputError, match=r"unexpected extra\.weight"):
        open_official("histoprism", path, genes)
    torch.save(stpath_state(organs=7), path)
    with pytest.raises(InputError, match="7 organs"):
        open_official("stpath", path, genes)
    with pytest.raises(InputError, match="choose from histoprism, stpath"):
        open_official("stem", path, genes)


def test_genes_are_predicted_where_they_are_asked_for(stpath, monkeypatch):
    asked = []

    def linear(x, weight, bias):
        asked.append(len(weight))
        return F.linear(x, weight, bias)

    monkeypatch.setattr(outputs, "linear", linear)
    prediction = stpath[1].on(slide())
    assert asked == []
    blocks = [prediction.block(start, min(start + 2, G)) for start in range(0, G, 2)]
    assert asked == [2, 2, 1]
    np.testing.assert_allclose(
        np.concatenate(blocks, axis=1), prediction.block(0, G), rtol=1e-5, atol=1e-6
    )


def test_a_slide_is_mapped(tmp_path, histoprism):
    state, official = histoprism
    assert isinstance(official, OfficialHistoPrism)
    cohorts.write_cohort(tmp_path / "data", {"A1": ("PRAD", "A", 12)}, dim=D, encoder="uni")
    with h5py.File(tmp_path / "data" / "features" / "uni" / "A1.h5", "a") as file:
        file.attrs["patch_size_level0"] = 112
    cohort = open_cohort(official.run, str(tmp_path / "data"))
    check_features(official.run, cohort, "A1")
    made = map_slide(official.oracle(), cohort, "A1")
    features = cohort.load("A1").features
    expected = histoprism_equations(state, features, OFFICIAL_CANCERS.index("PRAD"))
    np.testing.assert_allclose(made.block(0, G), expected, rtol=1e-4, atol=1e-5)
    assert made.unit == "log(1 + raw counts)"
    assert made.spread is None
    assert made.about["official"] == "histoprism"
    counts = cohort.load("A1", ["GENE4", "GENE2", "GENE0"]).counts.toarray()
    measured = made.measured.toarray()
    np.testing.assert_allclose(measured[:, :3], np.log1p(counts), rtol=1e-6)
    assert np.isnan(measured[:, 3:]).all()
    assert any("no gene is marked as trusted" in sentence for sentence in made.said)


@pytest.mark.parametrize(
    ("predictor", "given", "sentence"),
    [
        ("official", {"features_from": "made"}, "--features-from applies only to --run, not to"),
        ("official", {"fold": "0"}, "--fold applies only to --run, not to --official; leave it"),
        ("official", {"eval": "runs/a/eval"}, "--eval applies only to --run"),
        ("official", {"training_data": "data"}, "--training-data applies only to --run"),
        (
            "run",
            {"gene_list": "genes.json"},
            "--gene-list applies only to --official, not to --run",
        ),
        ("run", {"checkpoint": "stfm.pth"}, "--checkpoint applies only to --official"),
    ],
)
def test_options_that_a_predictor_does_not_read_are_refused(predictor, given, sentence):
    named = {"official": {"official": "stpath", "checkpoint": "stfm.pth"}, "run": {"run": "runs/a"}}
    options = named[predictor] | {"source": "slides", "out": "maps"}
    run_predict.check(run_predict.Options(**options))
    with pytest.raises(InputError, match=sentence):
        run_predict.check(run_predict.Options(**options | given))
