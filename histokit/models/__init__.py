"""Models of spatial expression; ``from histokit.models import HistoPrism``.

Names are imported when they are asked for, so that the table of models needs no torch.
"""

import importlib

_PLACES = {
    "Average": "average",
    "BLEEP": "bleep",
    "BPBooster": "bpbooster",
    "Batch": "base",
    "DeepSpot": "deepspot",
    "HisToGene": "histogene",
    "HistoPrism": "histoprism",
    "LinearMap": "baselines",
    "MLP": "baselines",
    "MclSTExp": "mclstexp",
    "Mean": "baselines",
    "Merge": "merge",
    "Model": "base",
    "NearestSpots": "retrieval",
    "STFlow": "stflow",
    "STFlowModel": "stflow_model",
    "STNet": "stnet",
    "STPath": "stpath",
    "STPathModel": "stpath_model",
    "Standardizer": "base",
    "TRIPLEX": "triplex",
    "Stem": "stem",
    "StemModel": "stem_model",
    "load": "files",
    "save": "files",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
