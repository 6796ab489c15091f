"""Named sets of hyper-parameters."""

from __future__ import annotations

from histokit.core.errors import InputError

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
    "readout": "ridge",
    "standardize_programs": False,
    "refit": False,
    "start_at_mean": False,
    "standardize": "none",
}
# "small" of BP-Booster: on sections of a few hundred spots the network starts to overfit after a
# few epochs; chosen on the her2st sections of patient C, held out in turn.
BOOSTER_SMALL = {"epochs": 5, "refit": True, "start_at_mean": True, "standardize": "train"}
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
BOOSTER_SIZES = {
    "resnet50": {"latent_dim": 512},
    "conch_v1": {"latent_dim": 128, "num_prototypes": 32},
    "uni_v1": {"latent_dim": 128, "num_prototypes": 32},
}
NAMES = tuple(dict.fromkeys([*PRESETS, *BOOSTER_LR]))


def resolve(given: dict) -> dict:
    """Options of a training with the preset's in place of those not given.

    Args:
        given: every option of run_train.py by name; None where it is not given.

    Raises:
        InputError: a preset of another model, or options that do not go together.
    """
    preset, model = given["preset"], given["model"]
    chosen = {name: value for name, value in given.items() if value is not None}
    if model != "bpbooster":
        foreign = [n for n in BOOSTER if n in chosen and n not in PRESETS["paper"]]
        foreign += ["programs"] if "programs" in chosen else []
        if foreign:
            raise InputError(
                f"--{foreign[0].replace('_', '-')} is of --model bpbooster; {model} has no such "
                "option"
            )
        if preset not in PRESETS:
            raise InputError(
                f"--preset {preset} is of --model bpbooster; {model} has {', '.join(PRESETS)}"
            )
        return given | PRESETS[preset] | chosen
    if preset not in BOOSTER_LR:
        raise InputError(
            f"--preset {preset} is not of bpbooster, which has {', '.join(BOOSTER_LR)}"
        )
    init = chosen.get("init", "random")
    if (init == "programs") != ("programs" in chosen):
        raise InputError("--init programs and --programs FILE.gmt need each other; give both")
    if init == "programs" and "num_prototypes" in chosen:
        raise InputError(
            "--num-prototypes is of --init random; with programs there are as many prototypes as "
            "pathways with ten spatially variable genes"
        )
    sizes = BOOSTER_SIZES.get(given["encoder"], {}) if preset != "small" else {}
    values = BOOSTER | {"lr": BOOSTER_LR[preset][init]} | sizes
    if preset == "small":
        values |= BOOSTER_SMALL
    return given | values | chosen
