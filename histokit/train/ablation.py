"""What parts of a model are worth: the trainings that BP-Booster's and HistoPrism's papers compare.

``run_eval.py --run RUN/*`` sets BP-Booster's side by side, and ``run_eval.py --run RUN/*-seed-*``
HistoPrism's, whose report averages over seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from histokit.core.errors import InputError
from histokit.core.files import file_id
from histokit.models.presets import BOOSTER
from histokit.train.options import Options

RANDOM = {"init": "random"}
PROGRAMS = {"init": "programs"}
# Rows of Table 4 from its bottom, so that pathways that make no program stop the first training:
# all parts with programs, one loss, random prototypes, one gate, the attention alone, and ridge on
# the features themselves, which is ridge-hest-no-pca. The literal attention and the two other
# ridges are not in the paper's table.
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
    "ridge-hest-no-pca": {"model": "ridge-hest-no-pca"},
    "ridge-hest": {"model": "ridge-hest"},
    "ridge": {"model": "ridge"},
}
SEEDS = 3


def variants(cfg: Options) -> Iterator[Options]:
    """Options of each training, made of those of run_train.py; each gets a folder in ``cfg.run``.

    Raises:
        InputError: another model, an option that rows set, or one that the ablation needs.
    """
    if cfg.model not in ABLATIONS:
        known = " apart, or ".join(ABLATIONS)
        raise InputError(f"--ablate takes --model {known}, not {cfg.model}")
    varied, rows = ABLATIONS[cfg.model]
    for name in varied:
        if getattr(cfg, name) is not None:
            raise InputError(f"--{name} is what --ablate varies; leave it out")
    yield from rows(cfg)


def booster_rows(cfg: Options) -> Iterator[Options]:
    """BP-Booster's Table 4.

    Options that a row does not set are the same in all; learning rates follow the preset, which has
    one for random prototypes and one for programs.
    """
    if not cfg.programs:
        raise InputError("--ablate compares prototypes from programs too; give --programs FILE.gmt")
    for name in ("ablate_encoder", "ablate_seeds"):
        if getattr(cfg, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} applies only to --model histoprism")
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


def histoprism_rows(cfg: Options) -> Iterator[Options]:
    """HistoPrism's Tables 3 and 4: cross-attention x positions x encoder, each with every seed.

    A seed draws weights, dropout, order and, where the split names none, the validation patients.
    """
    encoders = [cfg.encoder]
    if cfg.ablate_encoder == cfg.encoder:
        raise InputError(f"--ablate-encoder {cfg.encoder} is --encoder too; name another one")
    if cfg.ablate_encoder:
        encoders.insert(0, cfg.ablate_encoder)  # one that was not extracted ends the first training
    seeds = range(cfg.seed, cfg.seed + (cfg.ablate_seeds or SEEDS))
    common = {"ablate": False, "ablate_encoder": None, "ablate_seeds": None}
    # seeds change slowest: a table of the first is whole before the second begins
    factors = product(seeds, encoders, ("on", "off"), ("none", "sinusoidal"))
    for seed, encoder, conditioning, positions in factors:
        name = f"cross-attention-{conditioning}-positions-{positions}-seed-{seed}"
        name = f"{file_id(encoder)}-{name}" if len(encoders) > 1 else name
        own = {"run": str(Path(cfg.run) / name), "seed": seed, "encoder": encoder}
        own |= {"conditioning": conditioning, "positions": positions}
        yield dataclasses.replace(cfg, **common | own)


# What the rows of a model's ablation set, and the rows.
ABLATIONS = {
    "bpbooster": (("init", "attention", "gates", "losses"), booster_rows),
    "histoprism": (("conditioning", "positions"), histoprism_rows),
}
