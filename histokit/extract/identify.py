"""Which encoder a file of weights belongs to."""

from __future__ import annotations

from pathlib import Path

import torch

from histokit.core.weights import INSIDE, misfit, read_state_dict
from histokit.extract.registry import REGISTRY


def encoders_of(path: Path) -> tuple[list[str], str]:
    """Names of the registry's encoders that a file fits.

    Args:
        path: a state dict in any form that ``--weights`` takes.

    Returns:
        Their names, several where readings share their weights, and otherwise the nearest one with
        what keeps it from fitting, in words.

    Raises:
        InputError: the file is missing, damaged or holds no state dict.
    """
    state = read_state_dict(path, (*INSIDE, "teacher"))
    fitting, nearest, fewest = [], "", None
    for name, entry in REGISTRY.items():
        own = entry.keys(dict(state))
        with torch.device("meta"):
            network = entry.build()
        found = misfit(network, own)
        if not found:
            fitting.append(name)
        strange = len(own.keys() ^ network.state_dict().keys())
        if found and (fewest is None or strange < fewest):
            nearest, fewest = f"nearest is {name}: {found}", strange
    return fitting, "" if fitting else nearest
