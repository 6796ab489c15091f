"""Every CUDA kernel once, forward and backward, on small odd shapes against the reference.

python benchmarks/gpu_smoke.py      # or under compute-sanitizer, as benchmarks/gpu.sh does
"""

import torch

from histokit import ops
from histokit.ops import reference


def close(name: str, ours, theirs, tolerance: float) -> None:
    """Stop unless two results agree relative to the largest value."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        error = ((a - b).nan_to_num().norm() / b.nan_to_num().norm().clamp(min=1e-30)).item()
        same = torch.equal(a.isnan(), b.isnan())
        if not same or error > tolerance:
            raise SystemExit(f"error: {name}, result {i}: relative error {error:.1e}")
    print(f"{name}: ok", flush=True)


def attention(name: str, dtype: torch.dtype, shapes: list, **options) -> None:
    """Outputs and gradients of an attention op on CUDA in `dtype`, on the CPU in float64."""
    torch.manual_seed(0)
    small = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = [torch.randn(shape, dtype=small) for shape in shapes]
    tensors[0] = tensors[0].to(dtype)
    results = []
    for module, device, wide in ((ops, "cuda", False), (reference, "cpu", True)):
        given = [t.double() if wide else t.to(device) for t in tensors]
        given = [t.requires_grad_() for t in given]
        rest = {k: v.to(device) if torch.is_tensor(v) else v for k, v in options.items()}
        y = getattr(module, name)(*given, **rest)
        results.append([y, *torch.autograd.grad(y, given, torch.cos(y.detach()))])
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}.get(dtype, 3e-2)
    close(f"{name} {dtype}, {shapes[0]}", *results, tolerance)


def distance(dtype: torch.dtype, rows: int, heads: int, dim: int) -> None:
    """Output and gradients of distance_attention, from views of one projection."""
    torch.manual_seed(0)
    small = torch.float64 if dtype == torch.float64 else torch.float32
    qkv = torch.randn(rows, 3, heads, dim).to(dtype)
    coords, slope = torch.rand(rows, 2, dtype=small), torch.randn(heads, dtype=small)
    results = []
    for module, device, kind in ((ops, "cuda", None), (reference, "cpu", torch.float64)):
        given = [t.to(device, kind or t.dtype).requires_grad_() for t in (qkv, slope)]
        q, k, v = given[0].permute(1, 2, 0, 3)
        y = module.distance_attention(q, k, v, coords.to(device, kind or small), given[1])
        results.append([y, *torch.autograd.grad(y, given, torch.cos(y.detach()))])
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}.get(dtype, 3e-2)
    close(f"distance_attention {dtype}, {(rows, heads, dim)}", *results, tolerance)


def pearson(dtype: torch.dtype) -> None:
    """Moments of two slides, with NaN and a mask."""
    torch.manual_seed(0)
    pred, target, mask = torch.randn(300, 133), torch.randn(300, 133), torch.rand(300, 133) < 0.9
    pred[3, 5] = torch.nan
    inputs = [pred.to(dtype), target.to(dtype), mask, torch.arange(300) % 2]
    results = []
    for module, device in ((ops, "cuda"), (reference, "cpu")):
        state = torch.zeros(6, 2, 133, dtype=torch.float64, device=device)
        module.pearson_update(state, *(t.to(device) for t in inputs))
        results.append(list(state))
    close(f"pearson_update {dtype}", *results, 1e-9)


def linear() -> None:
    """Correlation, loss and gradients of a linear head with a sparse target."""
    torch.manual_seed(0)
    target = (torch.rand(61, 203) * (torch.rand(61, 203) < 0.2)).to_sparse_csr()
    tensors = [torch.randn(shape) for shape in ((61, 37), (203, 37), (203,))]
    results = []
    for module, device in ((ops, "cuda"), (reference, "cpu")):
        given = [t.to(device).requires_grad_() for t in tensors]
        loss = module.linear_mse(*given, target.to(device))
        grads = torch.autograd.grad(loss, given)
        with torch.no_grad():
            results.append([loss, *grads, *module.linear_pearson(*given, target.to(device))])
    close("linear_mse and linear_pearson", *results, 1e-4)


def main() -> None:
    """All of it."""
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for rows, dim, tokens in ((37, 64, 1), (21, 66, 3), (5, 2056, 2)):
            shapes = [(rows, dim), (2, tokens, dim), (3 * dim, dim), (3 * dim,)]
            shapes += [(dim, dim), (dim,), (dim,), (dim,)]
            index = torch.arange(rows) % 2
            attention("cancer_cross_attention", dtype, shapes, num_heads=2, slide_index=index)
        for rows, num, width, heads in ((300, 65, 64, 4), (70, 7, 33, 1)):
            shapes = [(rows, width), (num, width), (num, width), (num,)]
            attention("prototype_attention", dtype, shapes, num_heads=heads)
        for shape in ((300, 4, 128), (70, 1, 33), (5, 2, 8)):
            distance(dtype, *shape)
        pearson(dtype)
    linear()


if __name__ == "__main__":
    main()
