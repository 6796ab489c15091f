"""Every model, in one table: where it is, how it is trained, what it may be given.

Free of torch, so that ``--help`` need not wait for it. A further model is one more row.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping

from histokit.core.errors import InputError

# HistoPrism's appendix B. "release": the configuration in the authors' checkpoints, whose 5,000
# epochs stretch the warm-up over the first 250.
PAPER = {
    "lr": 5e-4,
    "weight_decay": 0.01,
    "epochs": 1000,
    "patience": 30,
    "dropout": 0.1,
    "hidden_dim": 256,
    "feedforward_dim": 2048,
    "num_layers": 2,
    "refit": False,
    "start_at_mean": False,
    "standardize": "none",
    "val_fraction": 0.2,
}
# "small": for a few sections. The head starts at zero and the training means, so all that is learnt
# is what deviates from them: from random weights a short training only unlearns their noise. Ten
# epochs suffice then, and the validation sections are trained on in the end.
FOR_FEW = {"epochs": 100, "dropout": 0.3, "start_at_mean": True, "refit": True}
NETWORK_PRESETS = {
    "paper": PAPER,
    "release": PAPER | {"lr": 5e-5, "epochs": 5000},
    "small": PAPER | FOR_FEW,
}
# STPath's pretraining, but for its optimizer (Adam without warm-up) and its organs.
STPATH = PAPER | {
    "weight_decay": 0.0,
    "epochs": 500,
    "patience": 100,
    "hidden_dim": 512,
    "feedforward_dim": 1024,
    "num_layers": 4,
}
STPATH_SMALL = STPATH | FOR_FEW
STPATH_SMALL |= {"hidden_dim": 128, "feedforward_dim": 256, "num_layers": 2, "patience": 30}
# BP-Booster: section 3.1 and appendix A.5 of its paper, which gives no penalty of the readout.
BOOSTER = {
    "init": "random",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "epochs": 50,
    "patience": 50,
    "batch_size": 128,
    "latent_dim": 256,
    "num_prototypes": 64,
    "num_hvgs": 200,
    "num_svgs": 200,
    "attention": "prototypes",
    "gates": "both",
    "losses": "both",
    "loss_scale": "mean",
    "readout": "ridge",
    "standardize_programs": False,
    "refit": False,
    "start_at_mean": False,
    "standardize": "none",
    "val_fraction": 0.0,  # a fixed number of epochs on all training patches
}
# On sections of a few hundred spots the network starts to overfit after a few epochs; chosen on the
# her2st sections of patient C, held out in turn.
BOOSTER_FOR_FEW = {"epochs": 5, "refit": True, "start_at_mean": True, "standardize": "train"}
BOOSTER_FOR_FEW |= {"val_fraction": 0.2}
# Learning rates of each of the paper's tasks, for prototypes that start random and as programs.
# The paper has no figure for other data: its LUAD rate, within its range and the same for both.
BOOSTER_LR = {
    "paper": {"random": 1e-3, "programs": 1e-3},
    "small": {"random": 1e-3, "programs": 1e-3},
    "paper-idc": {"random": 1e-2, "programs": 1e-4},
    "paper-luad": {"random": 1e-3, "programs": 1e-3},
    "paper-skcm": {"random": 5e-4, "programs": 5e-4},
    "paper-prad": {"random": 1e-4, "programs": 1e-5},
}
BOOSTER_SIZES = {  # by encoder, whoever made its features
    "resnet50": {"latent_dim": 512},
    "conch": {"latent_dim": 128, "num_prototypes": 32},
    "uni": {"latent_dim": 128, "num_prototypes": 32},
}
CLOSED_FORM, NETWORK, BOOSTED = "closed form", "network", "bpbooster"


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One model.

    Attributes:
        name: as on the command line.
        place: module and class, ``histokit.models.baselines:LinearMap``.
        trained_by: ``closed form``, ``network`` or ``bpbooster``; see ``histokit.train.fold``.
        presets: hyper-parameters by the preset's name.
        own: options that few other models have; refused for those that do not list them.
        settings: what tells closed forms of one class apart.
        takes: arguments of the class that options of the training give.
        ranked: highly variable genes that the class is told, 0 for none.
        conditioned: whether the class is told the cancers of the training slides.
        regressor: its regression in words, for a protocol.
        offered: whether ``run_train.py --model`` has it.
    """

    name: str
    place: str
    trained_by: str
    presets: Mapping[str, Mapping] = dataclasses.field(default_factory=lambda: NETWORK_PRESETS)
    own: tuple[str, ...] = ()
    settings: Mapping = dataclasses.field(default_factory=dict)
    takes: tuple[str, ...] = ()
    conditioned: bool = False
    ranked: int = 0
    regressor: str = "a network with a linear head"
    offered: bool = True

    @property
    def validates(self) -> bool:
        """Whether validation slides end its training; a closed form trains on all."""
        return self.trained_by != CLOSED_FORM

    def load_class(self) -> type:
        """The class, imported now."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


def _ridge(name: str, regressor: str, **settings) -> ModelSpec:
    place = "histokit.models.baselines:LinearMap"
    return ModelSpec(name, place, CLOSED_FORM, settings=settings, regressor=regressor)


_BY_FOLDS = "by grouped cross-validation"
_WIDTHS = ("hidden_dim", "feedforward_dim", "num_layers")
MODELS: Mapping[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            "mean", "histokit.models.baselines:Mean", CLOSED_FORM, regressor="intercept only"
        ),
        _ridge(
            "ridge-hest",
            "StandardScaler, PCA 256, ridge without intercept, alpha 100 / (components x 50)",
            recipe="hest",
        ),
        _ridge(
            "ridge-hest-no-pca",
            "ridge without intercept, alpha 100 / (dimensions x 50)",
            recipe="hest",
            components=None,
        ),
        _ridge("ridge", f"StandardScaler, PCA 256, ridge with intercept, alpha {_BY_FOLDS}"),
        _ridge(
            "ridge-no-pca",
            f"StandardScaler, ridge with intercept, alpha {_BY_FOLDS}",
            components=None,
        ),
        _ridge(
            "ridge-by-gene",
            f"StandardScaler, PCA 256, ridge with intercept, alpha of each gene {_BY_FOLDS}",
            by_gene=True,
        ),
        ModelSpec(
            "mlp",
            "histokit.models.baselines:MLP",
            NETWORK,
            own=("hidden_dim",),
            takes=("dropout", "hidden_dim"),
        ),
        ModelSpec(
            "histoprism",
            "histokit.models.histoprism:HistoPrism",
            NETWORK,
            own=(*_WIDTHS, "max_patches"),
            takes=("dropout", *_WIDTHS, "max_patches"),
            conditioned=True,
        ),
        ModelSpec(
            "stpath",
            "histokit.models.stpath:STPathModel",
            NETWORK,
            presets={"paper": STPATH, "small": STPATH_SMALL},
            own=_WIDTHS,
            takes=("dropout", *_WIDTHS),
            conditioned=True,
            ranked=200,
        ),
        ModelSpec(
            "bpbooster",
            "histokit.models.bpbooster:BPBooster",
            BOOSTED,
            presets={name: BOOSTER | {"lr": lr["random"]} for name, lr in BOOSTER_LR.items()},
            own=(*(name for name in BOOSTER if name not in PAPER), "programs"),
        ),
        ModelSpec(
            "library-size",
            "histokit.models.baselines:LinearMap",
            CLOSED_FORM,
            settings={"recipe": "library size"},
            regressor="line on log library size, with intercept",
            offered=False,
        ),
    )
}
OFFERED = tuple(name for name, spec in MODELS.items() if spec.offered)
PRESET_NAMES = tuple(dict.fromkeys(name for spec in MODELS.values() for name in spec.presets))


def resolve(given: Mapping) -> dict:
    """Options of a training with the preset's in place of those not given.

    Args:
        given: every option of run_train.py by name; None where it is not given.

    Raises:
        InputError: a preset of another model, or options that do not go together.
    """
    preset, model = given["preset"], given["model"]
    chosen = {name: value for name, value in given.items() if value is not None}
    spec = MODELS[model]
    for name in chosen:
        owners = [other.name for other in MODELS.values() if name in other.own]
        if owners and model not in owners:
            raise InputError(
                f"--{name.replace('_', '-')} applies only to --model {' and '.join(owners)}; "
                f"{model} has no such option"
            )
    if preset not in spec.presets:
        raise InputError(f"--preset {preset}: {model} has {', '.join(spec.presets)}")
    values = spec.presets[preset]
    if model == "bpbooster":
        values = _booster(preset, chosen, given["encoder"])
    return {**given, **values, **chosen}


def _booster(preset: str, chosen: Mapping, encoder: str) -> dict:
    """BP-Booster's hyper-parameters, which depend on how prototypes start and on the encoder."""
    init = chosen.get("init", "random")
    if (init == "programs") != ("programs" in chosen):
        raise InputError("--init programs and --programs FILE.gmt need each other; give both")
    if init == "programs" and "num_prototypes" in chosen:
        raise InputError(
            "--num-prototypes applies only to --init random; with programs there are as many "
            "prototypes as pathways with ten spatially variable genes"
        )
    values = BOOSTER | {"lr": BOOSTER_LR[preset][init]}
    return values | (
        BOOSTER_FOR_FEW if preset == "small" else BOOSTER_SIZES.get(encoder.partition("@")[0], {})
    )
