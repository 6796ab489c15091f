import numpy as np
import pytest
import torch

from histokit import models
from histokit.core.errors import InputError
from histokit.models.bpbooster import BPBooster
from histokit.train.bpbooster import as_one_layer
from histokit.train.ridge import fit_ridge, fit_ridge_hest
from histokit.train.spots import Spots

SIZES = {"input_dim": 12, "num_genes": 7, "latent_dim": 8, "num_prototypes": 5, "num_hvgs": 4}
SIZES |= {"num_heads": 2}


def model(**options):
    return BPBooster(**SIZES | options).double().eval()


def randomise_gates(m):
    for logit in (m.prototype_logit, m.latent_logit):
        logit.data.normal_()


def test_is_the_sum_over_prototypes_with_gates():
    m, x = model(), torch.randn(6, 12, dtype=torch.float64)
    randomise_gates(m)
    projected = m.projection(x)
    expected = torch.zeros(6, 8, dtype=torch.float64)
    for n in range(6):
        for head in (slice(0, 4), slice(4, 8)):
            q = (m.query.weight @ projected[n])[head]
            keys, values = (layer(m.prototypes)[:, head] for layer in (m.key, m.value))
            alpha = (keys @ q / 2).softmax(0)
            expected[n, head] = sum(
                alpha[i] * m.prototype_logit[i].sigmoid() * values[i] for i in range(5)
            )
    expected = (expected @ m.output.weight.T) * m.latent_logit.sigmoid()
    torch.testing.assert_close(m.refine(x), expected)
    torch.testing.assert_close(m.attention_weights(x).sum(1), torch.ones(6, dtype=torch.float64))


def test_literal_is_the_printed_equations():
    m, x = model(attention="literal"), torch.randn(6, 12, dtype=torch.float64)
    randomise_gates(m)
    z = m.projection(x)
    rows = []
    for n in range(6):
        heads = []
        for i in (slice(0, 4), slice(4, 8)):
            scores = m.prototypes[:, i] @ z[n, None, i].T / 2  # (M, 1): one key
            answer = scores.softmax(1) @ z[n, None, i]  # Eq. 2, the same row M times
            alpha = scores[:, 0].softmax(0)
            heads.append((alpha[:, None] * m.prototype_gate[:, None] * answer).sum(0))  # Eq. 3
        rows.append(torch.cat(heads))
    expected = m.output(torch.stack(rows)) * m.latent_gate
    torch.testing.assert_close(m.refine(x), expected)


def gains(m, x, prototypes):
    """What literal attention multiplies each head of the projected patch with: (N, h, d)."""
    m.prototypes.data = prototypes
    m.output.weight.data = torch.eye(8, dtype=torch.float64)
    return (m.refine(x) / m.projection(x)).unflatten(1, (2, 4))


@torch.no_grad()
def test_literal_attention_is_degenerate():
    m = model(attention="literal", gates="prototype")
    m.prototype_logit.data.normal_()
    x = torch.randn(9, 12, dtype=torch.float64)
    for scale in (1, 10):
        gain = gains(m, x, scale * torch.randn(5, 8, dtype=torch.float64))
        # One number for a patch and head, between the least and the largest gate.
        torch.testing.assert_close(gain, gain[..., :1].expand_as(gain))
        assert gain.min() >= m.prototype_gate.min() - 1e-9
        assert gain.max() <= m.prototype_gate.max() + 1e-9
    # Of equal gates, prototypes do not reach a patch at all.
    m.prototype_logit.data.fill_(0.3)
    first = gains(m, x, torch.randn(5, 8, dtype=torch.float64))
    torch.testing.assert_close(first, gains(m, x, torch.randn(5, 8, dtype=torch.float64)))
    m = model(attention="literal", gates="none")
    m.patch_loss(x, torch.randn(9, 4, dtype=torch.float64))
    with torch.enable_grad():
        m.patch_loss(x, torch.randn(9, 4, dtype=torch.float64)).backward()
    assert m.prototypes.grad.abs().max() < 1e-12


@torch.no_grad()
def test_prototypes_attention_is_not_degenerate():
    m, x = model(gates="none"), torch.randn(9, 12, dtype=torch.float64)
    m.output.weight.data = torch.eye(8, dtype=torch.float64)
    before = m.refine(x).clone()
    m.prototypes.data.normal_()
    ratio = (m.refine(x) / before).unflatten(1, (2, 4))
    assert (ratio.std(2) > 0.1 * ratio.mean(2).abs()).all()
    with torch.enable_grad():
        m.patch_loss(x, torch.randn(9, 4, dtype=torch.float64)).backward()
    assert m.prototypes.grad.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("gates", "logits"),
    [("both", 2), ("prototype", 1), ("latent", 1), ("none", 0)],
)
def test_gates_can_be_left_out(gates, logits):
    m = model(gates=gates)
    assert sum("logit" in name for name in m.state_dict()) == logits
    for gate, own in ((m.prototype_gate, "prototype"), (m.latent_gate, "latent")):
        start = torch.full_like(gate, 0.88 if gates in ("both", own) else 1.0)
        torch.testing.assert_close(gate, start, atol=2e-3, rtol=0)


@pytest.mark.parametrize("losses", ["both", "reconstruction", "regression"])
def test_losses_can_be_left_out(losses):
    m, x, y = model(), torch.randn(6, 12).double(), torch.randn(6, 4).double()
    m.patch_loss(x, y, losses).backward()
    assert (m.decoder.weight.grad is None) == (losses == "regression")
    assert (m.hvg_head.weight.grad is None) == (losses == "reconstruction")
    assert m.head.weight.grad is None
    parts = [m.patch_loss(x, y, name) for name in ("reconstruction", "regression")]
    torch.testing.assert_close(m.patch_loss(x, y), sum(parts))
    torch.testing.assert_close(parts[0], (m.decoder(m.refine(x)) - x).square().mean())


def test_losses_as_printed_are_squared_norms_of_patches():
    m, x, y = model(), torch.randn(6, 12).double(), torch.randn(6, 4).double()
    latent = m.refine(x)
    norms = [(m.decoder(latent) - x).norm(dim=1), (m.hvg_head(latent) - y).norm(dim=1)]
    printed = sum(norm.square().mean() for norm in norms)
    torch.testing.assert_close(m.patch_loss(x, y, scale="sum"), printed)


@pytest.mark.parametrize("kind", ["prototype_logit", "latent_logit"])
def test_closed_gates_are_named(kind):
    m = model()
    m.check_open()
    getattr(m, kind).data.fill_(-40)
    assert m.refine(torch.randn(3, 12).double()).abs().max() < 1e-12
    with pytest.raises(InputError, match=r"gates of all . .* have closed .* lower --lr"):
        m.check_open()


@pytest.mark.parametrize("recipe", ["ridge", "ridge-hest"])
def test_readout_folds_into_one_layer(recipe):
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    x = (rng.normal(size=(90, 8)) * np.geomspace(1e-3, 10, 8) + 5).astype(np.float32)
    y = sp.csr_matrix(np.maximum(x @ rng.normal(size=(8, 7)), 0).astype(np.float32))
    slide = np.repeat([0, 1, 2], 30)
    linear = (
        fit_ridge_hest(x, y)
        if recipe == "ridge-hest"
        else fit_ridge(Spots(x, y, np.ones((3, 7), bool), slide, slide))[0]
    )
    weight, bias = as_one_layer(linear)
    folded = torch.from_numpy(x).double() @ weight.T + bias
    expected = linear.double()(torch.from_numpy(x).double(), -1)
    torch.testing.assert_close(folded, expected, rtol=1e-9, atol=1e-9)


def test_save_load_predict(tmp_path):
    names = [f"PATHWAY_{i}" for i in range(5)]
    arguments = SIZES | {"prototype_names": names, "gates": "latent"}
    m = BPBooster(**arguments)
    models.save(m, "bpbooster", arguments, tmp_path)
    loaded = models.load(tmp_path)
    x = torch.randn(4, 12)
    torch.testing.assert_close(loaded.predict(x, "IDC"), m.predict(x, "IDC"), rtol=0, atol=0)
    assert loaded.embed(x, "IDC").shape == (4, 8)
    assert loaded.prototype_names == names
    with pytest.raises(InputError, match="takes features of 12 dimensions and got"):
        loaded.predict(torch.randn(4, 13), "IDC")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"latent_dim": 9}, "2 heads do not divide 9 latent dimensions"),
        ({"num_prototypes": 0}, "--num-prototypes must be at least 1"),
    ],
)
def test_bad_sizes(options, text):
    with pytest.raises(InputError, match=text):
        model(**options)
