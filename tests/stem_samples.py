"""A small Stem with weights that are nowhere zero, and its input."""

import torch

from histokit.models import StemModel
from histokit.models.base import Batch

SMALL = {"input_dim": 12, "num_genes": 7, "hidden_dim": 16, "num_layers": 2, "stem_steps": 4}
SMALL |= {"stem_batch": 10, "samples": 3}


def stirred(network):
    """Random weights where all are zero at the start."""
    torch.manual_seed(5)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network


def model(**options):
    torch.manual_seed(0)
    found = StemModel(**SMALL | options).double().eval()
    stirred(found.network)
    found.ema.module.load_state_dict(found.network.state_dict())
    return found


def features(n, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, 12, generator=random, dtype=torch.float64)


def one(x):
    return Batch(x, torch.tensor([-1]))
