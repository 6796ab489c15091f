"""The pathology encoders by name: how each is built, what its file is called, what it expects.

Sources: the constructor arguments of the models' cards, as HEST and TRIDENT call them. Where these
libraries disagree on what the features are, each reading is an entry of its own, ``name@library``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from histokit.extract import foundation
from histokit.extract.timm_import import import_timm

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
BIOPTIMUS = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)


@dataclass(frozen=True)
class Foundation:
    """One encoder.

    Attributes:
        name: as on the command line.
        build: the network with random weights; keywords replace those of its timm model.
        keys: names of the authors' file to those of the network.
        pool: how a network's tokens become one vector.
        dim: of that vector.
        hub: ``owner/repository`` on the Hugging Face hub, or empty.
        files: what its weights may be called, the first that is there.
        page: where access is asked for.
        license: of the weights.
        size: pixels of a side of the input.
        normalization: mean and standard deviation of the colors of [0, 1].
        patch_um: side in microns of the patches that it was trained on.
        precision: its authors' own on a GPU.
        parameters, tensors: of the network that gives features; ``tensors`` is the length of its
            state dict. Published figures where there are exact ones (a test tells for which not).
    """

    name: str
    build: Callable[..., nn.Module]
    keys: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    pool: Callable[[nn.Module, Tensor], Tensor]
    dim: int
    hub: str
    license: str
    parameters: int
    tensors: int
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    page: str = ""
    size: int = 224
    normalization: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    patch_um: float = 112.0
    precision: str = "float16"
    note: str = ""


def _timm(architecture: str, **arguments) -> Callable[..., nn.Module]:
    def build(**other) -> nn.Module:
        given = {"pretrained": False, "num_classes": 0, **arguments, **other}
        return import_timm().create_model(architecture, **given)

    return build


def _vit(architecture: str, eps: float = 1e-6, swiglu: bool = False, **arguments):
    """A transformer of timm at its own image size, from a checkpoint of 224 pixels."""

    def build(**other) -> nn.Module:
        given = {"img_size": 224, "norm_layer": functools.partial(nn.LayerNorm, eps=eps)}
        if swiglu:
            given |= {"mlp_layer": import_timm().layers.SwiGLUPacked, "act_layer": nn.SiLU}
        return _timm(architecture)(**(given | arguments | other))

    return build


def _ctranspath(**other) -> nn.Module:
    build = _timm("swin_tiny_patch4_window7_224", embed_layer=foundation.ConvStem)
    return build(**other)


def _conch(dim: int, architecture: str, projected: bool = False, **arguments):
    def build(dim: int = dim, **other) -> nn.Module:
        trunk = _timm(architecture, global_pool="", **arguments)(**other)
        return foundation.Conch(trunk, dim, projected)

    return build


_VIRCHOW = {"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": ""}
_OPTIMUS = {"init_values": 1e-5, "global_pool": "token"}
_CC = "CC BY-NC-ND 4.0"
_OWKIN = "Owkin non-commercial"

_BASE = (
    Foundation(
        "resnet50",
        _timm("resnet50", features_only=True, out_indices=[3]),
        foundation.resnet,
        foundation.map_mean,
        1024,
        "timm/resnet50.tv_in1k",
        "BSD-3-Clause",
        8_543_296,
        258,
        precision="float32",
        note="third stage, as in HEST and TRIDENT; ImageNet",
    ),
    Foundation(
        "ctranspath",
        _ctranspath,
        foundation.ctranspath,
        foundation.whole,
        768,
        "",
        "GPL-3.0 (CHIEF's copy AGPL-3.0)",
        27_520_038,
        183,
        files=("ctranspath.pth", "CHIEF_CTransPath.pth"),
        page="https://github.com/Xiyue-Wang/TransPath",
        precision="float32",
        note="HEST takes ctranspath.pth, TRIDENT CHIEF_CTransPath.pth: the checksum tells which",
    ),
    Foundation(
        "phikon",
        _vit("vit_base_patch16_224", eps=1e-12),
        foundation.transformers,
        foundation.token,
        768,
        "owkin/phikon",
        _OWKIN,
        85_798_656,
        150,
        precision="float32",
    ),
    Foundation(
        "phikon-v2",
        _vit("vit_large_patch16_224", init_values=1e-5),
        foundation.transformers,
        foundation.token,
        1024,
        "owkin/phikon-v2",
        _OWKIN,
        303_350_784,
        342,
        precision="float32",
    ),
    Foundation(
        "conch",
        _conch(512, "vit_base_patch16_224", img_size=448),
        foundation.conch,
        foundation.whole,
        512,
        "MahmoodLab/conch",
        _CC,
        87_565_056,
        160,
        files=("pytorch_model.bin",),
        size=448,
        normalization=OPENAI,
        patch_um=256.0,
        precision="float32",
        note="before the projection, as in HEST and TRIDENT",
    ),
    Foundation(
        "conch-v1.5",
        _conch(768, "vit_large_patch16_224", img_size=224, init_values=1e-5, dynamic_img_size=True),
        foundation.conch,
        foundation.whole,
        768,
        "MahmoodLab/conchv1_5",
        _CC,
        306_109_184,
        352,
        files=("pytorch_model_vision.bin",),
        size=448,
        patch_um=256.0,
    ),
    Foundation(
        "uni",
        _vit("vit_large_patch16_224", init_values=1e-5),
        foundation.plain,
        foundation.token,
        1024,
        "MahmoodLab/UNI",
        _CC,
        303_350_784,
        342,
        files=("pytorch_model.bin", "model.safetensors"),
    ),
    Foundation(
        "uni2-h",
        _vit(
            "vit_giant_patch14_224",
            swiglu=True,
            depth=24,
            num_heads=24,
            init_values=1e-5,
            embed_dim=1536,
            mlp_ratio=2.66667 * 2,
            no_embed_class=True,
            reg_tokens=8,
        ),
        foundation.plain,
        foundation.token,
        1536,
        "MahmoodLab/UNI2-h",
        _CC,
        681_394_176,
        343,
        files=("pytorch_model.bin", "model.safetensors"),
        precision="bfloat16",
    ),
    Foundation(
        "gigapath",
        _vit(
            "vit_giant_patch14_dinov2",
            patch_size=16,
            embed_dim=1536,
            depth=40,
            num_heads=24,
            mlp_ratio=5.33334,
        ),
        foundation.plain,
        foundation.token,
        1536,
        "prov-gigapath/prov-gigapath",
        "Apache 2.0 with conditions of use for research",
        1_134_953_984,
        566,
        files=("pytorch_model.bin", "model.safetensors"),
        note="the tile encoder; 224 of 256 pixels at .5 microns",
    ),
    Foundation(
        "virchow",
        _vit("vit_huge_patch14_224", swiglu=True, **_VIRCHOW),
        foundation.plain,
        foundation.token_and_mean,
        2560,
        "paige-ai/Virchow",
        "Apache 2.0",
        631_229_184,
        454,
        files=("pytorch_model.bin", "model.safetensors"),
    ),
    Foundation(
        "virchow2",
        _vit("vit_huge_patch14_224", swiglu=True, reg_tokens=4, **_VIRCHOW),
        foundation.plain,
        foundation.token_and_mean,
        2560,
        "paige-ai/Virchow2",
        _CC,
        631_239_424,
        455,
        files=("model.safetensors", "pytorch_model.bin"),
    ),
    Foundation(
        "h-optimus-0",
        _vit("vit_giant_patch14_reg4_dinov2", **_OPTIMUS),
        foundation.plain,
        foundation.token,
        1536,
        "bioptimus/H-optimus-0",
        "Apache 2.0",
        1_134_774_272,
        567,
        files=("pytorch_model.bin", "model.safetensors"),
        normalization=BIOPTIMUS,
    ),
    Foundation(
        "h-optimus-1",
        _vit("vit_giant_patch14_reg4_dinov2", **_OPTIMUS),
        foundation.plain,
        foundation.token,
        1536,
        "bioptimus/H-optimus-1",
        _CC,
        1_134_774_272,
        567,
        files=("model.safetensors", "pytorch_model.bin"),
        normalization=BIOPTIMUS,
    ),
    Foundation(
        "h0-mini",
        _vit(
            "vit_base_patch14_reg4_dinov2",
            swiglu=True,
            mlp_ratio=5.33334,
            init_values=1e-5,
            global_pool="",
        ),
        foundation.plain,
        foundation.token_and_mean,
        1536,
        "bioptimus/H0-mini",
        _CC,
        85_739_520,
        175,
        normalization=BIOPTIMUS,
        note="class token and mean, as in LazySlide",
    ),
    Foundation(
        "midnight-12k",
        _vit("vit_giant_patch14_dinov2"),
        foundation.transformers,
        foundation.token_and_mean,
        3072,
        "kaiko-ai/midnight",
        "MIT",
        1_134_769_664,
        566,
        normalization=HALF,
        note="class token and mean, as its card says",
    ),
    Foundation(
        "openmidnight",
        _vit("vit_giant_patch14_reg4_dinov2", **_OPTIMUS),
        foundation.dinov2,
        foundation.token,
        1536,
        "SophontAI/OpenMidnight",
        "Apache 2.0",
        1_134_774_272,
        567,
        files=("teacher_checkpoint_load.pt",),
    ),
    Foundation(
        "gpfm",
        _vit("vit_large_patch14_dinov2", init_values=1e-5),
        foundation.plain,
        foundation.token,
        1024,
        "majiabo/GPFM",
        _CC,
        303_227_904,
        342,
        files=("GPFM.pth",),
    ),
)


def _small(key: str, architecture: str, dim: int, parameters: int, **more) -> Foundation:
    """A plain transformer of DINO under timm's names; ``1aurent`` keeps copies in that form."""
    maker = "lunit_dino" if "lunit" in key else "kaiko_ai_towards_large_pathology_fms"
    given = {"tensors": 150, "normalization": HALF, "license": "see the page"} | more
    given.setdefault("build", _timm(architecture))
    return Foundation(
        key, keys=foundation.plain, pool=foundation.token, dim=dim,
        hub=f"1aurent/{architecture}.{maker}", parameters=parameters, precision="float32", **given,
    )  # fmt: skip


_SMALL = (
    _small("kaiko-vits16", "vit_small_patch16_224", 384, 21_665_664),
    _small("kaiko-vits8", "vit_small_patch8_224", 384, 21_670_272),
    _small("kaiko-vitb16", "vit_base_patch16_224", 768, 85_798_656),
    _small("kaiko-vitb8", "vit_base_patch8_224", 768, 85_807_872),
    _small(
        "kaiko-vitl14",
        "vit_large_patch14_reg4_dinov2",
        1024,
        304_370_688,
        tensors=343,
        build=_timm("vit_large_patch14_reg4_dinov2", img_size=518, dynamic_img_size=True),
        note="224 pixels, as in TRIDENT; positions of 518 resampled",
    ),
    _small(
        "lunit-vits8",
        "vit_small_patch8_224",
        384,
        21_670_272,
        license="Lunit non-commercial",
        normalization=((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)),
    ),
)


_DENSE = "class token and mean, as in LazySlide's dense form"


def _pooled(entry: Foundation, reading: str, dim: int, note: str) -> Foundation:
    """The entry with another pooling, ``cls`` or ``mean``."""
    pool = foundation.token if reading == "cls" else foundation.token_and_mean
    return replace(entry, name=f"{entry.name}@{reading}", pool=pool, dim=dim, note=note)


def _table() -> dict[str, Foundation]:
    by_name = {entry.name: entry for entry in (*_BASE, *_SMALL)}
    variants = (
        replace(
            by_name["conch"],
            name="conch@lazyslide",
            build=_conch(512, "vit_base_patch16_224", projected=True, img_size=448),
            keys=foundation.conch_projected,
            parameters=by_name["conch"].parameters + 512**2,
            tensors=by_name["conch"].tensors + 1,
            note="in the space that images share with texts, not scaled to length 1",
        ),
        _pooled(by_name["h0-mini"], "cls", 768, "class token alone, as in HEST and TRIDENT"),
        _pooled(by_name["midnight-12k"], "cls", 1536, "class token alone, as in TRIDENT"),
        _pooled(by_name["h-optimus-0"], "mean", 3072, _DENSE),
        _pooled(by_name["h-optimus-1"], "mean", 3072, _DENSE),
    )
    return by_name | {entry.name: entry for entry in variants}


REGISTRY = _table()


def page_of(entry: Foundation) -> str:
    """Where a user asks for access and finds the file."""
    return entry.page or f"https://huggingface.co/{entry.hub}"


def on_meta(entry: Foundation, **smaller) -> nn.Module:
    """The network without memory: names and shapes alone; ``smaller`` as for ``build``."""
    with torch.device("meta"):
        return entry.build(**smaller)


def count(entry: Foundation) -> tuple[int, int]:
    """Parameters and tensors of the network at its full size."""
    network = on_meta(entry)
    return sum(p.numel() for p in network.parameters()), len(network.state_dict())
