r"""Train a model on an extracted cohort, fold by fold.

    python run_train.py --data data/her2st --model histoprism --folds leave-one-slide-out \
        --run runs/her2st-histoprism

    python run_train.py --data data/her2st --model bpbooster --init programs \
        --programs h.all.v2025.1.Hs.symbols.gmt --folds leave-one-slide-out --run runs/booster

Given again, the same command goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

from histokit import __version__
from histokit.core.errors import InputError
from histokit.core.options import Checked, option, required, run
from histokit.models.registry import NAMES, resolve

hyper = functools.partial(option, None, group="network", shown="the preset's")
boost = functools.partial(option, None, group="BP-Booster", shown="the preset's")
FREE = ("machine", "checks")  # groups of options that may differ when a training goes on
RIDGES = ("ridge-hest", "ridge", "ridge-no-pca", "ridge-by-gene")
MODELS = ("mean", *RIDGES, "mlp", "histoprism", "bpbooster")


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Options of a training."""

    data: str = required("folder that run_extract.py wrote")
    model: str = required("model to train", choices=MODELS)
    run: str = required("folder of this run, made if absent")
    encoder: str = option(
        "efficientnet-lite0", "encoder whose features are used; A+B sets those of both side by side"
    )
    neighbors: str = option(
        "none",
        "what stands beside a patch's features: the mean of the neighbouring spots' (eight on a "
        "square grid, six on a hexagonal one), or their mean weighted by likeness",
        choices=("none", "mean", "attention"),
    )
    target: str = option(
        "counts10k-log1p",
        "scale of the targets",
        choices=("counts10k-log1p", "log1p", "log2"),
    )
    panel: str = option(
        "common",
        "genes to predict: common (measured on all training slides), detected (and seen in at "
        "least 10 % of the spots of each), union (measured on any), or a file, one gene a line",
    )
    hvg: str = option(
        "variance",
        "how highly variable genes are ranked on the training spots: variance of counts10k-log1p, "
        "or scanpy's normalised dispersion",
        choices=("variance", "dispersion"),
    )
    folds: str = option(
        "auto",
        "a number of folds that share no patient, auto (4, or one a patient or a slide where "
        "there are fewer), leave-one-slide-out, leave-one-patient-out, a CSV "
        "slide_id,split[,fold], or a folder of HEST-Bench or "
        "HistoPrism splits",
    )
    cancer_codes: str = option(
        "split",
        "oncotree codes of a published split that brings its own (HistoPrism's, gaps filled), or "
        "always those of the cohort",
        choices=("split", "cohort"),
    )
    val_fraction: float = option(
        0.2,
        "share of the training patients that validate, where the split names no validation; "
        "networks and bpbooster alone, closed forms train on all",
        least=0,
        below=1,
    )
    seed: int = option(
        0, "seed of weights, dropout, order and validation choice", least=0, most=2**32 - 1
    )
    preset: str = option(
        "paper",
        "hyper-parameters below that are not given; paper-idc to paper-prad are of bpbooster alone",
        NAMES,
    )
    lr: float | None = hyper("peak learning rate", above=0)
    weight_decay: float | None = hyper("AdamW weight decay", least=0)
    standardize: str | None = hyper(
        "features to mean 0 and deviation 1: over the training patches, each slide alone, or none",
        choices=("train", "slide", "none"),
    )
    epochs: int | None = hyper("epochs at most; the learning-rate schedule spans them", least=1)
    patience: int | None = hyper("epochs without a better validation MSE before stopping", least=1)
    dropout: float | None = hyper("dropout rate", least=0, below=1)
    hidden_dim: int | None = hyper("width of HistoPrism's encoder", least=1)
    feedforward_dim: int | None = hyper("width inside HistoPrism's encoder layers", least=1)
    num_layers: int | None = hyper("HistoPrism's encoder layers", least=1)
    refit: bool | None = hyper(
        "after early stopping, train again on training and validation slides for as many epochs"
    )
    start_at_mean: bool | None = hyper(
        "start the head at zero weights and the training mean of each gene"
    )
    clip: float = option(1.0, "largest norm of the gradient", group="network", above=0)
    slides_per_step: int = option(
        1,
        "slides packed in one step, of each rank where torchrun starts several",
        group="network",
        least=1,
    )
    max_patches: int | None = option(
        None,
        "patches that attend to each other at most, for slides too large for all pairs; a larger "
        "one is taken apart into groups spread over it, which is an approximation",
        shown="all of a slide",
        group="network",
        least=1,
    )
    autocast: str = option(
        "none",
        "type of the network's matrix products; the loss stays float32",
        choices=("none", "bfloat16", "float16"),
        group="network",
    )
    init: str | None = boost(
        "what prototypes start as: N(0, 1), or pathways of spatially variable genes",
        choices=("random", "programs"),
    )
    programs: str | None = option(
        None, "pathways for that: a GMT file or a library's name for gseapy", group="BP-Booster"
    )
    standardize_programs: bool | None = boost(
        "standardise genes and programs first, without which the programs' profiles hardly differ"
    )
    num_svgs: int | None = boost("spatially variable genes that make programs", least=1)
    num_prototypes: int | None = boost("random prototypes", least=1)
    latent_dim: int | None = boost("dimensions of prototypes and refined embedding", least=1)
    num_hvgs: int | None = boost("highly variable genes that guide the training", least=1)
    batch_size: int | None = boost("patches in one step", least=1)
    attention: str | None = boost(
        "who attends: patches to prototypes, or the paper's equations to the letter, in which "
        "prototypes hardly matter",
        choices=("prototypes", "literal"),
    )
    gates: str | None = boost("gates that exist", choices=("both", "prototype", "latent", "none"))
    losses: str | None = boost("losses in use", choices=("both", "reconstruction", "regression"))
    readout: str | None = boost(
        "regression on the refined embedding: alpha by cross-validation for all genes or each, or "
        "HEST-Bench's",
        choices=("ridge", "ridge-by-gene", "ridge-hest"),
    )
    ablate: bool = option(
        False,
        "train what the paper's Table 4 compares, each into a folder in RUN; with --programs",
        group="BP-Booster",
    )
    allow_leakage: bool = option(
        False,
        "train although a test slide shares its patient or image with training or validation",
        group="checks",
    )
    allow_missing: bool = option(
        False, "train although slides of the source are not extracted yet", group="checks"
    )
    controls: bool = option(
        False,
        "also train the model five times on shuffled spots (holding all training counts in "
        "memory) and a line on the library size, in RUN/controls; run_eval.py shows them beside "
        "the run",
        group="checks",
    )
    cache_gb: float = option(
        4.0,
        "memory for slides kept between epochs, in GB, of each rank",
        group="machine",
        least=0,
        most=1_000_000,
    )
    workers: int = option(
        1,
        "processes that read slides ahead where they do not fit that; 0: none",
        group="machine",
        least=0,
        most=1024,
    )
    on_error: str = option(
        "stop",
        "a training slide that cannot be read, or a disk too full for a checkpoint: stop, or skip "
        "it, say so and go on",
        choices=("stop", "skip"),
        group="machine",
    )
    device: str = option("cpu", "torch device, such as cpu or cuda", group="machine")
    kernels: str = option(
        "auto",
        "auto (compiled kernels where they serve the device), kernels (fail without), or reference "
        "(plain PyTorch)",
        choices=("auto", "kernels", "reference"),
        group="machine",
    )
    checkpoint_seconds: float = option(
        30.0, "seconds between checkpoints", group="machine", least=0
    )
    tensorboard: bool = option(False, "also write TensorBoard events", group="machine")


def main(cfg: Options) -> None:
    """Train every fold that is not trained yet."""
    from histokit import audit, ops
    from histokit.core import distributed
    from histokit.core.files import folder_lock, make_folder, remove_leftovers
    from histokit.data.cohort import Cohort, check_alike, refuse_missing
    from histokit.data.views import LABELS
    from histokit.train import ablation, controls

    distributed.check_device(cfg.device)
    team = distributed.start(cfg.device)
    ops.use(cfg.kernels)
    if cfg.ablate:
        for variant in ablation.variants(cfg):
            print(f"ablation: {variant.run}")
            main(variant)
        return
    cfg = Options(**resolve(dataclasses.asdict(cfg)))
    if cfg.max_patches is not None and cfg.model != "histoprism":
        raise InputError(
            f"--max-patches is of histoprism alone; no patch of {cfg.model} sees others"
        )
    cohort = Cohort(cfg.data, cfg.encoder, cfg.neighbors)
    refuse_missing(cohort, cfg.allow_missing)
    folds = _folds(cohort, cfg)
    if team.first:
        _say(cohort, folds)
    check_alike(cohort, folds)
    leaks = audit.training_leaks(cohort, folds)
    if not cfg.allow_leakage:
        audit.refuse_leakage(leaks)
    folder = make_folder(cfg.run)
    with folder_lock(folder) if team.first else nullcontext():
        if team.first:
            remove_leftovers(folder)
            _claim(folder, cfg, cohort, folds)
            audit.audit_training(cohort, folds, cfg.panel, folder / "audit", leaks)
        team.wait()
        key = _gene_key(cohort, folds, folder, team)
        _train(folder, cfg, cohort, folds, team, key)
        for control in controls.trainings(cohort, cfg, folder) if cfg.controls else ():
            place, note = Path(control.options.run), control.note
            own = control.folds(_folds(cohort, control.options))
            if team.first:
                print(f"control: {LABELS[note['kind']]}")
                _claim(make_folder(place), control.options, control.cohort, own, note)
            team.wait()
            _train(place, control.options, control.cohort, own, team, key, control.taught)
    if team.first:
        print(f"wrote {cfg.model} for {len(folds)} folds to {folder}")


def _gene_key(cohort, folds: list, folder: Path, team):
    """How the genes of all slides in the folds are joined; said, and written into the run."""
    from histokit.core.files import atomic_path
    from histokit.data.gene_keys import gene_key

    members = dict.fromkeys(s for f in folds for s in (*f.train, *f.val, *f.test))
    key = gene_key((slide, cohort.gene_table(slide)) for slide in members)
    if team.first:
        print(key)
        with atomic_path(folder / "genes_matched.csv") as temporary:
            key.matched.to_csv(temporary)
    return key


def _folds(cohort, cfg: Options) -> list:
    """The folds of a training; closed forms never stop early and train on all slides."""
    from histokit.data.splits import make_folds
    from histokit.models import NETWORKS

    stops_early = cfg.model in NETWORKS or cfg.model == "bpbooster"
    fraction = cfg.val_fraction if stops_early else 0.0
    folds = make_folds(cohort.slides, cfg.folds, fraction, cfg.seed)
    if cfg.cancer_codes == "cohort":
        return [dataclasses.replace(fold, cancers={}) for fold in folds]
    return folds


def _train(folder: Path, cfg: Options, cohort, folds: list, team, key, taught=None) -> None:
    """All ranks train a network together; of the other models each takes folds of its own.

    ``taught`` makes of a fold the cohort that the model learns from, where it is another.
    """
    from histokit.core.distributed import ALONE
    from histokit.core.files import make_folder
    from histokit.models import NETWORKS
    from histokit.train.fold import train_fold

    together = cfg.model in NETWORKS
    for fold in folds if together else team.share(folds):
        place = make_folder(folder / "folds" / fold.id)
        own = cohort.with_cancers(fold.cancers)
        learnt = taught(fold).with_cancers(fold.cancers) if taught else own
        train_fold(own, fold, cfg, place, team if together else ALONE, learnt, key)
    team.wait()


def _say(cohort, folds: list) -> None:
    """Which slides no fold uses, and where a split's cancer codes are not the cohort's."""
    from histokit.data.splits import idle_slides

    if idle := idle_slides(cohort.slides, folds):
        print(f"{len(idle)} slides of the cohort are in no fold, such as {idle[0]}")
    for fold in folds:
        known = cohort.slides["cancer"]
        other = [s for s, code in fold.cancers.items() if s in known and known[s] != code]
        if other:
            print(
                f"fold {fold.name}: the split gives {len(other)} slides another cancer code than "
                f"the cohort does, such as {other[0]} ({fold.cancers[other[0]]}, not "
                f"{known[other[0]]}); the split's are used, --cancer-codes cohort keeps the others"
            )


def _claim(folder: Path, cfg: Options, cohort, folds: list, control: dict | None = None) -> None:
    """Write config.json, or check that the run in the folder is this one."""
    from histokit.core.files import read_json, write_json
    from histokit.data.features import difference, feature_identity
    from histokit.data.splits import describe_folds

    free = {f.name for f in dataclasses.fields(cfg) if f.metadata["group"] in FREE} | {"run"}
    options = dataclasses.asdict(cfg) | {"data": str(Path(cfg.data).resolve())}
    config = {
        "options": options,
        **describe_folds(folds),
        "features": feature_identity(cohort.provenance(folds[0].train[0])),
        "environment": {name: version(name) for name in ("torch", "numpy", "scikit-learn")}
        | {"python": platform.python_version(), "histokit": __version__},
    }
    if control:
        config["control"] = control
    path = folder / "config.json"
    if path.is_file():
        there = read_json(path)
        defaults = {f.name: f.default for f in dataclasses.fields(cfg)}
        for name, value in options.items():
            # an option newer than the run in the folder had its default then
            known = there["options"].get(name, defaults[name])
            known = str(Path(known).resolve()) if name == "data" else known
            if name not in free and known != value:
                raise InputError(
                    f"{folder} holds a run with --{name.replace('_', '-')} "
                    f"{there['options'].get(name)}, not {value}; give another --run or delete it"
                )
        # what a run in the folder does not record, because it is older, is not compared
        other = [
            name
            for name in ("folds", "fold_names", "fold_slides")
            if there.get(name, config[name]) != config[name]
        ]
        if other or difference(there["features"], config["features"]):
            name = other[0] if other else "features"
            raise InputError(
                f"{folder} was begun with other {name.replace('_', ' ')} ({there[name]}, now "
                f"{config[name]}); give another --run or delete it"
            )
    else:
        write_json(path, config)


if __name__ == "__main__":
    run(main, Options, __doc__)
