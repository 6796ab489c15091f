"""Who made features leaves them what they are called after; another reading is another encoder."""

import types

import h5py
import numpy as np
import pytest
from cohorts import write_cohort

from histokit.core.encoder_names import split_maker
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.evaluate.leaderboard import printed
from histokit.extract.registry import REGISTRY
from histokit.maps.features import plan_of
from histokit.models.official import PUBLISHED
from histokit.models.registry import resolve
from histokit.train.official import check_features


def test_only_makers_are_told_apart():
    assert split_maker("uni@hest") == ("uni", "hest")
    assert split_maker("h0-mini@cls@trident") == ("h0-mini@cls", "trident")
    for name in ("uni", *REGISTRY):
        assert split_maker(name) == (name, "")


def test_another_reading_is_not_what_was_published():
    for name, reading in (("conch", "conch@lazyslide"), ("h-optimus-0", "h-optimus-0@mean")):
        known = printed("SKCM", "ridge-hest", name)[0]
        assert known > 0
        assert printed("SKCM", "ridge-hest", f"{name}@hest")[0] == known
        assert np.isnan(printed("SKCM", "ridge-hest", reading)[0])
    theirs = printed("SKCM", "ridge-hest", "h0-mini@cls")[0]
    assert printed("SKCM", "ridge-hest", "h0-mini@cls@hest")[0] == theirs > 0


def test_boosters_sizes_are_those_of_the_encoder():
    def latent(encoder):
        given = {"preset": "paper", "model": "bpbooster", "encoder": encoder}
        return resolve(given)["latent_dim"]

    assert latent("conch") == latent("conch@hest") == 128
    assert latent("conch@lazyslide") == latent("virchow2") != 128


@pytest.mark.parametrize("tag", ["@hest", "@trident"])
def test_published_weights_take_hests_own_features(tag, tmp_path):
    """Its files do not say that its patches are of 112 um; nobody knows that of others' patches."""
    slides = {"A1": ("IDC", "A", 9)}
    write_cohort(tmp_path, slides, dim=8, encoder=f"uni{tag}")
    with h5py.File(tmp_path / f"features/uni{tag}/A1.h5", "r+") as file:
        file.attrs.update(patch_um=0.0, patch_px=0)
    cohort = Cohort(tmp_path, f"uni{tag}")
    if tag == "@hest":
        check_features(cohort, ["A1"], PUBLISHED["histoprism"], 8)
        with pytest.raises(InputError, match="encoder gigapath and those of slide A1 have uni"):
            check_features(cohort, ["A1"], PUBLISHED["stpath"], 8)
    else:
        with pytest.raises(InputError, match="slide A1 have uni@trident"):
            check_features(cohort, ["A1"], PUBLISHED["histoprism"], 8)


def test_maps_ask_for_the_maker_of_another_reading(tmp_path):
    features = {"encoder": "conch@lazyslide@trident", "patch_um": 0.0}
    options = {"encoder": features["encoder"]}
    run = types.SimpleNamespace(folder="run", config={"features": features, "options": options})
    machine = {"features_from": None, "weights": None, "device": "cpu", "batch_size": "auto"}
    with pytest.raises(InputError, match="trained on features that trident made"):
        plan_of(run, 0, [], {}, machine)


def test_features_made_elsewhere_are_refused_where_the_run_extracts_its_own():
    features = {"encoder": "efficientnet-lite0", "patch_um": 112.0}
    options = {"encoder": features["encoder"]}
    run = types.SimpleNamespace(folder="run", config={"features": features, "options": options})
    machine = {"features_from": "made", "weights": None, "device": "cpu", "batch_size": "auto"}
    with pytest.raises(InputError, match="--features-from made gives features made elsewhere"):
        plan_of(run, 0, [], {}, machine)
