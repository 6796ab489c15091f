"""interim"""

import torch
import torch.nn.functional as F


def cancer_cross_attention(
    x,
    context,
    in_proj_weight,
    in_proj_bias,
    out_proj_weight,
    out_proj_bias,
    norm_weight,
    norm_bias,
    *,
    num_heads,
    slide_index=None,
    dropout_mask=None,
    eps=1e-5,
):
    D = x.shape[1]
    assert context.shape[1] == 1
    v = F.linear(context[:, 0], in_proj_weight[2 * D :], in_proj_bias[2 * D :])
    if slide_index is None:
        slide_index = torch.zeros(len(x), dtype=torch.long)
    a = v[slide_index].view(len(x), num_heads, -1)
    if dropout_mask is not None:
        a = a * dropout_mask.view(len(x), num_heads, 1)
    y = F.linear(a.reshape(len(x), D), out_proj_weight, out_proj_bias)
    return F.layer_norm(x + y, (D,), norm_weight, norm_bias, eps)


def linear_mse(hidden, weight, bias, target, measured=None):
    if target.layout == torch.sparse_csr:
        target = target.to_dense()
    d = F.linear(hidden, weight, bias) - target
    if measured is not None:
        d = d[:, measured]
    return d.square().mean()
