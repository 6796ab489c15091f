import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_slides import picture

from histokit.core.errors import InputError
from histokit.extract.base import How
from histokit.extract.bundled import BUNDLED, bundled_weights, timm_state
from histokit.extract.encoders import NetworkEncoder, import_timm, make_encoder


@pytest.fixture(scope="module")
def lite0():
    return make_encoder("efficientnet-lite0")


@pytest.fixture(scope="module")
def patches():
    return np.stack([picture(seed, 224) for seed in range(5)])


@pytest.mark.parametrize(
    ("name", "photograph", "shown"),
    [("efficientnet-lite0", "flower", "daisy"), *((name, "china", "palace") for name in BUNDLED)],
)
def test_bundled_weights_recognize_a_photograph(name, photograph, shown):
    """The renamed weights classify scikit-learn's photographs."""
    from sklearn.datasets import load_sample_image

    from histokit.extract.patches import resample

    timm, encoder = import_timm(), make_encoder(name)

    state = torch.load(bundled_weights(name), weights_only=True)
    model = timm.create_model(f"tf_{name.replace('-', '_')}").eval()
    model.load_state_dict(timm_state(state, [len(stage) for stage in model.blocks]))
    pixels = load_sample_image(f"{photograph}.jpg")
    square = resample(np.ascontiguousarray(pixels[:, 106:533][:427]), encoder.size)
    with torch.inference_mode():
        best = int(model(encoder.transform([square])).argmax())
    assert timm.data.ImageNetInfo().index_to_description(best) == shown


@pytest.mark.parametrize("name", ["efficientnet-lite0", "hed"])
def test_an_embedding_depends_on_its_patch_alone(name, patches):
    encoder = make_encoder(name)
    together = encoder.encode(patches)
    assert together.dtype == np.float32
    assert together.shape == (5, encoder.dim)
    assert np.isfinite(together).all()
    alone = np.concatenate([encoder.encode(patches[i : i + 1]) for i in range(5)])
    reversed_order = encoder.encode(patches[::-1])[::-1]
    scale = np.abs(together).max()
    np.testing.assert_allclose(alone, together, atol=2e-5 * scale)
    np.testing.assert_allclose(reversed_order, together, atol=2e-5 * scale)
    assert np.abs(together[0] - together[1]).max() > 0.01 * scale


def test_random_encoder_is_seeded_and_not_the_trained_one(lite0, patches):
    random, again = (make_encoder("efficientnet-lite0-random") for _ in range(2))
    np.testing.assert_array_equal(random.encode(patches), again.encode(patches))
    assert np.abs(random.encode(patches) - lite0.encode(patches)).max() > 0.1
    assert random.provenance()["weights_sha256"] != lite0.provenance()["weights_sha256"]
    assert random.provenance()["weights_sha256"] == again.provenance()["weights_sha256"]


def test_making_the_random_encoder_leaves_the_generator_alone():
    before = torch.get_rng_state()
    make_encoder("efficientnet-lite0-random")
    assert torch.equal(before, torch.get_rng_state())


def test_provenance_says_what_was_done(lite0):
    found = lite0.provenance()
    assert found["encoder"] == "efficientnet-lite0"
    assert len(found["weights_sha256"]) == 64
    assert "mean 0.5" in found["transform"]
    assert found["pooling"] == "avg"
    assert set(found["versions"]) == {"torch", "timm"}


def test_hed_follows_the_tissue():
    """More nuclei: more hematoxylin, more blobs; glass has none of either."""
    from histokit.extract.hed import HedEncoder

    glass = np.full((224, 224, 3), 245, dtype=np.uint8)
    sparse, dense = (np.full((224, 224, 3), (225, 160, 195), dtype=np.uint8) for _ in range(2))
    for patch, step in ((sparse, 56), (dense, 28)):
        for y in range(14, 224, step):
            for x in range(14, 224, step):
                patch[y - 7 : y + 7, x - 7 : x + 7] = (80, 50, 130)
    statistics = HedEncoder().encode([glass, sparse, dense])
    white, hematoxylin, blobs = statistics[:, 6], statistics[:, 7], statistics[:, 35]
    assert white.tolist() == [1, 0, 0]
    assert hematoxylin[0] < hematoxylin[1] < hematoxylin[2]
    assert blobs == pytest.approx(np.log1p([0, 16, 64]))


def test_timm_weights_from_a_file(tmp_path, patches):
    timm = import_timm()
    model = timm.create_model("resnet10t", pretrained=False)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    torch.save(model.state_dict(), tmp_path / "a.pth")
    model.eval().reset_classifier(0)
    first = make_encoder("timm:resnet10t", tmp_path / "a.safetensors")
    second = make_encoder("timm:resnet10t", tmp_path / "a.pth")
    sized = np.stack([p[: first.size, : first.size] for p in patches])
    with torch.inference_mode():
        expected = model(first.transform(sized)).numpy()
    assert first.dim == expected.shape[1] == 512
    np.testing.assert_allclose(first.encode(sized), expected, atol=1e-4)
    np.testing.assert_array_equal(first.encode(sized), second.encode(sized))
    assert "0.485" in first.provenance()["transform"]
    with pytest.raises(InputError, match=r"holds none of model\.safetensors, pytorch_model\.bin"):
        make_encoder("timm:resnet10t", tmp_path)
    (tmp_path / "a.pth").rename(tmp_path / "pytorch_model.bin")
    third = make_encoder("timm:resnet10t", tmp_path)
    assert third.weights_sha256 == second.weights_sha256


def test_stages_are_the_means_of_maps_at_four_depths(lite0, patches):
    encoder, model = make_encoder("efficientnet-lite0", how=How(pool="stages")), lite0.model
    maps = []
    with torch.inference_mode():
        x = model.bn1(model.conv_stem(lite0.transform(patches)))
        for block in model.blocks:
            x = block(x)
            maps.append(x.mean((2, 3)))
    expected = torch.cat([maps[i] for i in (1, 2, 4, 6)], dim=1).numpy()
    assert (encoder.name, encoder.dim) == ("efficientnet-lite0-stages", 24 + 40 + 112 + 320)
    np.testing.assert_allclose(encoder.encode(patches), expected, atol=1e-4)
    assert encoder.provenance()["pooling"] == "mean of the maps [1, 2, 3, 4] of 5"


def test_stages_of_a_transformer_are_its_quarters(tmp_path, patches):
    name = "vit_tiny_patch16_224"
    model = import_timm().create_model(name, num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    encoder = make_encoder(f"timm:{name}", tmp_path / "a.safetensors", How(pool="stages"))
    with torch.inference_mode():
        maps = model.forward_intermediates(encoder.transform(patches), intermediates_only=True)
    expected = torch.cat([maps[i].mean((2, 3)) for i in (2, 5, 8, 11)], dim=1).numpy()
    assert encoder.dim == 4 * 192
    np.testing.assert_allclose(encoder.encode(patches), expected, atol=1e-4)


@pytest.mark.parametrize("pool", ["last", "stages"])
def test_views_forget_how_a_patch_lies(pool, patches):
    patches = patches[:2]
    encoder = make_encoder("efficientnet-lite0", how=How(pool, views=8))
    assert encoder.name == "efficientnet-lite0" + "-stages" * (pool == "stages") + "-8views"
    assert "8 turns and mirrors" in encoder.provenance()["transform"]
    one = make_encoder("efficientnet-lite0", how=How(pool))
    views = [np.rot90(p, k, (1, 2)) for p in (patches, patches[:, ::-1]) for k in range(4)]
    expected = np.mean([one.encode(view) for view in views], axis=0)
    for view in views[::3]:
        np.testing.assert_allclose(encoder.encode(view), expected, atol=1e-4)


def test_what_has_no_stages_says_so():
    with pytest.raises(InputError, match="apply only to neural encoders, not to hed"):
        make_encoder("hed", how=How("stages"))
    with pytest.raises(InputError, match="apply only to neural encoders, not to hed"):
        make_encoder("hed", how=How(views=8))
    with pytest.raises(InputError, match="does not show its stages"):
        NetworkEncoder("own", torch.nn.Flatten(), {}, "", How("stages"))


def test_bad_weights(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"a": Trap()}, tmp_path / "pickle.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    for name, message in (
        ("pickle.pth", "save its state dict alone|no state dict"),
        ("other.safetensors", "does not fit timm:resnet10t"),
        ("cut.safetensors", "is not a whole file of weights"),
        ("absent.pth", "cannot read the weights"),
    ):
        with pytest.raises(InputError, match=message):
            make_encoder("timm:resnet10t", tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_bad_names():
    with pytest.raises(InputError, match=r"unknown encoder 'resnet'.*timm:<name>"):
        make_encoder("resnet")
    with pytest.raises(InputError, match="cannot make the model 'nonsense'"):
        make_encoder("timm:nonsense")
    with pytest.raises(InputError, match="brings its own"):
        make_encoder("hed", "a.pth")


def test_unreachable_hub_names_the_page_and_the_option():
    code = (
        "from histokit.extract.encoders import make_encoder\n"
        "from histokit.core.errors import InputError\n"
        "try: make_encoder('timm:resnet10t')\n"
        "except InputError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert "https://huggingface.co/timm/resnet10t" in answer.stdout
    assert "--weights" in answer.stdout
