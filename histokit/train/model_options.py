"""Options that belong to some models; the table of models says to which."""

from __future__ import annotations

import dataclasses
import functools

from histokit.core.options import Checked, option

_histoprism = functools.partial(option, None, group="histoprism", shown="the preset's")
_bpbooster = functools.partial(option, None, group="bpbooster", shown="the preset's")
_stnet = functools.partial(option, None, group="stnet", shown="the preset's")
_knn = functools.partial(option, None, group="knn, bleep and mclstexp", shown="the preset's")
_bleep_and_mclstexp = functools.partial(
    option, None, group="bleep and mclstexp", shown="the preset's"
)
_deepspot = functools.partial(option, None, group="deepspot", shown="the preset's")
_merge = functools.partial(option, None, group="merge", shown="the preset's")
_histogene = functools.partial(option, None, group="histogene", shown="the preset's")
_triplex = functools.partial(option, None, group="triplex", shown="the preset's")
_stflow_and_stem = functools.partial(option, None, group="stflow and stem", shown="the preset's")
_stflow = functools.partial(option, None, group="stflow", shown="the preset's")
_stem = functools.partial(option, None, group="stem", shown="the preset's")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions(Checked):
    """Options of single models, in groups by the model."""

    max_patches: int | None = option(
        None,
        "patches that attend to each other at most, for slides too large for all pairs; a larger "
        "one is taken apart into groups spread over it, which is an approximation",
        shown="all of a slide",
        group="histoprism",
        least=1,
    )
    conditioning: str | None = _histoprism(
        "whether histoprism's patches attend to the slide's cancer code", choices=("on", "off")
    )
    positions: str | None = _histoprism(
        "what histoprism's patches are told of their place: nothing, or sines and cosines of their "
        "column and row",
        choices=("none", "sinusoidal"),
    )
    init: str | None = _bpbooster(
        "what prototypes start as: N(0, 1), or pathways of spatially variable genes",
        choices=("random", "programs"),
    )
    programs: str | None = option(
        None, "pathways for that: a GMT file or a library's name for gseapy", group="bpbooster"
    )
    standardize_programs: bool | None = _bpbooster(
        "standardize genes and programs first, without which the programs' profiles hardly differ"
    )
    num_svgs: int | None = _bpbooster("spatially variable genes that make programs", least=1)
    num_prototypes: int | None = _bpbooster("random prototypes", least=1)
    latent_dim: int | None = _bpbooster("dimensions of prototypes and refined embedding", least=1)
    num_hvgs: int | None = _bpbooster("highly variable genes that guide the training", least=1)
    batch_size: int | None = _bpbooster("patches in one step", least=1)
    attention: str | None = _bpbooster(
        "who attends: patches to prototypes, or the paper's equations to the letter, in which "
        "prototypes hardly matter",
        choices=("prototypes", "literal"),
    )
    gates: str | None = _bpbooster(
        "which gates to use", choices=("both", "prototype", "latent", "none")
    )
    losses: str | None = _bpbooster(
        "which losses to train with", choices=("both", "reconstruction", "regression")
    )
    loss_scale: str | None = _bpbooster(
        "mean of squares over all entries, or their sum over the dimensions of a patch as the "
        "paper prints it, by which reconstruction weighs D / num_hvgs times as much",
        choices=("mean", "sum"),
    )
    readout: str | None = _bpbooster(
        "regression on the refined embedding: alpha by cross-validation for all genes or each, or "
        "HEST-Bench's",
        choices=("ridge", "ridge-by-gene", "ridge-hest"),
    )
    ablate_encoder: str | None = option(
        None, "with --ablate, a second encoder for histoprism's ablation", group="ablations"
    )
    ablate_seeds: int | None = option(
        None,
        "with --ablate, seeds of each of histoprism's trainings, counted from --seed",
        shown="3",
        group="ablations",
        least=1,
    )
    ablate: bool = option(
        False,
        "run the ablations of the model's paper, one subfolder of RUN each: bpbooster's Table 4, "
        "which requires --programs, or histoprism's Tables 3 and 4 (cross-attention, positions, "
        "--ablate-encoder, --ablate-seeds)",
        group="ablations",
    )
    stnet_literal: bool | None = _stnet(
        "train stnet as its authors do: SGD with momentum at a constant rate, without --clip, on "
        "squared errors summed over a slide's spots"
    )
    retrieval_k: int | None = _knn(
        "training spots that a prediction of knn, bleep or mclstexp is the mean of", least=1
    )
    retrieval_weights: str | None = _knn(
        "how those count: alike, by their distance to the patch (softmax, l1), or loki: all "
        "training spots by their cosine",
        choices=("mean", "softmax", "l1", "loki"),
    )
    bleep_temperature: float | None = _bleep_and_mclstexp(
        "temperature of bleep's or mclstexp's loss", above=0
    )
    bleep_batch: int | None = _bleep_and_mclstexp(
        "patches of a slide that bleep or mclstexp contrasts at a time", least=2
    )
    bleep_normalize: bool | None = _bleep_and_mclstexp(
        "contrast embeddings of length one in that loss; published without"
    )
    deepspot_members: int | None = _deepspot(
        "copies of deepspot's layers: of the first the median counts, of the last the mean", least=1
    )
    deepspot_scales: int | None = _deepspot(
        "sizes of patch in deepspot's features, as many as --scales had when they were extracted; "
        "those after the first are summed",
        least=1,
    )
    deepspot_output_dropout: float | None = _deepspot(
        "dropout rate of deepspot's outputs", least=0, below=1
    )
    merge_widths: str | None = _merge(
        "widths of a head in each layer of merge but the last, such as 448,384,256"
    )
    merge_heads: int | None = _merge("heads in each layer of merge but the last", least=1)
    merge_clusters: int | None = _merge(
        "clusters of a slide's spots by place, and as many by features, that merge gives a hub; "
        "0: neighbors alone",
        least=0,
    )
    histogene_heads: int | None = _histogene("heads of histogene's attention", least=1)
    histogene_tables: int | None = _histogene(
        "columns, and rows, of the array for which histogene learns a vector each; spots farther "
        "out share the last",
        least=1,
    )
    histogene_start: str | None = _histogene(
        "those vectors start random, as published, so that one that no training slide has stays "
        "so; or zero",
        choices=("random", "zero"),
    )
    triplex_config: str | None = _triplex(
        "depths, heads, widths and, without --dropout, dropout rates of triplex's encoders",
        choices=("default", "andersson", "bryan", "andrew", "small"),
    )
    triplex_project: bool | None = _triplex(
        "a linear layer before triplex's neighbor and global encoders; published without, for "
        "features of --hidden-dim dimensions"
    )
    triplex_clamp: bool | None = _triplex(
        "cut triplex's predictions at zero from below, as published; genes that stay there learn "
        "nothing"
    )
    triplex_neighbors: str | None = _triplex(
        "triplex's neighbors: the 5 x 5 array around a spot, or the 24 nearest spots where there "
        "is no array",
        choices=("array", "nearest"),
    )
    triplex_ablation: str | None = _triplex(
        "train triplex without the losses of its branches (fusion-only), or without a branch",
        choices=("none", "fusion-only", "no-neighbor", "no-global"),
    )
    triplex_spots: int | None = _triplex(
        "spots of a slide that a step of triplex is taught at most, drawn anew each time; the "
        "paper's presets: all",
        least=1,
    )
    samples: int | None = _stflow_and_stem(
        "draws of stflow or stem whose mean is the prediction", least=1
    )
    sample_seed: int | None = _stflow_and_stem(
        "seed of the noise of those draws, whatever --seed is", least=0, most=2**32 - 1
    )
    stflow_prior: str | None = _stflow(
        "expression that stflow starts from: zero-inflated counts as published, N(0, 1), or zero",
        choices=("zinb", "gaussian", "zero"),
    )
    stflow_steps: int | None = _stflow(
        "network calls of a draw of stflow; 1 is trained on the prior alone", least=1
    )
    stflow_crops: int | None = _stflow(
        "random crops of a slide in one step of stflow, as published; 0: the whole slide", least=0
    )
    stflow_unit: str | None = _stflow(
        "unit of distances in stflow: pixels as published, or each slide's spot pitch",
        choices=("pixels", "pitch"),
    )
    stflow_output_dropout: bool | None = _stflow(
        "in training, also drop genes of stflow's predictions, as published"
    )
    stflow_project_over: int | None = _stflow(
        "panels of more genes enter stflow's attention as 50 learned sums of genes", least=1
    )
    stem_steps: int | None = _stem("network calls of a draw of stem", least=2, most=1000)
    stem_batch: int | None = _stem("spots of a slide in one step of stem", least=1)
    stem_max_genes: int | None = _stem(
        "largest panel of stem, whose genes attend to each other: G x G for each spot", least=1
    )
    stem_ema: float | None = _stem(
        "share of the running mean of stem's weights that each step keeps", least=0, below=1
    )
    stem_ema_warm_up: bool | None = _stem(
        "let that mean follow faster at the start; without, it needs over 10,000 steps"
    )
