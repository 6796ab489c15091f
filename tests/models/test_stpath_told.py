"""What STPath is told beside the image: expression of some spots, a technology, other slides."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from histokit import models
from histokit.core.errors import InputError
from histokit.data.sparse import csr_tensor
from histokit.models.base import Batch, Target
from histokit.models.official import ORGAN_OF
from histokit.models.stpath import ORGANS, STPath, rescale_coords
from histokit.models.stpath_model import STPathModel

D, G, N = 12, 9, 40
OWN = {"input_dim": D, "num_genes": G, "cancers": ["IDC", "PRAD"], "hidden_dim": 32}
OWN |= {"num_layers": 2, "feedforward_dim": 48}


def spots(n=N, seed=3):
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(n, D)).astype(np.float32))
    coords = torch.from_numpy(rng.random((n, 2)) * 5000)
    values = rng.random((n, G)) * (rng.random((n, G)) < 0.6)
    return features, coords, sp.csr_matrix(values.astype(np.float32))


def test_a_slide_of_a_step_neither_sees_nor_teaches_another():
    model = STPathModel(**OWN, dropout=0.0).train()
    parts = [spots(seed=1), spots(30, seed=2)]
    features = torch.cat([part[0] for part in parts]).requires_grad_()
    coords = torch.cat([part[1] for part in parts]).float()
    index = torch.repeat_interleave(torch.arange(2), torch.tensor([N, 30]))
    batch = Batch(features, torch.tensor([0, 1]), index, coords)
    measured = torch.ones(G, dtype=torch.bool)
    nothing = torch.zeros(G, dtype=torch.bool).index_fill(0, torch.tensor([0]), True)
    targets = [Target(csr_tensor(part[2]), measured) for part in parts]

    def gradient(targets):
        torch.manual_seed(0)
        return torch.autograd.grad(model.loss(batch, targets), features)[0]

    whole = gradient(targets)
    assert whole.isfinite().all()
    other = sp.csr_matrix(parts[1][2].toarray() + 5)
    changed = gradient([targets[0], Target(csr_tensor(other), nothing)])
    torch.testing.assert_close(whole[:N], changed[:N])
    assert not torch.allclose(whole[N:], changed[N:])


def test_masked_expression_never_enters_the_input():
    """The loss of wholly masked spots does not change with their expression but by the target."""
    model = STPathModel(**OWN, dropout=0.0)
    model.wholly = 1.0
    _, _, counts = spots()
    masked = torch.arange(N) < 25
    genes = torch.ones(G, dtype=torch.bool)
    louder = counts.toarray()
    louder[:25] *= 3
    known, other = (
        model._known(csr_tensor(sp.csr_matrix(m)), masked, genes).to_dense()
        for m in (counts, louder)
    )
    assert torch.equal(known, other)


@torch.inference_mode()
def test_context_is_what_the_published_network_is_given():
    model = STPathModel(**OWN).eval()
    features, coords, counts = spots()
    given = torch.zeros(N, dtype=torch.bool).index_fill(0, torch.tensor([2, 17, 30]), True)
    hidden = model.embed_told(features, "PRAD", known=(csr_tensor(counts), given), coords=coords)
    tokens = model.network.masked_expression(N)
    tokens[given] = 0
    tokens[given, 2:] = torch.from_numpy(counts.toarray())[given]
    expected = model.network(features, rescale_coords(coords).float(), 0, 1, tokens)
    torch.testing.assert_close(model.head(hidden), expected, rtol=1e-4, atol=1e-5)
    again = model.embed_told(features, "PRAD", known=(csr_tensor(counts), given), coords=coords)
    assert torch.equal(hidden, again)


def test_expression_of_spots_that_are_not_given_is_never_seen():
    model = STPathModel(**OWN).eval()
    features, coords, counts = spots()
    given = torch.arange(N) % 10 == 0
    other = counts.toarray()
    other[~given.numpy()] = 7
    first, second = (
        model.embed_told(features, "IDC", known=(csr_tensor(m), given), coords=coords)
        for m in (counts, sp.csr_matrix(other))
    )
    assert torch.equal(first, second)
    assert not torch.allclose(first, model.embed(features, "IDC", coords=coords))


def test_without_more_it_is_embed_and_places_may_move_and_repeat():
    model = STPathModel(**OWN).eval()
    features, coords, _ = spots()
    plain = model.embed(features, "IDC", coords=coords)
    assert torch.equal(model.embed_told(features, "IDC", "visium", coords=coords), plain)
    moved = model.embed(features, "IDC", coords=coords + 3000)
    torch.testing.assert_close(moved, plain, rtol=1e-3, atol=1e-4)
    order = torch.randperm(N)
    shuffled = model.embed(features[order], "IDC", coords=coords[order])
    torch.testing.assert_close(shuffled, plain[order], rtol=1e-4, atol=1e-5)
    for count in (1, 2):
        same = model.embed(features[:count], "IDC", coords=coords[:1].expand(count, 2))
        assert same.isfinite().all()
    with pytest.raises(InputError, match="give its coordinates"):
        model.embed_told(features, "IDC")


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    torch.manual_seed(4)
    network = STPath(input_dim=D, num_genes=G + 2, width=32, num_layers=2, mlp_dim=48).eval()
    path = tmp_path_factory.mktemp("official") / "stfm.pth"
    torch.save(network.state_dict(), path)
    return network, path


@torch.inference_mode()
@pytest.mark.parametrize(
    ("cancer", "organ", "technology", "row"),
    [("IDC", "Breast", "visium", 2), ("LUAD", "Lung", "xenium", 3), ("UCEC", "<pad>", "", 0)],
)
def test_published_weights_keep_their_figures(official, tmp_path, cancer, organ, technology, row):
    network, path = official
    model, arguments = STPathModel.from_official(path, ORGAN_OF)
    models.save(model, "stpath", arguments, tmp_path)
    model = models.load(tmp_path)
    features, coords, counts = spots()
    given = torch.arange(N) < 4
    known = (csr_tensor(counts), given)
    hidden = model.embed_told(features, cancer, technology, known, True, coords)
    tokens = network.masked_expression(N)
    tokens[given] = 0
    tokens[given, 2:] = torch.from_numpy(counts.toarray())[given]
    places = rescale_coords(coords).float()
    expected = network(features, places, row, ORGANS.index(organ), tokens)[:, 2:]
    assert model.head.out_features == G
    torch.testing.assert_close(model.head(hidden), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_other_organs_are_refused(tmp_path):
    torch.save(STPath(D, G + 2, 7, 32, 1, mlp_dim=48).state_dict(), tmp_path / "stfm.pth")
    with pytest.raises(InputError, match="knows 7 organs"):
        STPathModel.from_official(tmp_path / "stfm.pth", ORGAN_OF)
