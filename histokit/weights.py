"""Weight files of any origin, read without ever unpickling code."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from histokit.errors import InputError


def read_state_dict(path: str | Path, inside: str | None = None) -> dict[str, torch.Tensor]:
    """A state dict from safetensors or a torch file.

    Args:
        path: the file.
        inside: key that may hold the state dict inside a training checkpoint.

    Returns:
        Names to tensors on the CPU, without the ``module.`` that data-parallel training adds.

    Raises:
        InputError: no such file, a damaged one, one that holds code, or one without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"the weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as weights: it is damaged or holds more than tensors, and code "
            "is never unpickled; save its state dict alone and give that file"
        ) from error
    if inside and isinstance(state, dict) and isinstance(state.get(inside), dict):
        state = state[inside]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"{path} holds no state dict (names to tensors)")
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], source: Path) -> None:
    """Load strictly; a key or shape that does not fit is named in an InputError."""
    expected = model.state_dict()
    for key in sorted(expected.keys() | state.keys()):
        ours = tuple(expected[key].shape) if key in expected else None
        theirs = tuple(state[key].shape) if key in state else None
        if ours != theirs:
            raise InputError(
                f"{source} does not fit this model: {key} is {theirs or 'absent'} there and should "
                f"be {ours or 'absent'}; it was made for another panel, encoder or architecture"
            )
    model.load_state_dict(state)
