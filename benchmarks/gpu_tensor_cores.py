"""The ops on tensor cores beside their plain kernels: every row verified, both timed.

    python benchmarks/gpu_tensor_cores.py          # on a GPU, as benchmarks/gpu.sh does

Output and gradients of distance_attention, and the products of a sparse target of which 8 % is
filled (what linear_mse and linear_pearson need), are compared with float64 row by row; the worst
row may be off by twice what eager PyTorch's worst row is at that type. The last line says whether
to set HISTOKIT_TENSOR_CORES=1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from predicted import beside, predicted

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
SPARSE_KINDS = ("float32", "TF32")
SPARSE_SHAPES = ((5, 40, 3), (70, 300, 65), (300, 2000, 256))  # N, G, d
RESULTS = ("out", "grad of q", "grad of k", "grad of v", "grad of slope")
SPARSE_RESULTS = ("target times weights", "target, turned, times hidden")


@dataclass(frozen=True)
class Options:
    """Command line."""

    device: str = option("cuda", "where to run")
    rows: int = option(12_000, "patches of the slide that is timed, 4 heads of 128")
    spots: int = option(3_000, "spots of the sparse target that is timed, 38,982 genes, d 256")
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


def sparse_inputs(shape: tuple, device: str) -> list:
    """A target (N, G), 8 % filled, weights (G, d) and hidden rows (N, d)."""
    torch.manual_seed(0)
    rows, genes, dim = shape
    target = torch.rand(rows, genes).where(torch.rand(rows, genes) < 0.08, 0)
    return [t.to(device) for t in (target, torch.randn(genes, dim), torch.randn(rows, dim))]


def sparse_calls(given: list) -> Callable:
    """Both products of a sparse target, by the kernels that the argument chooses."""
    target, weight, hidden = given
    pairs = []
    for matrix, dense in ((target, weight), (target.T, hidden)):  # turned, as CUDA sorts it
        csr = matrix.to_sparse_csr()
        pairs.append((csr.crow_indices(), csr.col_indices(), csr.values(), dense))
    return lambda products: [torch.ops.histokit.csr_matmul(*pair, products) for pair in pairs]


def within(name: str, names: tuple, found: list, eager: list, truth: list, floors: list) -> bool:
    """Whether no row is off by more than the budget; prints the results that have such a row."""
    fine = True
    for result, ours, theirs, true, floor in zip(names, found, eager, truth, floors, strict=True):
        error, eager_error = worst_row(ours, true), worst_row(theirs, true)
        allowed = max(2 * eager_error + floor, 2 * floor)
        if not error <= allowed:
            fine = False
            print(f"{name}, {result}: worst row off by {error:.1e}, allowed {allowed:.1e}")
    return fine


def in_precision(kind: str, call: Callable) -> list:
    """Results of a call with torch's products of this kind."""
    torch.backends.cuda.matmul.fp32_precision = KINDS[kind][2]
    found = call()
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    return found


def verify(kind: str, shape: tuple, device: str) -> bool:
    """Whether attention is within the budget.

    Eager's error may be nothing by luck: of one patch, whose softmax is 1 whatever the products,
    and of a slope's single number. The floor, one rounding of a sum, stands for it then.
    """
    dtype, products, _ = KINDS[kind]
    given = inputs(shape, dtype, device)
    truth = by_reference(given, torch.float64)
    eager = in_precision(kind, lambda: by_reference(given, dtype))
    unit = torch.finfo(dtype).eps if kind != "TF32" else 2.0**-11
    floors = [unit * shape[2] ** 0.5] * 4 + [unit * shape[0]]
    return within(f"{kind}, {shape}", RESULTS, by_kernels(given, products), eager, truth, floors)


def verify_sparse(kind: str, shape: tuple, device: str) -> bool:
    """Whether both products of a sparse target are within the budget."""
    given = sparse_inputs(shape, device)

    def dense(target, weight, hidden):
        return [target @ weight, target.T @ hidden]

    truth = dense(*(t.double() for t in given))
    eager = in_precision(kind, lambda: dense(*given))
    found = sparse_calls(given)(KINDS[kind][1])
    unit = torch.finfo(torch.float32).eps if kind == "float32" else 2.0**-11
    floors = [unit * shape[2] ** 0.5] * 2
    return within(f"{kind}, {shape}, 8 %", SPARSE_RESULTS, found, eager, truth, floors)


def times(call: Callable, products: int, cfg: Options) -> tuple[float, float]:
    """Median seconds: plain kernels, tensor cores."""
    found = []
    for chosen in (0, products):
        call(chosen)
        seconds = seconds_of(lambda chosen=chosen: call(chosen), cfg.repeat, cfg.device)
        found.append(seconds[len(seconds) // 2])
    return tuple(found)


def attention(kind: str, cfg: Options) -> tuple[str, bool, tuple[float, float]]:
    """What was timed, whether all is verified, and the seconds."""
    dtype, products, _ = KINDS[kind]
    verified = [verify(kind, shape, cfg.device) for shape in SHAPES]
    given = inputs((cfg.rows, 4, 128), dtype, cfg.device)
    size = f"distance_attention, N {cfg.rows}, h 4, d 128, forward and backward"
    return size, all(verified), times(lambda p: by_kernels(given, p), products, cfg)


def sparse(kind: str, cfg: Options) -> tuple[str, bool, tuple[float, float]]:
    """The same of the two products of a sparse target."""
    verified = [verify_sparse(kind, shape, cfg.device) for shape in SPARSE_SHAPES]
    call = sparse_calls(sparse_inputs((cfg.spots, 38_982, 256), cfg.device))
    size = f"csr_matmul, N {cfg.spots}, G 38982, d 256, 8 %, both products"
    return size, all(verified), times(call, KINDS[kind][1], cfg)


def main(cfg: Options) -> None:
    """Verify, time, and say what to do."""
    kinds = [kind for kind in KINDS if cfg.device != "cpu" or KINDS[kind][0] == torch.float32]
    wrong, slower = [], []
    with ops.use("kernels"):
        for judge, kind in [(attention, k) for k in kinds] + [(sparse, k) for k in SPARSE_KINDS]:
            size, verified, seconds = judge(kind, cfg)
            op, case = size.split(", ", 1)
            name = f"{op} {kind}"
            wrong += [] if verified else [name]
            slower += [name] if seconds[1] >= seconds[0] else []
            plain, cores = (
                beside(f"{found * 1e3:.2f} ms", predicted(name, case, on_cores))
                for found, on_cores in zip(seconds, (False, True), strict=True)
            )
            print(f"{name}: {'verified' if verified else 'wrong'}; {case}: "
                  f"plain {plain}, tensor cores {cores}")  # fmt: skip
    if wrong:
        raise SystemExit(f"error: leave HISTOKIT_TENSOR_CORES off: wrong: {', '.join(wrong)}")
    if slower:
        print(f"leave HISTOKIT_TENSOR_CORES off: not faster for {', '.join(slower)}")
    else:
        print("turn it on: HISTOKIT_TENSOR_CORES=1")


if __name__ == "__main__":
    run(main, Options, __doc__)
