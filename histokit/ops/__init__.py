"""Fused ops for other projects: ``from histokit import ops``; torch is all that they need.

Every op has a twin of the same signature in :mod:`histokit.reference`, which documents it, and runs
on the compiled kernels where they serve the device (:class:`use` chooses). Rules for all:

- Types: sums are in float32, for float64 data in float64. Attention gives the type of its first
  argument; losses and correlations are float32, for float64 data float64. Half types are read
  directly on CUDA and converted on CPU. Autocast does not change what is computed, and mixed types
  are fine.
- Determinism: on one machine and device, equal inputs give equal bits in every run and with any
  number of threads, except that products done by torch's GEMM follow torch's own rules.
- Errors: ValueError or IndexError in one sentence, naming op, argument, expectation and finding.
- Derivatives: once, in reverse. Second derivatives are right (linear_pearson) or an error, and so
  is forward mode.
- ``torch.compile(fullgraph=True)`` takes all of them, without recompiling for every N; the values
  of an index are then checked by the CPU kernels alone (RuntimeError).
"""

from __future__ import annotations

from histokit.ops.cancer_cross_attention import (
    FoldedContext,
    cancer_cross_attention,
    fold_context,
)
from histokit.ops.csr import Csr
from histokit.ops.dispatch import use
from histokit.ops.distance_attention import distance_attention
from histokit.ops.linear_mse import linear_mse
from histokit.ops.linear_pearson import linear_pearson
from histokit.ops.pearson_update import pearson_update
from histokit.ops.prototype_attention import prototype_attention
from histokit.ops.streaming import StreamingPearson, pearson_compute, pearson_merge

__all__ = [
    "Csr",
    "FoldedContext",
    "StreamingPearson",
    "cancer_cross_attention",
    "distance_attention",
    "fold_context",
    "linear_mse",
    "linear_pearson",
    "pearson_compute",
    "pearson_merge",
    "pearson_update",
    "prototype_attention",
    "use",
]
