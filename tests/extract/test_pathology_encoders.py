"""Pathology encoders: published sizes on the meta device, every path on small twins from files."""

import dataclasses
import functools
import hashlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_slides import write_cohort

import run_extract
from histokit.core.errors import InputError
from histokit.extract import foundation
from histokit.extract.base import How
from histokit.extract.encoders import load_network, make_encoder
from histokit.extract.identify import encoders_of
from histokit.extract.registry import REGISTRY, count

ROOT = Path(__file__).resolve().parents[2]
TRANSFORMER = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL = dict.fromkeys(REGISTRY, TRANSFORMER) | {
    "resnet50": {},
    "ctranspath": {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4)},
    "conch": {"dim": 16, **TRANSFORMER},
    "conch@lazyslide": {"dim": 16, **TRANSFORMER},
    "conch-v1.5": {"dim": 16, **TRANSFORMER},
}


def noise(count, size):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


# Of these no exact count is published: millions, as far as they are known (of CONCH's image side
# nothing is, so that its counts are this project's own).
ABOUT = {"ctranspath": 27.5, "midnight-12k": 1140, "openmidnight": 1100}


@pytest.mark.parametrize("name", REGISTRY)
def test_published_size(name):
    entry = REGISTRY[name]
    if name in ABOUT:
        assert entry.parameters / 1e6 == pytest.approx(ABOUT[name], rel=0.04)
    assert count(entry) == (entry.parameters, entry.tensors)
    with torch.device("meta"):
        network = entry.build()
    pixels = torch.empty(2, 3, entry.size, entry.size, device="meta")
    with torch.no_grad():
        assert entry.pool(network, pixels).shape == (2, entry.dim)


# ---- the authors' names, from timm's: written apart from the maps that they test ---------------


def transformers(state):
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    }
    scaled = any(".ls1." in key for key in state)
    packed = state["blocks.0.mlp.fc2.weight"].shape[1] * 2 == len(state["blocks.0.mlp.fc1.weight"])
    inner = {
        "attn.proj": "attention.output.dense",
        "norm1": "norm1" if scaled else "layernorm_before",
        "norm2": "norm2" if scaled else "layernorm_after",
        "mlp.fc1": "mlp.fc1" if scaled else "intermediate.dense",
        "mlp.fc2": "mlp.fc2" if scaled else "output.dense",
        "ls1": "layer_scale1",
        "ls2": "layer_scale2",
    }
    if packed:
        inner |= {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}
    found = {"pooler.dense.weight": torch.zeros(3), "embeddings.mask_token": torch.zeros(1, 3)}
    for key, value in state.items():
        if key in names:
            found[names[key]] = value
            continue
        _, block, rest = key.split(".", 2)
        layer, kind = rest.rsplit(".", 1)
        start = f"encoder.layer.{block}."
        if layer == "attn.qkv":
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{start}attention.attention.{part}.{kind}"] = rows
        else:
            found[start + inner[layer] + "." + ("lambda1" if kind == "gamma" else kind)] = value
    return found


def dinov2(state):
    found = {
        k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in state.items()
    }
    first = torch.randn_like(found["cls_token"])
    found["register_tokens"] = found.pop("reg_token")
    found["pos_embed"] = torch.cat([first, found["pos_embed"]], 1)
    found["cls_token"] = found["cls_token"] - first
    return {f"teacher.{k}": v for k, v in (found | {"mask_token": torch.zeros(1, 3)}).items()}


def conch(state):
    image = {f"visual.{key}": value for key, value in state.items()}
    other = ("text.a", "text_decoder.b", "logit_scale", "visual.attn_pool_caption.query")
    return {"visual.proj_contrast": torch.eye(16)} | image | dict.fromkeys(other, torch.zeros(2))


def ctranspath(state):
    found = {}
    for key, value in state.items():
        if ".downsample" in key:
            _, layer, rest = key.split(".", 2)
            key = f"layers.{int(layer) - 1}.{rest}"
        found[key] = value
    table = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(2, 2)}
    return {"model": found | table | {"layers.1.blocks.1.attn_mask": torch.zeros(2)}}


INVERSE = {
    foundation.transformers: transformers,
    foundation.dinov2: dinov2,
    foundation.conch: conch,
    foundation.conch_projected: conch,
    foundation.ctranspath: ctranspath,
    foundation.plain: lambda state: {f"module.{key}": value for key, value in state.items()},
    foundation.resnet: lambda state: state | {"layer4.0.conv1.weight": torch.zeros(1)},
}


@pytest.fixture
def twin(tmp_path, monkeypatch):
    """A small network of an entry and a file of it under its authors' names."""

    def make(name):
        entry = REGISTRY[name]
        build = functools.partial(entry.build, **SMALL[name])
        monkeypatch.setitem(REGISTRY, name, dataclasses.replace(entry, build=build))
        torch.manual_seed(0)
        network = build().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) / 10)  # scales of 1e-5 hide a layer
        path = tmp_path / entry.files[0]
        state = INVERSE[entry.keys](network.state_dict())
        if path.suffix == ".safetensors":
            save_file({key: value.contiguous() for key, value in state.items()}, path)
        else:
            torch.save(state, path)
        return network, path

    return make


@pytest.mark.parametrize("name", REGISTRY)
def test_twins_from_their_authors_files(name, twin):
    network, path = twin(name)
    encoder = make_encoder(name, path.parent)
    patches = np.random.default_rng(0).integers(
        0, 256, (2, encoder.size, encoder.size, 3), np.uint8
    )
    with torch.inference_mode():
        expected = REGISTRY[name].pool(network, encoder.transform(patches))
    found = encoder.encode(patches)
    assert found.shape == expected.shape == (2, encoder.dim)
    assert encoder.name == name
    assert expected.std(0).max() > 1e-3  # the patches are told apart
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_transformers_epsilon_is_kept():
    """Phikon's norms divide by other numbers than timm's: seen where a patch varies little."""
    assert REGISTRY["phikon"].build(**TRANSFORMER).norm.eps == 1e-12
    assert REGISTRY["phikon-v2"].build(**TRANSFORMER).norm.eps == 1e-6


def test_class_token_and_mean_leave_registers_out(twin):
    network, path = twin("virchow2")
    encoder = make_encoder("virchow2", path)
    patches = noise(1, 224)
    with torch.inference_mode():
        tokens = network.forward_features(encoder.transform(patches))
    expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1)
    np.testing.assert_allclose(encoder.encode(patches), expected, atol=1e-5)


def test_half_precision_is_near_and_said(twin):
    _, path = twin("uni")
    patches = noise(2, 224)
    full, half = (
        make_encoder("uni", path, How(precision=precision)) for precision in ("auto", "bfloat16")
    )
    assert (full.provenance()["precision"], half.provenance()["precision"]) == (
        "float32",
        "bfloat16",
    )
    difference = np.abs(full.encode(patches) - half.encode(patches)).max()
    assert 0 < difference < 0.05 * np.abs(full.encode(patches)).max()


def test_a_file_of_another_model_is_refused(twin):
    _, path = twin("uni")
    with pytest.raises(
        InputError, match=r"lacks reg_token; blocks.0.attn.proj.bias is \(32,\) there and should be"
    ):
        load_network(REGISTRY["kaiko-vitl14"], path, embed_dim=48, depth=2, num_heads=2)
    state = torch.load(path)
    more = {key.replace("blocks.1.", "blocks.2."): value for key, value in state.items()}
    torch.save(more | state, path)
    with pytest.raises(InputError, match=r"the unexpected blocks.2.attn.proj.bias and 13 more"):
        make_encoder("uni", path)
    with pytest.raises(InputError, match=r"of phikon: it lacks .*; fetch model.safetensors or"):
        make_encoder("phikon", path)


def test_folder_without_the_file(tmp_path):
    with pytest.raises(InputError, match=r"holds none of GPFM.pth.*huggingface.co/majiabo/GPFM"):
        make_encoder("gpfm", tmp_path)
    with pytest.raises(InputError, match="cannot read the weights"):
        make_encoder("gpfm", tmp_path / "GPFM.pth")


def test_what_is_on_no_hub():
    with pytest.raises(
        InputError, match=r"ctranspath.pth or CHIEF_CTransPath.pth at https://github"
    ):
        make_encoder("ctranspath")


PROGRAM = """
import sys
from histokit.core.errors import InputError
from histokit.extract.hub import find_weights
from histokit.extract.registry import REGISTRY
try:
    print(find_weights(REGISTRY["uni"], None))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("cached", [True, False])
def test_hub_offline(tmp_path, cached):
    """The cache of HF_HOME is honored; without it the sentence names page, file and option."""
    folder = tmp_path / "hub" / "models--MahmoodLab--UNI"
    if cached:
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text("abc")
        (folder / "snapshots/abc").mkdir(parents=True)
        (folder / "snapshots/abc/pytorch_model.bin").write_bytes(b"x")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=ROOT, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    if cached:
        assert done.stdout.strip() == str(folder / "snapshots/abc/pytorch_model.bin")
        return
    for part in ("https://huggingface.co/MahmoodLab/UNI", "pytorch_model.bin", "--weights"):
        assert part in done.stdout
    assert "Traceback" not in done.stderr


def test_the_page_is_the_registrys():
    page = runpy.run_path(ROOT / "docs" / "encoders.py")
    assert page["PAGE"].read_text() == page["HEAD"] + page["table"]() + page["TAIL"]


@pytest.mark.parametrize("name", ["uni", "virchow2", "conch", "phikon-v2"])
def test_whose_weights_a_file_holds(name, tmp_path):
    """At full size, of tensors that take no room: only names and shapes are asked."""
    entry = REGISTRY[name]
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in INVERSE[entry.keys](entry.build().state_dict()).items()}
    torch.save({k: torch.zeros(1).expand(shape) for k, shape in shapes.items()}, tmp_path / "a.bin")
    names, nearest = encoders_of(tmp_path / "a.bin")
    assert name in names
    assert {REGISTRY[n].build for n in names} >= {entry.build}
    assert nearest == ""


def test_whose_weights_are_of_none(tmp_path):
    torch.save({"cls_token": torch.zeros(1, 1, 5)}, tmp_path / "a.bin")
    names, nearest = encoders_of(tmp_path / "a.bin")
    assert names == []
    assert "it lacks" in nearest


def test_extraction_with_a_gated_model_from_its_file(tmp_path, twin, capsys):
    """As a user does it: source, name, file; and again with the wrong microns said."""
    _, path = twin("conch")
    source = write_cohort(tmp_path / "in", slides=("a",))
    options = run_extract.Options(
        source=str(source), out=str(tmp_path / "out"), encoder="conch", weights=str(path),
        patch_um=32.0,
    )  # fmt: skip
    run_extract.main(options)
    assert "conch was trained on patches of 256 um; at 32 um it sees tissue 8.0 times" in (
        capsys.readouterr().out
    )
    with h5py.File(tmp_path / "out/features/conch/a.h5") as file:
        assert file["features"].shape[1] == 16
        assert file.attrs["precision"] == "float32"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert file.attrs["weights_sha256"] == digest
