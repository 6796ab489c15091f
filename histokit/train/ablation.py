"""What a part of BP-Booster is worth: the trainings of the paper's Table 4."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from histokit.core.errors import InputError
from histokit.models.presets import BOOSTER
from histokit.train.options import Options

RANDOM = {"init": "random"}
PROGRAMS = {"init": "programs"}
# Rows of Table 4 from its bottom, so that pathways that make no program stop the first training:
# all parts with programs, one loss, random prototypes, one gate, the attention alone, and ridge on
# the features themselves. The literal attention is not in the paper's table.
VARIANTS = {
    "programs": PROGRAMS,
    "programs-literal": PROGRAMS | {"attention": "literal"},
    "regression": PROGRAMS | {"losses": "regression"},
    "reconstruction": PROGRAMS | {"losses": "reconstruction"},
    "random": RANDOM,
    "random-literal": RANDOM | {"attention": "literal"},
    "latent-gate": RANDOM | {"gates": "latent"},
    "prototype-gate": RANDOM | {"gates": "prototype"},
    "no-gate": RANDOM | {"gates": "none"},
    "ridge-hest": {"model": "ridge-hest"},
    "ridge": {"model": "ridge"},
}


def variants(cfg: Options) -> Iterator[Options]:
    """Options of each training, made of those of run_train.py; each gets a folder in ``cfg.run``.

    Options that a row does not set are the same in all; learning rates follow the preset, which has
    one for random prototypes and one for programs.

    Raises:
        InputError: another model, no pathways, or an option that rows set.
    """
    if cfg.model != "bpbooster":
        raise InputError(f"--ablate takes --model bpbooster apart, not {cfg.model}")
    if not cfg.programs:
        raise InputError("--ablate compares prototypes from programs too; give --programs FILE.gmt")
    for name in ("init", "attention", "gates", "losses"):
        if getattr(cfg, name) is not None:
            raise InputError(f"--{name} is what --ablate varies; leave it out")
    own = [name for name in BOOSTER if hasattr(cfg, name)]
    for name, changes in VARIANTS.items():
        options = {"run": str(Path(cfg.run) / name), "ablate": False} | changes
        if "model" in changes:
            shared = {"standardize": cfg.standardize, "preset": "paper", "programs": None}
            options |= dict.fromkeys(own) | shared
        elif options["init"] == "random":
            options["programs"] = None
        else:
            options["num_prototypes"] = None
        yield dataclasses.replace(cfg, **options)
