"""Features of another device are standardized there; ``meta`` stands for a GPU."""

import pytest
import torch

from histokit.models.base import Standardizer


@pytest.mark.parametrize("how", ["none", "train"])
@pytest.mark.parametrize("blocks", [(), (4, 2)])
def test_moments_follow_the_features(how, blocks):
    fitted = Standardizer.fit(how, torch.randn(9, 6), blocks)
    found = fitted(torch.randn(5, 6, device="meta"))
    assert (found.device.type, found.shape) == ("meta", (5, 6))
