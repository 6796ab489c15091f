"""Which encoder a file of weights belongs to."""

from __future__ import annotations

from pathlib import Path

from histokit.core.weights import misfit, read_state_dict
from histokit.extract.registry import REGISTRY, on_meta


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
    state = read_state_dict(path)
    fitting, nearest, fewest = [], "", None
    for name, entry in REGISTRY.items():
        own = entry.keys(dict(state))
        network = on_meta(entry)
        found = misfit(network, own)
        if not found:
            fitting.append(name)
        strange = len(own.keys() ^ network.state_dict().keys())
        if found and (fewest is None or strange < fewest):
            nearest, fewest = f"nearest is {name}: {found}", strange
    return fitting, "" if fitting else nearest
