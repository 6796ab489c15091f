"""Correlations from running moments: how to read, join and keep the state of pearson_update."""

from __future__ import annotations

import torch
from torch import Tensor

from histokit.ops import dispatch
from histokit.ops.moments import is_constant, merge_moments
from histokit.ops.pearson_update import pearson_update

FLOAT32_EPS = torch.finfo(torch.float32).eps


def pearson_compute(
    state: Tensor, pred_eps: float | Tensor = FLOAT32_EPS, target_eps: float | Tensor = FLOAT32_EPS
) -> Tensor:
    """Pearson correlation of each slide and gene, from the state of :func:`ops.pearson_update`.

    Args:
        state: (6, S, G) float64.
        pred_eps: ``torch.finfo(dtype).eps`` of the predictions; a series that varies by no more
            than one such unit of its mean counts as constant.
        target_eps: the same of the targets.

    Returns:
        (S, G) float64, NaN where a side is constant or nothing was counted.
    """
    pred, target, cross = state[3], state[4], state[5]
    r = (cross / (pred.sqrt() * target.sqrt())).clamp(-1, 1)
    constant = _constant(state, 0, pred_eps) | _constant(state, 1, target_eps)
    return torch.where(constant, torch.nan, r)


def pearson_merge(a: Tensor, b: Tensor) -> Tensor:
    """The state (6, S, G) of two sets of rows as one, from the state of each."""
    return merge_moments(a, b)


def _constant(state: Tensor, which: int, eps: float | Tensor) -> Tensor:
    return is_constant(state[3 + which], state[1 + which], state[0], eps)


class StreamingPearson:
    """Pearson correlation per slide and gene from chunks of spots, in one pass.

    Chunks of any size, slides in any order and accumulators of several processes give the same
    answer to float64 rounding. MSE, variance and counts come from the same moments.

    A series is constant when its standard deviation is at most one unit in the last place of its
    mean, in the dtype it arrived in: what is left then is rounding. Constant predictions or
    targets have no correlation: NaN, never zero.

    Example::

        score = StreamingPearson(num_genes=2)
        score.update(prediction, target)      # (N, 2) each, as often as needed
        score.compute()                       # (1, 2)
    """

    def __init__(self, num_genes: int, num_slides: int = 1, device: str | torch.device = "cpu"):
        self.num_genes, self.num_slides = num_genes, num_slides
        shape = (6, num_slides, num_genes)
        self.moments = torch.zeros(shape, dtype=torch.float64, device=device)
        self.ulp = torch.zeros(2, dtype=torch.float64)

    def update(
        self,
        pred: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        slide_index: int | Tensor | None = None,
    ) -> None:
        """Add spots.

        Args:
            pred: (N, G) float; NaN skips the entry, here and in the target.
            target: (N, G) float.
            mask: (N, G) or (G,) bool, True = measured.
            slide_index: the slide of all these spots, or (N,) integers; default slide 0.

        Raises:
            ValueError: a wrong shape or dtype, or a slide out of range.
        """
        self._check(pred, target, mask, slide_index)
        eps = [torch.finfo(x.dtype).eps for x in (pred, target)]
        self.ulp = torch.maximum(self.ulp, torch.tensor(eps, dtype=torch.float64))
        if slide_index is None or isinstance(slide_index, int):
            state = self.moments[:, slide_index or 0, None].contiguous()
            pearson_update(state, pred, target, mask)
            self.moments[:, slide_index or 0, None] = state
        else:
            pearson_update(self.moments, pred, target, mask, slide_index.long())

    def _check(self, pred, target, mask, slide_index) -> None:
        def fail(name, expected, got):
            raise ValueError(f"StreamingPearson.update: {name} must be {expected}, got {got}")

        if pred.dim() != 2 or pred.shape[1] != self.num_genes:
            fail("pred", f"(N, {self.num_genes})", tuple(pred.shape))
        if target.shape != pred.shape:
            fail("target", f"{tuple(pred.shape)} as pred", tuple(target.shape))
        for name, value in (("pred", pred), ("target", target)):
            if not value.is_floating_point():
                fail(name, "floating point", value.dtype)
        if mask is not None:
            if mask.dtype != torch.bool:
                fail("mask", "bool", mask.dtype)
            if mask.shape not in (pred.shape, pred.shape[1:]):
                fail("mask", f"{tuple(pred.shape)} or ({self.num_genes},)", tuple(mask.shape))
        if slide_index is None:
            return
        index = slide_index if isinstance(slide_index, Tensor) else torch.tensor([slide_index])
        if index.is_floating_point() or index.dtype == torch.bool:
            fail("slide_index", "integer", index.dtype)
        if isinstance(slide_index, Tensor) and index.shape != pred.shape[:1]:
            fail("slide_index", f"({pred.shape[0]},)", tuple(index.shape))
        if not index.numel() or not dispatch.host_checks("StreamingPearson.update", index):
            return
        if not (index.min() >= 0 and index.max() < self.num_slides):
            bounds = f"{int(index.min())}..{int(index.max())}"
            fail("slide_index", f"in 0..{self.num_slides - 1}", bounds)

    def merge(self, other: StreamingPearson) -> None:
        """Add the spots another accumulator has seen; both have the same slides and genes."""
        if other.moments.shape != self.moments.shape:
            raise ValueError(
                "StreamingPearson.merge: the other accumulator must hold (slides, genes) = "
                f"{tuple(self.moments.shape[1:])}, got {tuple(other.moments.shape[1:])}"
            )
        self.moments = pearson_merge(self.moments, other.moments.to(self.moments.device))
        self.ulp = torch.maximum(self.ulp, other.ulp)

    def state_dict(self) -> dict[str, Tensor]:
        """All there is to know, as tensors: ``moments`` (6, S, G) float64 and ``ulp`` (2,)."""
        return {"moments": self.moments.clone(), "ulp": self.ulp.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state of another accumulator of the same shape."""
        if state["moments"].shape != self.moments.shape:
            raise ValueError(
                f"StreamingPearson.load_state_dict: moments must be {tuple(self.moments.shape)}, "
                f"got {tuple(state['moments'].shape)}"
            )
        self.moments = state["moments"].to(self.moments).clone()
        self.ulp = state["ulp"].clone()

    def counts(self) -> Tensor:
        """Spots behind each correlation: (S, G) int64."""
        return self.moments[0].long()

    def _constant(self, which: int) -> Tensor:
        return _constant(self.moments, which, self.ulp[which].item())

    def constant_pred(self) -> Tensor:
        """Where at least one spot counts and the prediction does not vary: (S, G) bool."""
        return self._constant(0) & (self.moments[0] > 0)

    def constant_target(self) -> Tensor:
        """Where at least one spot counts and the target does not vary: (S, G) bool."""
        return self._constant(1) & (self.moments[0] > 0)

    def target_variance(self) -> Tensor:
        """Population variance of the target: (S, G) float64, NaN without spots."""
        return torch.where(self.moments[0] > 0, self.moments[4] / self.moments[0], torch.nan)

    def target_mean(self) -> Tensor:
        """Mean of the target: (S, G) float64, NaN without spots."""
        return torch.where(self.moments[0] > 0, self.moments[2], torch.nan)

    def mse(self) -> Tensor:
        """Mean squared error over the entries that count: (S, G) float64, NaN without spots."""
        count, mean_pred, mean_target, pred, target, cross = self.moments
        spread = (pred + target - 2 * cross).clamp(min=0) / count
        return torch.where(count > 0, spread + (mean_pred - mean_target) ** 2, torch.nan)

    def compute(self) -> Tensor:
        """Pearson correlation: (S, G) float64, NaN where it does not exist."""
        return pearson_compute(self.moments, *self.ulp.tolist())
