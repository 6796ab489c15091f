"""Hyper-parameters of the models, by the name of a preset; free of torch as the table is."""

from __future__ import annotations

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
    "neighbors": "none",
    "val_fraction": 0.2,
}
# "small": for a few sections. The head starts at zero and the training means, so all that is learnt
# is what deviates from them: from random weights a short training only unlearns their noise. Ten
# epochs suffice then, and the validation sections are trained on in the end. Features are
# standardized within each slide, which takes the whole slide and carries to other patients.
WITHIN_SLIDES = {"standardize": "slide"}
FOR_FEW = {"epochs": 100, "dropout": 0.3, "start_at_mean": True, "refit": True} | WITHIN_SLIDES
NETWORK_PRESETS = {
    "paper": PAPER,
    "release": PAPER | {"lr": 5e-5, "epochs": 5000},
    "small": PAPER | FOR_FEW,
}
# Closed forms have no other hyper-parameters; HEST-Bench's recipe stays as it is.
CLOSED_PRESETS = {"paper": PAPER, "release": PAPER, "small": PAPER | WITHIN_SLIDES}
RECIPE_PRESETS = dict.fromkeys(CLOSED_PRESETS, PAPER)
LOW_RANK_PRESETS = dict.fromkeys(CLOSED_PRESETS, PAPER | WITHIN_SLIDES | {"neighbors": "mean"})
HISTOPRISM_PRESETS = {
    name: values | {"conditioning": "on", "positions": "none"}
    for name, values in NETWORK_PRESETS.items()
}
# ST-Net's last layer, trained as the other networks are: AdamW moves a weight by up to lr a step,
# and a prediction by a thousand times that. "literal" is the authors' SGD, for as many epochs as
# held-out patients choose; their rate is for sums over 32 spots, not over a slide's.
STNET = PAPER | {"lr": 1e-4, "weight_decay": 0.0, "epochs": 200, "start_at_mean": True}
STNET |= {"refit": True, "stnet_literal": False}
STNET_PRESETS = {
    "paper": STNET,
    "small": STNET | WITHIN_SLIDES,
    "literal": STNET | {"lr": 1e-6, "epochs": 50, "patience": 50, "stnet_literal": True},
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
# STFlow's program, but for Adam without warm-up and steps of two crops of two slides: a step here
# takes the mean of the ten crops of a slide.
STFLOW = PAPER | {
    "weight_decay": 0.0,
    "epochs": 100,
    "patience": 20,
    "dropout": 0.2,
    "hidden_dim": 128,
    "num_layers": 4,
    "stflow_prior": "zinb",
    "stflow_steps": 4,
    "stflow_crops": 10,
    "stflow_unit": "pixels",
    "stflow_output_dropout": True,
    "stflow_project_over": 256,
    "samples": 1,
    "sample_seed": 0,
}
STFLOW_SMALL = STFLOW | {"start_at_mean": True, "refit": True, "stflow_crops": 0, "samples": 8}
STFLOW_SMALL |= {"stflow_unit": "pitch", "stflow_output_dropout": False} | WITHIN_SLIDES
# Stem's program, but for its constant learning rate, its epochs of all spots of all slides, and the
# features of transposed patches that it adds; the number of epochs is fixed.
STEM = PAPER | {
    "lr": 1e-4,
    "weight_decay": 0.0,
    "epochs": 4000,
    "patience": 4000,
    "dropout": 0.0,
    "hidden_dim": 384,
    "num_layers": 12,
    "val_fraction": 0.0,
    "stem_steps": 1000,
    "stem_batch": 256,
    "stem_max_genes": 512,
    "stem_ema": 0.9999,
    "stem_ema_warm_up": False,
    "samples": 20,
    "sample_seed": 0,
}
STEM_SMALL = STEM | {"lr": 1e-3, "epochs": 200, "patience": 30, "hidden_dim": 128, "num_layers": 4}
STEM_SMALL |= {"stem_steps": 25, "stem_ema_warm_up": True, "samples": 8, "start_at_mean": True}
STEM_SMALL |= {"val_fraction": 0.2, "refit": True} | WITHIN_SLIDES
# DeepSpot: its code's defaults; the validation slides, not the training loss, end it after the
# patience of its example. It standardizes each gene, for which the start at the means stands here.
DEEPSPOT = PAPER | {
    "lr": 1e-4,
    "weight_decay": 1e-6,
    "epochs": 10,
    "patience": 3,
    "dropout": 0.3,
    "hidden_dim": 512,
    "start_at_mean": True,
    "deepspot_members": 10,
    "deepspot_scales": 1,
    "deepspot_output_dropout": 0.1,
}
DEEPSPOT_SMALL = DEEPSPOT | FOR_FEW | {"lr": 5e-4, "weight_decay": 0.01, "patience": 30}
DEEPSPOT_SMALL |= {"deepspot_members": 2, "deepspot_output_dropout": 0.0}
# MERGE's graph network: its config.yaml, but for its optimizer (Adam) and its choice of the last
# epoch. The dropout is of edges.
MERGE = PAPER | {
    "lr": 1e-3,
    "weight_decay": 0.0,
    "epochs": 400,
    "patience": 100,
    "dropout": 0.2,
    "merge_widths": "448,384,256",
    "merge_heads": 8,
    "merge_clusters": 5,
}
MERGE_SMALL = MERGE | FOR_FEW | {"dropout": 0.2, "patience": 30}
MERGE_SMALL |= {"merge_widths": "64,64,64", "merge_heads": 4}
# HisToGene's README on features: its authors run Adam at a constant rate for all epochs and hold
# nothing out, which on few sections is too short a training; "small" is tuned.
HISTOGENE = PAPER | {
    "lr": 1e-5,
    "weight_decay": 0.0,
    "epochs": 100,
    "patience": 100,
    "hidden_dim": 1024,
    "feedforward_dim": 2048,
    "num_layers": 4,
    "histogene_heads": 16,
    "histogene_tables": 300,
    "histogene_start": "random",
    "val_fraction": 0.0,
}
HISTOGENE_SMALL = HISTOGENE | FOR_FEW | {"lr": 1e-4, "hidden_dim": 256, "feedforward_dim": 512}
HISTOGENE_SMALL |= {"histogene_heads": 8, "histogene_tables": 128, "histogene_start": "zero"}
HISTOGENE_SMALL |= {"patience": 30, "val_fraction": 0.2}
# TRIPLEX's default configuration, and those of its data sets, but for its schedule, which lowers
# the rate when the score of the test fold no longer rises. A dropout of None: its three rates.
TRIPLEX = PAPER | {
    "lr": 1e-4,
    "weight_decay": 0.01,
    "epochs": 1000,
    "patience": 20,
    "hidden_dim": 512,
    "triplex_config": "default",
    "triplex_project": True,
    "triplex_clamp": True,
    "triplex_neighbors": "array",
    "triplex_ablation": "none",
}
TRIPLEX_PRESETS = {
    "paper": TRIPLEX,
    "small": TRIPLEX
    | FOR_FEW
    | {"hidden_dim": 256, "triplex_config": "small", "triplex_spots": 512}
    | {"triplex_clamp": False},  # genes that stay at zero learn nothing
} | {
    f"paper-{name}": TRIPLEX | {"triplex_config": name, "dropout": None}
    for name in ("andersson", "bryan", "andrew")
}
# kNN on the features themselves, with BLEEP's K. BLEEP: its command line's rates and the paper's
# batch and epochs, but for its constant learning rate and its batches of patches of any slide.
KNN = PAPER | {"retrieval_k": 50, "retrieval_weights": "mean"}
KNN_PRESETS = {"paper": KNN, "small": KNN | WITHIN_SLIDES}
BLEEP = KNN | {
    "lr": 1e-3,
    "weight_decay": 1e-3,
    "epochs": 150,
    "start_at_mean": True,
    "bleep_temperature": 1.0,
    "bleep_batch": 128,
    "bleep_normalize": False,
}
BLEEP_PRESETS = {"paper": BLEEP, "small": BLEEP | FOR_FEW}
# mclSTExp's program: a fixed number of epochs, but for its constant learning rate and its batches.
MCLSTEXP = BLEEP | {
    "lr": 1e-4,
    "epochs": 90,
    "patience": 90,
    "val_fraction": 0.0,
    "retrieval_k": 200,
    "retrieval_weights": "l1",
}
MCLSTEXP_SMALL = MCLSTEXP | FOR_FEW | {"lr": 1e-3, "val_fraction": 0.2, "patience": 30}
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
    "neighbors": "none",
    "val_fraction": 0.0,  # a fixed number of epochs on all training patches
}
# On sections of a few hundred spots the network starts to overfit after a few epochs; chosen on the
# her2st sections of patient C, held out in turn.
BOOSTER_FOR_FEW = {"epochs": 5, "refit": True, "start_at_mean": True, "val_fraction": 0.2}
BOOSTER_FOR_FEW |= WITHIN_SLIDES
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
# Models made of others, which train by their preset "small": what is not given here is theirs, and
# what is given is the same in all of them.
COMPOSED = {"val_fraction": 0.2, "refit": True, "neighbors": "mean"}
