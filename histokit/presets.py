"""Named sets of hyper-parameters."""

from __future__ import annotations

# "paper": HistoPrism's appendix B; "release": the configuration in the authors' checkpoints, whose
# 5,000 epochs stretch the warm-up over the first 250.
PRESETS = {
    "paper": {
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
    },
}
PRESETS["release"] = PRESETS["paper"] | {"lr": 5e-5, "epochs": 5000}
# "small": for a few sections. The head starts at zero and the training means, so all that is learnt
# is what deviates from them: from random weights a short training only unlearns their noise. Ten
# epochs suffice then, and the validation sections are trained on in the end.
PRESETS["small"] = PRESETS["paper"] | {
    "epochs": 100,
    "dropout": 0.3,
    "start_at_mean": True,
    "refit": True,
}
