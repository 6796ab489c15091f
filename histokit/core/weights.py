"""Weight files of any origin, read without ever running code of theirs."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from histokit.core.errors import InputError
from histokit.core.files import reading

# Where training checkpoints keep their state dict, the first that is there.
INSIDE = ("state_dict", "model_state", "model_state_dict", "model", "teacher")


class _Inert:
    """Stands in for every class that a checkpoint names and torch does not know.

    It takes whatever a pickle hands it, keeps nothing and does nothing: scalars of a YAML library
    in an optimizer's state load as this, and so would anything that means harm.
    """

    def __new__(cls, *arguments, **keywords):
        return super().__new__(cls)

    def __init__(self, *arguments, **keywords):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        """Take an item of a list and drop it."""

    def extend(self, values):
        """Take items of a list and drop them."""


def read_state_dict(path: str | Path, inside: Sequence[str] = INSIDE) -> dict[str, torch.Tensor]:
    """A state dict from safetensors or a torch file.

    Args:
        path: the file.
        inside: keys that may hold the state dict inside a training checkpoint.

    Returns:
        Names to tensors on the CPU, without the ``module.`` that data-parallel training adds.

    Raises:
        InputError: no such file, a damaged one, or one that holds no state dict.
    """
    path = Path(path)
    with reading(path, "file of weights"):
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes); copy it again")
        state = load_file(path) if _is_safetensors(path) else _load_torch(path)
    for key in inside:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not state:
        what = "a whole pickled model" if isinstance(state, _Inert) else f"a {type(state).__name__}"
        raise InputError(
            f"{path} holds {what} and no state dict (names to tensors); save "
            "model.state_dict() and give that file"
        )
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
            inert = isinstance(value, _Inert)
            kind = "an object that is never unpickled" if inert else f"a {type(value).__name__}"
            raise InputError(
                f"{path} holds no state dict: the entry {str(key)[:80]!r} is {kind}, where names "
                "and tensors are expected"
            )
    return {key.removeprefix("module."): value for key, value in state.items()}


def weights_note(path: str | Path, key: str) -> str:
    """A note in the metadata of a safetensors file; empty where there is none, or another format.

    Raises:
        InputError: as ``read_state_dict``.
    """
    path = Path(path)
    with reading(path, "file of weights"):
        if not _is_safetensors(path):
            return ""
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(key, "")


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file; raises InputError when it is missing."""
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read the weights {path} ({error.strerror})") from error


def _is_safetensors(path: Path) -> bool:
    """By its suffix or, for hubs call either kind ``.bin``, content: 8 bytes of length, JSON."""
    with open(path, "rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _load_torch(path: Path):
    """What a torch file holds; classes that torch does not allow load as ``_Inert``."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise InputError(
                    f"{path} is a TorchScript program and no state dict; save "
                    "model.state_dict() and give that file"
                )
    try:
        names = []
        if zipfile.is_zipfile(path):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own words advise to load unsafely, in colors
        raise InputError(
            f"{path} is damaged, or holds more than tensors in a form that is not read; save "
            "its state dict alone, best as .safetensors"
        ) from error


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], source: Path) -> None:
    """Load strictly; a key or shape that does not fit is named in an InputError."""
    if found := misfit(model, state):
        raise InputError(
            f"{source} does not fit this model: {found}; it was made for another panel, encoder or "
            "architecture"
        )
    model.load_state_dict(state)


def misfit(model: nn.Module, state: Mapping[str, torch.Tensor]) -> str:
    """What keeps a state dict from fitting a model, in words; empty for nothing.

    Names the first tensor that lacks, the first that has no place and the first of another shape.
    """
    wanted = model.state_dict()
    absent, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    said = []
    for verb, keys in (("lacks", absent), ("holds the unexpected", unexpected)):
        if keys:
            said.append(f"it {verb} {keys[0]}" + f" and {len(keys) - 1} more" * (len(keys) > 1))
    for key in sorted(wanted.keys() & state.keys()):
        if wanted[key].shape != state[key].shape:
            there, here = tuple(state[key].shape), tuple(wanted[key].shape)
            said.append(f"{key} is {there} there and should be {here}")
            break
    return "; ".join(said)
