"""Every model, in one table: where it is, how it is trained, what it may be given.

Free of torch, so that ``--help`` need not wait for it. A further model is one more row.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping

from histokit.core.encoder_names import split_maker
from histokit.core.errors import InputError
from histokit.models.presets import (
    BLEEP_PRESETS,
    BOOSTER,
    BOOSTER_FOR_FEW,
    BOOSTER_LR,
    BOOSTER_SIZES,
    CLOSED_PRESETS,
    COMPOSED,
    DEEPSPOT,
    DEEPSPOT_SMALL,
    HISTOGENE,
    HISTOGENE_SMALL,
    HISTOPRISM_PRESETS,
    KNN_PRESETS,
    LOW_RANK_PRESETS,
    MCLSTEXP,
    MCLSTEXP_SMALL,
    MERGE,
    MERGE_SMALL,
    NETWORK_PRESETS,
    PAPER,
    RECIPE_PRESETS,
    STEM,
    STEM_SMALL,
    STFLOW,
    STFLOW_SMALL,
    STNET_PRESETS,
    STPATH,
    STPATH_SMALL,
    TRIPLEX_PRESETS,
)

CLOSED_FORM, NETWORK, BOOSTED = "closed form", "network", "bpbooster"
AVERAGED, CHOSEN = "average", "choice"  # of members, among candidates
AVERAGE = "average"  # the name of the row
# from simple to not
MEMBERS = ("ridge-low-rank", "ridge-by-gene", "mlp", "bpbooster", "histoprism")
CANDIDATES = (*MEMBERS, AVERAGE)
DEFAULT = MEMBERS[0]  # what RESULTS.md finds best over patients


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One model.

    Attributes:
        name: as on the command line.
        place: module and class, ``histokit.models.baselines:LinearMap``.
        trained_by: ``closed form``, ``network`` or ``bpbooster``; see ``histokit.train.fold``; or
            ``average`` or ``choice`` of other models; see ``histokit.train.auto``.
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


def _ridge(name: str, regressor: str, presets: Mapping = CLOSED_PRESETS, **settings) -> ModelSpec:
    place = "histokit.models.baselines:LinearMap"
    return ModelSpec(name, place, CLOSED_FORM, presets, settings=settings, regressor=regressor)


_HISTOGENE = tuple(f"histogene_{name}" for name in ("heads", "tables", "start"))
_TRIPLEX = tuple(
    f"triplex_{name}" for name in ("config", "project", "clamp", "neighbors", "ablation", "spots")
)
_AVERAGE = "histokit.models.average:Average"
_BY_FOLDS = "by grouped cross-validation"
_RETRIEVAL = ("retrieval_k", "retrieval_weights")
_BLEEP = ("bleep_temperature", "bleep_batch", "bleep_normalize")
_WIDTHS = ("hidden_dim", "feedforward_dim", "num_layers")
_DEEPSPOT = ("deepspot_members", "deepspot_scales", "deepspot_output_dropout")
_MERGE = ("merge_widths", "merge_heads", "merge_clusters")
_ABLATED = ("conditioning", "positions")  # what HistoPrism's ablation varies
_DRAWS = ("samples", "sample_seed")
_STFLOW = tuple(name for name in STFLOW if name.startswith("stflow_"))
_STEM = tuple(name for name in STEM if name.startswith("stem_"))
MODELS: Mapping[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            "mean", "histokit.models.baselines:Mean", CLOSED_FORM, regressor="intercept only"
        ),
        _ridge(
            "ridge-hest",
            "StandardScaler, PCA 256, ridge without intercept, alpha 100 / (components x 50)",
            RECIPE_PRESETS,
            recipe="hest",
        ),
        _ridge(
            "ridge-hest-no-pca",
            "ridge without intercept, alpha 100 / (dimensions x 50)",
            RECIPE_PRESETS,
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
        _ridge(
            "ridge-low-rank",
            "StandardScaler, PCA 512, ridge with intercept, targets shrunk toward their first "
            f"components, alpha {_BY_FOLDS}",
            LOW_RANK_PRESETS,
            recipe="low rank",
        ),
        ModelSpec(
            "mlp",
            "histokit.models.baselines:MLP",
            NETWORK,
            own=("hidden_dim",),
            takes=("dropout", "hidden_dim"),
        ),
        ModelSpec(
            "stnet",
            "histokit.models.stnet:STNet",
            NETWORK,
            presets=STNET_PRESETS,
            own=("stnet_literal",),
        ),
        ModelSpec(
            "histoprism",
            "histokit.models.histoprism:HistoPrism",
            NETWORK,
            presets=HISTOPRISM_PRESETS,
            own=(*_WIDTHS, "max_patches", *_ABLATED, "ablate_encoder", "ablate_seeds"),
            takes=("dropout", *_WIDTHS, "max_patches", *_ABLATED),
            conditioned=True,
        ),
        ModelSpec(
            "stpath",
            "histokit.models.stpath_model:STPathModel",
            NETWORK,
            presets={"paper": STPATH, "small": STPATH_SMALL},
            own=_WIDTHS,
            takes=("dropout", *_WIDTHS),
            conditioned=True,
            ranked=200,
        ),
        ModelSpec(
            "stflow",
            "histokit.models.stflow_model:STFlowModel",
            NETWORK,
            presets={"paper": STFLOW, "small": STFLOW_SMALL},
            own=(*_STFLOW, *_DRAWS, "hidden_dim", "num_layers"),
            takes=(*_STFLOW, *_DRAWS, "hidden_dim", "num_layers", "dropout"),
            regressor="a generative network: the mean of its draws",
        ),
        ModelSpec(
            "stem",
            "histokit.models.stem_model:StemModel",
            NETWORK,
            presets={"paper": STEM, "small": STEM_SMALL},
            own=(*_STEM, *_DRAWS, "hidden_dim", "num_layers"),
            takes=(*_STEM, *_DRAWS, "hidden_dim", "num_layers"),
            regressor="a generative network: the mean of its draws",
        ),
        ModelSpec(
            "deepspot",
            "histokit.models.deepspot:DeepSpot",
            NETWORK,
            presets={"paper": DEEPSPOT, "small": DEEPSPOT_SMALL},
            own=("hidden_dim", *_DEEPSPOT),
            takes=("dropout", "hidden_dim", *_DEEPSPOT),
        ),
        ModelSpec(
            "merge",
            "histokit.models.merge:Merge",
            NETWORK,
            presets={"paper": MERGE, "small": MERGE_SMALL},
            own=_MERGE,
            takes=("dropout", *_MERGE),
        ),
        ModelSpec(
            "histogene",
            "histokit.models.histogene:HisToGene",
            NETWORK,
            presets={"paper": HISTOGENE, "small": HISTOGENE_SMALL},
            own=(*_WIDTHS, *_HISTOGENE),
            takes=("dropout", *_WIDTHS, *_HISTOGENE),
        ),
        ModelSpec(
            "triplex",
            "histokit.models.triplex:TRIPLEX",
            NETWORK,
            presets=TRIPLEX_PRESETS,
            own=("hidden_dim", *_TRIPLEX),
            takes=("dropout", "hidden_dim", *_TRIPLEX),
        ),
        ModelSpec(
            "knn",
            "histokit.models.retrieval:NearestSpots",
            CLOSED_FORM,
            presets=KNN_PRESETS,
            own=_RETRIEVAL,
            takes=_RETRIEVAL,
            settings={"recipe": "nearest spots"},
            regressor="the mean of the training spots with the largest cosine",
        ),
        ModelSpec(
            "bleep",
            "histokit.models.bleep:BLEEP",
            NETWORK,
            presets=BLEEP_PRESETS,
            own=(*_RETRIEVAL, *_BLEEP),
            takes=("dropout", *_RETRIEVAL, *_BLEEP),
            regressor="the mean of the training spots with the largest cosine, in embeddings",
        ),
        ModelSpec(
            "mclstexp",
            "histokit.models.mclstexp:MclSTExp",
            NETWORK,
            presets={"paper": MCLSTEXP, "small": MCLSTEXP_SMALL},
            own=(*_RETRIEVAL, *_BLEEP),
            takes=("dropout", *_RETRIEVAL, *_BLEEP),
            regressor="the mean of the training spots with the largest cosine, in embeddings",
        ),
        ModelSpec(
            "bpbooster",
            "histokit.models.bpbooster:BPBooster",
            BOOSTED,
            presets={name: BOOSTER | {"lr": lr["random"]} for name, lr in BOOSTER_LR.items()},
            own=(*(name for name in BOOSTER if name not in PAPER), "programs"),
        ),
        ModelSpec(
            AVERAGE,
            _AVERAGE,
            AVERAGED,
            presets={"paper": COMPOSED, "small": COMPOSED},
            regressor=f"the mean of the predictions of {', '.join(MEMBERS)}",
        ),
        ModelSpec(
            "auto",
            _AVERAGE,
            CHOSEN,
            presets={"paper": COMPOSED, "small": COMPOSED},
            regressor="chosen on held-out training patients, in each fold by itself",
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
        BOOSTER_FOR_FEW if preset == "small" else BOOSTER_SIZES.get(split_maker(encoder)[0], {})
    )
