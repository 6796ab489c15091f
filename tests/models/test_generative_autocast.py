"""Losses of STFlow and Stem where the network's products are of a lower precision."""

import pytest
import torch

from histokit.models import StemModel, STFlowModel
from histokit.models.base import Batch, Target

SIZES = {"input_dim": 12, "num_genes": 7, "hidden_dim": 16, "num_layers": 1}


@pytest.mark.parametrize("kind", [STFlowModel, StemModel])
def test_the_loss_is_float32_and_nearly_the_same(kind):
    model = kind(**SIZES)
    x, coords, values = torch.randn(20, 12), torch.rand(20, 2) * 900, torch.rand(20, 7)
    batch = Batch(x, torch.tensor([-1]), None, coords)
    targets = [Target(values, torch.ones(7, dtype=torch.bool))]
    for mode in (True, False):
        model.train(mode)
        losses = []
        for lower in (None, torch.bfloat16):
            torch.manual_seed(2)
            losses.append(model.loss(batch, targets, lower))
        assert losses[1].dtype == torch.float32
        torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0.02)
        if mode:
            losses[1].backward()
