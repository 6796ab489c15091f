"""Options of a training: what ``run_train.py`` offers, and what the library trains by."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from histokit.core.errors import InputError
from histokit.core.options import option, required
from histokit.core.precision import PRECISIONS
from histokit.models.registry import DEFAULT, OFFERED, PRESET_NAMES, resolve
from histokit.train.model_options import ModelOptions

hyper = functools.partial(option, None, group="network", shown="the preset's")
DEFAULT_ENCODER = "efficientnet-lite0"
FREE = ("machine", "checks")  # groups of options that may differ when a training goes on


@dataclasses.dataclass(frozen=True)
class Options(ModelOptions):
    """Options of a training; those of single models are in ``ModelOptions``."""

    data: str = required("folder that run_extract.py wrote")
    run: str = required("folder of this run, made if absent")
    model: str = option(
        DEFAULT, "model to train; auto chooses one on training patients", choices=OFFERED
    )
    encoder: str | None = option(
        None,
        "encoder whose features are used; A+B sets those of both side by side",
        shown="the one that was extracted, efficientnet-lite0 among several",
    )
    neighbors: str | None = option(
        None,
        "append the mean of the neighboring spots' features (8 neighbors on a square grid, 6 on "
        "a hexagonal one), plain or weighted by similarity",
        choices=("none", "mean", "attention"),
        shown="the preset's",
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
    unmeasured: str = option(
        "skip",
        "genes that a training slide did not measure: skip them there, or zero, as HistoPrism's "
        "authors fill them",
        choices=("skip", "zero"),
    )
    top_genes: int | None = option(
        None,
        "keep only so many genes of the panel, the most variable on the training slides of a fold",
        shown="all",
        least=1,
    )
    gene_map: str | None = option(
        None,
        "symbols to Ensembl ids where slides name none: a JSON object, such as STPath's "
        "symbol2ensembl.json, or a table symbol,gene_id; the run keeps a copy",
    )
    same_id: str = option(
        "sum",
        "genes of a slide that the map gives one id: sum their counts, keep the first, or log-sum, "
        "which adds log(1 + count) as HistoPrism's authors do",
        choices=("sum", "first", "log-sum"),
    )
    hvg: str = option(
        "variance",
        "how highly variable genes are ranked on the training spots: variance of counts10k-log1p, "
        "or scanpy's normalized dispersion",
        choices=("variance", "dispersion"),
    )
    folds: str = option(
        "auto",
        "a number of folds that share no patient, auto (4, or one a patient or a slide where "
        "there are fewer), leave-one-slide-out, leave-one-patient-out, a CSV "
        "slide_id,split[,fold], a folder of HEST-Bench or HistoPrism splits, or one that holds "
        "several of HistoPrism's",
    )
    cancer_codes: str = option(
        "split",
        "oncotree codes of a published split that brings its own (HistoPrism's, gaps filled); its "
        "unfilled column, whose gaps are no code; or always those of the cohort",
        choices=("split", "unfilled", "cohort"),
    )
    val_fraction: float | None = option(
        None,
        "share of the training patients that validate, where the split names no validation; "
        "networks and bpbooster alone, closed forms train on all",
        shown="0.2; 0 for the paper's presets of bpbooster, which train on all",
        least=0,
        below=1,
    )
    seed: int = option(
        0, "seed of weights, dropout, order and validation choice", least=0, most=2**32 - 1
    )
    preset: str = option(
        "small",
        "defaults for the hyper-parameters below: small suits a few dozen slides, paper is as "
        "published; some models have others",
        PRESET_NAMES,
    )
    lr: float | None = hyper("peak learning rate", above=0)
    weight_decay: float | None = hyper("AdamW weight decay", least=0)
    standardize: str | None = hyper(
        "features to mean 0 and deviation 1: over the training patches, each slide alone, or none",
        choices=("train", "slide", "none"),
    )
    epochs: int | None = hyper("epochs at most; the learning-rate schedule spans them", least=1)
    patience: int | None = hyper("epochs without a better validation loss before stopping", least=1)
    dropout: float | None = hyper("dropout rate", least=0, below=1)
    hidden_dim: int | None = hyper("width of a network that has one", least=1)
    feedforward_dim: int | None = hyper("width inside the layers of a transformer", least=1)
    num_layers: int | None = hyper("layers of a transformer, blocks of a network", least=1)
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
    precision: str = option(
        "float32",
        "of the network's matrix products; the loss stays float32; tf32 is for CUDA",
        choices=(*PRECISIONS, "float16"),
        group="network",
    )
    allow_leakage: bool = option(
        False,
        "train although a test slide shares its patient or image with training or validation",
        group="checks",
    )
    allow_missing: bool = option(
        False,
        "train although slides of the source, or of a published split, are not extracted",
        group="checks",
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
        "on an unreadable training slide or a full disk: stop, or skip with a warning",
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

    def resolved(self) -> Options:
        """With the preset's values in place of those not given; InputError as ``resolve``."""
        if self.ablate_encoder or self.ablate_seeds:
            raise InputError("--ablate-encoder and --ablate-seeds go with --ablate; add it")
        encoder = self.encoder or the_encoder(self.data)
        beside = self.neighbors not in (None, "none")
        if (self.deepspot_scales or 1) > 1 and ("+" in encoder or beside):
            raise InputError(
                "--deepspot-scales takes the features of one encoder apart by sizes of patch, and "
                f"--encoder {encoder} with --neighbors {self.neighbors or 'none'} sets others "
                "beside them; name one encoder without --neighbors, or leave --deepspot-scales out"
            )
        return type(self)(**resolve(dataclasses.asdict(self) | {"encoder": encoder}))


def the_encoder(data: str) -> str:
    """The encoder whose features a folder holds; ``efficientnet-lite0`` of several.

    Raises:
        InputError: several, and none of them is that.
    """
    folder = Path(data) / "features"
    there = sorted({path.parent.name for path in folder.glob("*/*.h5")})
    if DEFAULT_ENCODER in there or not there:
        return DEFAULT_ENCODER
    if len(there) > 1:
        raise InputError(f"{folder} holds features of {', '.join(there)}; name one by --encoder")
    return there[0]
