"""A trained model on disk: ``model.safetensors`` with the weights, and ``model.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file

from histokit.core.files import atomic_path, read_json, reading, write_json
from histokit.core.weights import load_weights
from histokit.models.base import Model, Standardizer
from histokit.models.registry import MODELS

MOMENTS = ("feature_mean", "feature_scale")


def describe(model: Model, name: str, arguments: Mapping) -> dict:
    """What model.json says of a model: its name, the arguments that rebuild it, its standardizer.

    Args:
        model: the model.
        name: its row of the table of models.
        arguments: those of its class.
    """
    return {
        "model": name,
        "arguments": dict(arguments),
        "standardize": model.standardizer.how,
        "blocks": list(model.standardizer.blocks),
    }


def save(model: Model, name: str, arguments: dict, folder: Path) -> None:
    """Write a model; ``arguments`` rebuild it. The weights come last: they mark a whole model."""
    write_json(folder / "model.json", describe(model, name, arguments))
    state = model.state_dict()
    if model.standardizer.how == "train":
        state |= dict(
            zip(MOMENTS, (model.standardizer.mean, model.standardizer.scale), strict=True)
        )
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(state, temporary)


def load(folder: Path) -> Model:
    """Read a model in evaluation mode; raises InputError for a damaged or foreign file."""
    description = read_json(folder / "model.json")
    with reading(folder / "model.safetensors", "file of weights", "train the fold again"):
        state = load_file(folder / "model.safetensors")
    with reading(folder / "model.json", "description of a model", "train the fold again"):
        model = MODELS[description["model"]].load_class()(**description["arguments"])
    moments = [state.pop(key, None) for key in MOMENTS]
    with reading(folder / "model.json", "description of a model", "train the fold again"):
        blocks = tuple(description.get("blocks", ()))
        model.standardizer = Standardizer(description["standardize"], *moments, blocks)
    load_weights(model, state, folder / "model.safetensors")
    return model.eval()
