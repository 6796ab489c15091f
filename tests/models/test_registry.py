import dataclasses
import subprocess
import sys

import pytest

import run_train
from histokit.core.errors import InputError
from histokit.models.base import Model
from histokit.models.registry import CLOSED_FORM, MODELS, OFFERED, PRESET_NAMES, resolve

FIELDS = {field.name: field for field in dataclasses.fields(run_train.Options)}


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS.keys())
def test_rows_name_what_exists(spec):
    assert issubclass(spec.load_class(), Model)
    names = {*spec.own, *spec.takes, *(name for values in spec.presets.values() for name in values)}
    assert names <= {*FIELDS}
    assert {"paper", "small"} <= {*spec.presets}
    assert spec.validates == (spec.trained_by != CLOSED_FORM)


def test_the_command_line_offers_the_table():
    assert FIELDS["model"].metadata["choices"] == OFFERED
    assert FIELDS["preset"].metadata["choices"] == PRESET_NAMES
    assert {*MODELS} - {*OFFERED} == {"library-size"}


def given(**options):
    return dict.fromkeys(FIELDS) | {"preset": "paper", "encoder": "tiny"} | options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"model": "ridge", "num_layers": 3},
            "--num-layers applies only to --model histoprism",
        ),
        (
            {"model": "mean", "latent_dim": 3},
            "--latent-dim applies only to --model bpbooster",
        ),
        ({"model": "stpath", "max_patches": 9}, "--max-patches applies only to --model histoprism"),
        ({"model": "stpath", "preset": "release"}, "stpath has paper, small"),
    ],
)
def test_options_of_other_models_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        resolve(given(**options))


def test_triplex_is_clamped_in_the_papers_presets_alone():
    for preset in MODELS["triplex"].presets:
        found = resolve(given(model="triplex", preset=preset))["triplex_clamp"]
        assert found == (preset != "small"), preset


def test_presets_give_way_to_options():
    assert resolve(given(model="histoprism"))["epochs"] == 1000
    assert resolve(given(model="histoprism", preset="release"))["lr"] == 5e-5
    assert resolve(given(model="stpath", epochs=3))["epochs"] == 3
    assert resolve(given(model="stpath"))["hidden_dim"] == 512


@pytest.mark.parametrize("script", ["run_train", "run_eval", "run_extract", "run_profile"])
def test_options_need_no_torch(script):
    """So that --help answers at once."""
    heavy = {"torch", "pandas", "scipy", "anndata", "matplotlib", "timm", "sklearn"}
    program = f"import sys, {script}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
