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
# ST-Net's last layer, trained as the other networks are: AdamW moves a weight by up to lr a step,
# and a prediction by a thousand times that. "literal" is the authors' SGD, for as many epochs as
# held-out patients choose; their rate is for sums over 32 spots, not over a slide's.
STNET = PAPER | {"lr": 1e-4, "weight_decay": 0.0, "epochs": 200, "start_at_mean": True}
STNET |= {"refit": True, "stnet_literal": False}
STNET_PRESETS = {
    "paper": STNET,
    "small": STNET | {"standardize": "train"},
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
