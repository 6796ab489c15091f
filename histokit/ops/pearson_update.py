"""pearson_update: moments of predictions and targets, merged chunk by chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from histokit.ops import dispatch, reference
from histokit.ops.dispatch import check_float, check_index, check_shape, check_tensor
from histokit.ops.moments import STATE_ROWS


def pearson_update(
    state: Tensor,
    pred: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    slide_index: Tensor | None = None,
) -> None:
    """Merge rows of predictions and targets into running moments (6, S, G) float64, in place.

    pred and target (N, G) of any floating type, mask (N, G) or (G,) bool, slide_index (N,). See
    :func:`histokit.reference.pearson_update`; :class:`ops.StreamingPearson` keeps a state.
    Entries with a NaN on either side do not count; an infinite one makes its gene's answer NaN. One
    read of both inputs; sums are in float64. No gradients.
    """
    op = "pearson_update"
    check_float(op, state=state, pred=pred, target=target)
    check_shape(op, "state", state, (STATE_ROWS, None, None), "(6, S, G)")
    if state.dtype != torch.float64:
        raise ValueError(f"{op}: state must be float64, got {state.dtype}")
    slides, genes = state.shape[1:]
    check_shape(op, "pred", pred, (None, genes), "(N, G)")
    check_shape(op, "target", target, tuple(pred.shape), "(N, G)")
    if not state.is_contiguous():
        raise ValueError(f"{op}: state must be contiguous, got strides {state.stride()}")
    if mask is not None:
        check_tensor(op, "mask", mask)
        if mask.dtype != torch.bool or mask.device != pred.device:
            raise ValueError(
                f"{op}: mask must be bool on {pred.device}, got {mask.dtype} on {mask.device}"
            )
        expected = (genes,) if mask.ndim == 1 else tuple(pred.shape)
        check_shape(op, "mask", mask, expected, "(G,) or (N, G)")
    check_index(op, slide_index, pred.shape[0], slides, pred)
    if not dispatch.kernels_serve(op, pred):
        reference.pearson_update(state, pred.detach(), target.detach(), mask, slide_index)
        return
    kind = torch.promote_types(pred.dtype, target.dtype)
    order = offsets = None
    if slide_index is not None:
        index, order = slide_index.sort(stable=True)
        offsets = torch.searchsorted(index, torch.arange(slides + 1, device=index.device))
    torch.ops.histokit.pearson_update(
        state, pred.detach().to(kind), target.detach().to(kind), mask, order, offsets
    )


def _fake(state, pred, target, mask, order, offsets):
    return None


if dispatch.HAS_KERNELS:
    torch.library.register_fake("histokit::pearson_update", _fake)
