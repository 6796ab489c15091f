"""Options of a training: what ``run_train.py`` offers, and what the library trains by."""

from __future__ import annotations

import dataclasses
import functools

from histokit.core.errors import InputError
from histokit.core.options import Checked, option, required
from histokit.models.registry import OFFERED, PRESET_NAMES, resolve

hyper = functools.partial(option, None, group="network", shown="the preset's")
boost = functools.partial(option, None, group="BP-Booster", shown="the preset's")
FREE = ("machine", "checks")  # groups of options that may differ when a training goes on


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Options of a training."""

    data: str = required("folder that run_extract.py wrote")
    model: str = required("model to train", choices=OFFERED)
    run: str = required("folder of this run, made if absent")
    encoder: str = option(
        "efficientnet-lite0", "encoder whose features are used; A+B sets those of both side by side"
    )
    neighbors: str = option(
        "none",
        "append the mean of the neighboring spots' features (8 neighbors on a square grid, 6 on "
        "a hexagonal one), plain or weighted by similarity",
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
        "paper",
        "defaults for the hyper-parameters below; the paper-<cancer> presets apply only to "
        "bpbooster",
        PRESET_NAMES,
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
    hidden_dim: int | None = hyper("width of the transformer of histoprism or stpath", least=1)
    feedforward_dim: int | None = hyper("width inside the transformer's layers", least=1)
    num_layers: int | None = hyper("layers of the transformer", least=1)
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
    conditioning: str | None = hyper(
        "whether histoprism's patches attend to the slide's cancer code", choices=("on", "off")
    )
    positions: str | None = hyper(
        "what histoprism's patches are told of their place: nothing, or sines and cosines of their "
        "column and row",
        choices=("none", "sinusoidal"),
    )
    ablate_encoder: str | None = option(
        None, "with --ablate, a second encoder for histoprism's ablation", group="network"
    )
    ablate_seeds: int | None = option(
        None,
        "with --ablate, seeds of each of histoprism's trainings, counted from --seed",
        shown="3",
        group="network",
        least=1,
    )
    stnet_literal: bool | None = hyper(
        "train stnet as its authors do: SGD with momentum at a constant rate, without --clip, on "
        "squared errors summed over a slide's spots"
    )
    samples: int | None = hyper("draws of stflow or stem whose mean is the prediction", least=1)
    sample_seed: int | None = hyper(
        "seed of the noise of those draws, whatever --seed is", least=0, most=2**32 - 1
    )
    stflow_prior: str | None = hyper(
        "expression that stflow starts from: zero-inflated counts as published, N(0, 1), or zero",
        choices=("zinb", "gaussian", "zero"),
    )
    stflow_steps: int | None = hyper(
        "network calls of a draw of stflow; 1 is trained on the prior alone", least=1
    )
    stflow_crops: int | None = hyper(
        "random crops of a slide in one step of stflow, as published; 0: the whole slide", least=0
    )
    stflow_unit: str | None = hyper(
        "unit of distances in stflow: pixels as published, or each slide's spot pitch",
        choices=("pixels", "pitch"),
    )
    stflow_output_dropout: bool | None = hyper(
        "in training, also drop genes of stflow's predictions, as published"
    )
    stflow_project_over: int | None = hyper(
        "panels of more genes enter stflow's attention as 50 learned sums of genes", least=1
    )
    stem_steps: int | None = hyper("network calls of a draw of stem", least=2, most=1000)
    stem_batch: int | None = hyper("spots of a slide in one step of stem", least=1)
    stem_max_genes: int | None = hyper(
        "largest panel of stem, whose genes attend to each other: G x G for each spot", least=1
    )
    stem_ema: float | None = hyper(
        "share of the running mean of stem's weights that each step keeps", least=0, below=1
    )
    stem_ema_warm_up: bool | None = hyper(
        "let that mean follow faster at the start; without, it needs over 10,000 steps"
    )
    deepspot_members: int | None = hyper("copies of deepspot's layers, whose mean counts", least=1)
    deepspot_scales: int | None = hyper(
        "sizes of patch in deepspot's features, as many as --scales had when they were extracted; "
        "those after the first are summed",
        least=1,
    )
    deepspot_output_dropout: float | None = hyper(
        "dropout rate of deepspot's outputs", least=0, below=1
    )
    merge_widths: str | None = hyper(
        "widths of a head in each layer of merge but the last, such as 448,384,256"
    )
    merge_heads: int | None = hyper("heads in each layer of merge but the last", least=1)
    merge_clusters: int | None = hyper(
        "clusters of a slide's spots by place, and as many by features, that merge gives a hub; "
        "0: neighbors alone",
        least=0,
    )
    histogene_heads: int | None = hyper("heads of histogene's attention", least=1)
    histogene_tables: int | None = hyper(
        "columns, and rows, of the array for which histogene learns a vector each; spots farther "
        "out share the last",
        least=1,
    )
    histogene_start: str | None = hyper(
        "those vectors start random, as published, so that one that no training slide has stays "
        "so; or zero",
        choices=("random", "zero"),
    )
    triplex_config: str | None = hyper(
        "depths, heads, widths and, without --dropout, dropout rates of triplex's encoders",
        choices=("default", "andersson", "bryan", "andrew", "small"),
    )
    triplex_project: bool | None = hyper(
        "a linear layer before triplex's neighbor and global encoders; published without, for "
        "features of --hidden-dim dimensions"
    )
    triplex_clamp: bool | None = hyper(
        "cut triplex's predictions at zero from below, as published; genes that stay there learn "
        "nothing"
    )
    triplex_neighbors: str | None = hyper(
        "triplex's neighbors: the 5 x 5 array around a spot, or the 24 nearest spots where there "
        "is no array",
        choices=("array", "nearest"),
    )
    triplex_ablation: str | None = hyper(
        "train triplex without the losses of its branches (fusion-only), or without a branch",
        choices=("none", "fusion-only", "no-neighbor", "no-global"),
    )
    triplex_spots: int | None = hyper(
        "spots of a slide that a step of triplex is taught at most, drawn anew each time; the "
        "paper's presets: all",
        least=1,
    )
    retrieval_k: int | None = hyper(
        "training spots that a prediction of knn, bleep or mclstexp is the mean of", least=1
    )
    retrieval_weights: str | None = hyper(
        "how those count: alike, by their distance to the patch (softmax, l1), or loki: all "
        "training spots by their cosine",
        choices=("mean", "softmax", "l1", "loki"),
    )
    bleep_temperature: float | None = hyper("temperature of bleep's or mclstexp's loss", above=0)
    bleep_batch: int | None = hyper(
        "patches of a slide that bleep or mclstexp contrasts at a time", least=2
    )
    bleep_normalize: bool | None = hyper(
        "contrast embeddings of length one in that loss; published without"
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
        "standardize genes and programs first, without which the programs' profiles hardly differ"
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
    gates: str | None = boost("which gates to use", choices=("both", "prototype", "latent", "none"))
    losses: str | None = boost(
        "which losses to train with", choices=("both", "reconstruction", "regression")
    )
    loss_scale: str | None = boost(
        "mean of squares over all entries, or their sum over the dimensions of a patch as the "
        "paper prints it, by which reconstruction weighs D / num_hvgs times as much",
        choices=("mean", "sum"),
    )
    readout: str | None = boost(
        "regression on the refined embedding: alpha by cross-validation for all genes or each, or "
        "HEST-Bench's",
        choices=("ridge", "ridge-by-gene", "ridge-hest"),
    )
    ablate: bool = option(
        False,
        "run the ablations of the model's paper, one subfolder of RUN each: bpbooster's Table 4, "
        "which requires --programs, or histoprism's Tables 3 and 4 (cross-attention, positions, "
        "--ablate-encoder, --ablate-seeds)",
        group="BP-Booster",
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
        return type(self)(**resolve(dataclasses.asdict(self)))
