"""A small STFlow, and slides for it."""

import torch

from histokit.models import STFlow, STFlowModel
from histokit.models.base import Batch
from histokit.models.neighborhoods import Neighborhoods

SMALL = {"input_dim": 12, "num_genes": 7, "hidden_dim": 16, "num_layers": 2, "dropout": 0.0}
DRAWN = SMALL | {"stflow_crops": 0, "samples": 3}


def places(n, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(n, 2, generator=random, dtype=torch.float64) * 5000


def slide(n, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, 12, generator=random, dtype=torch.float64), places(n, seed)


def one(x, coords):
    return Batch(x, torch.tensor([-1]), None, coords)


def predicted(network, x, coords, y, time=0.3):
    near = Neighborhoods.of(coords, 8).to(x)
    return network(x, near, network.edges(near), y, time)


def network(**sizes):
    torch.manual_seed(0)
    return STFlow(12, 7, 16, 2, **sizes).double().eval()


def model(**options):
    torch.manual_seed(0)
    return STFlowModel(**DRAWN | options).double().eval()
