"""distance_attention on tensor cores beside its plain kernels: every row verified, both timed.

    python benchmarks/gpu_tensor_cores.py          # on a GPU, as benchmarks/gpu.sh does

Each type's output and gradients are compared with float64 row by row; the worst row may be off by
twice what eager PyTorch's worst row is at that type. The last line says whether to set
HISTOKIT_TENSOR_CORES=1.
"""

from dataclasses import dataclass

import torch

from histokit import ops
from histokit.core.options import option, run
from histokit.ops import reference
from histokit.profile.measure import seconds_of

KINDS = {  # type of the data, products that make one of float32, torch's setting of it
    "float16": (torch.float16, 1, "ieee"),
    "bfloat16": (torch.bfloat16, 1, "ieee"),
    "float32": (torch.float32, 3, "ieee"),
    "TF32": (torch.float32, 1, "tf32"),
}
SHAPES = ((1, 2, 16), (67, 3, 33), (300, 4, 128), (1000, 2, 64), (513, 1, 100))  # N, h, d
RESULTS = ("out", "grad of q", "grad of k", "grad of v", "grad of slope")


@dataclass(frozen=True)
class Options:
    """Command line."""

    device: str = option("cuda", "where to run")
    rows: int = option(12_000, "patches of the slide that is timed, 4 heads of 128")
    repeat: int = option(20, "timed calls")


def inputs(shape: tuple, dtype: torch.dtype, device: str) -> list:
    """Vectors q, k, v and a gradient as views of one projection (N, h, d), places, slopes."""
    torch.manual_seed(0)
    rows, heads, dim = shape
    vectors = torch.randn(rows, 4, heads, dim).to(device, dtype).unbind(1)
    coords, slope = torch.rand(rows, 2), torch.randn(heads)
    return [*vectors, coords.to(device), slope.to(device)]


def by_kernels(given: list, products: int) -> list:
    """Output and gradients by the kernels that `products` chooses; heads before columns."""
    q, k, v, grad, coords, slope = given
    own = torch.ops.histokit
    out, normalizer = own.distance_attention(q, k, v, coords, slope, None, 0.0, products)
    return [out, *own.distance_attention_backward(
        grad, q, k, v, coords, slope, None, 0.0, out, normalizer, True, products
    )]  # fmt: skip


def by_reference(given: list, dtype: torch.dtype) -> list:
    """The same by plain PyTorch in `dtype`."""
    q, k, v, grad, coords, slope = (t.to(dtype) for t in given)
    asked = [t.transpose(0, 1).requires_grad_() for t in (q, k, v)] + [slope.requires_grad_()]
    out = reference.distance_attention(*asked[:3], coords, asked[3])
    grads = torch.autograd.grad(out, asked, grad.transpose(0, 1))
    return [*(t.detach().transpose(0, 1) for t in (out, *grads[:3])), grads[3]]


def worst_row(found: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest norm of the error of any row of any head; NaN counts as endless."""
    error = (found.double() - truth).nan_to_num(nan=torch.inf)
    return (error.norm(dim=-1) if error.ndim > 1 else error.abs()).max().item()


def verify(kind: str, shape: tuple, device: str) -> bool:
    """Whether all results are within the budget; prints those that are not."""
    dtype, products, precision = KINDS[kind]
    given = inputs(shape, dtype, device)
    truth = by_reference(given, torch.float64)
    torch.backends.cuda.matmul.fp32_precision = precision
    eager = by_reference(given, dtype)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    fine = True
    for name, ours, theirs, true in zip(
        RESULTS, by_kernels(given, products), eager, truth, strict=True
    ):
        # eager's error may be nothing by luck: of one patch, and of a slope's single number
        floor = torch.finfo(dtype).eps if kind != "TF32" else 2.0**-11
        floor *= shape[0] if name == "grad of slope" else shape[2] ** 0.5
        error, allowed = worst_row(ours, true), 2 * worst_row(theirs, true) + floor
        if not error <= allowed:
            fine = False
            print(f"{kind}, {shape}, {name}: worst row off by {error:.1e}, allowed {allowed:.1e}")
    return fine


def times(kind: str, cfg: Options) -> tuple[float, float]:
    """Median seconds of forward and backward: plain kernels, tensor cores."""
    dtype, products, _ = KINDS[kind]
    given = inputs((cfg.rows, 4, 128), dtype, cfg.device)
    found = []
    for chosen in (0, products):
        by_kernels(given, chosen)
        seconds = seconds_of(
            lambda chosen=chosen: by_kernels(given, chosen), cfg.repeat, cfg.device
        )
        found.append(seconds[len(seconds) // 2])
    return tuple(found)


def main(cfg: Options) -> None:
    """Verify, time, and say what to do."""
    kinds = [kind for kind in KINDS if cfg.device != "cpu" or KINDS[kind][0] == torch.float32]
    wrong, slower = [], []
    with ops.use("kernels"):
        for kind in kinds:
            verified = [verify(kind, shape, cfg.device) for shape in SHAPES]
            if not all(verified):
                wrong.append(kind)
            plain, cores = times(kind, cfg)
            if cores >= plain:
                slower.append(kind)
            print(f"{kind}: {'wrong' if kind in wrong else 'verified'}; N {cfg.rows}, h 4, d 128, "
                  f"forward and backward: plain {plain * 1e3:.2f} ms, "
                  f"tensor cores {cores * 1e3:.2f} ms")  # fmt: skip
    if wrong:
        raise SystemExit(f"error: leave HISTOKIT_TENSOR_CORES off: {', '.join(wrong)} is wrong")
    if slower:
        print(f"leave HISTOKIT_TENSOR_CORES off: not faster for {', '.join(slower)}")
    else:
        print("turn it on: HISTOKIT_TENSOR_CORES=1")


if __name__ == "__main__":
    run(main, Options, __doc__)
