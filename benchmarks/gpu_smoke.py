"""Every CUDA kernel once, forward and backward, on small odd shapes against the reference.

    python benchmarks/gpu_smoke.py      # or under compute-sanitizer, as benchmarks/gpu.sh does

Then every op is recorded as a CUDA graph, which no call that waits for the device allows, and
replayed on other numbers.
"""

import os

import torch

from histokit import ops
from histokit.ops import reference

DEVICE = "cuda"  # tests change it


def close(name: str, ours, theirs, tolerance: float) -> None:
    """Stop unless two results agree, row by row relative to the row's norm.

    A row is judged by no less than a hundredth of the largest row's norm: one that is next to
    nothing may be what is left of larger terms.
    """
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        same = torch.equal(a.isnan(), b.isnan())
        a, b = (t.nan_to_num().reshape(-1, t.shape[-1] if t.ndim else 1) for t in (a, b))
        size = b.norm(dim=1)
        errors = (a - b).norm(dim=1) / size.clamp(min=max(0.01 * size.max().item(), 1e-30))
        row = int(errors.argmax())
        if not same or not errors[row] <= tolerance:
            raise SystemExit(f"error: {name}, result {i}, row {row}: error {errors[row]:.1e}")
    print(f"{name}: ok", flush=True)


def attention(name: str, dtype: torch.dtype, shapes: list, **options) -> None:
    """Outputs and gradients of an attention op on CUDA in `dtype`, on the CPU in float64."""
    torch.manual_seed(0)
    small = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = [torch.randn(shape, dtype=small) for shape in shapes]
    tensors[0] = tensors[0].to(dtype)
    results = []
    for module, device, wide in ((ops, DEVICE, False), (reference, "cpu", True)):
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
    for module, device, kind in ((ops, DEVICE, None), (reference, "cpu", torch.float64)):
        given = [t.to(device, kind or t.dtype).requires_grad_() for t in (qkv, slope)]
        q, k, v = given[0].permute(1, 2, 0, 3)
        y = module.distance_attention(q, k, v, coords.to(device, kind or small), given[1])
        results.append([y, *torch.autograd.grad(y, given, torch.cos(y.detach()))])
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}.get(dtype, 3e-2)
    close(f"distance_attention {dtype}, {(rows, heads, dim)}", *results, tolerance)


def pearson(dtype: torch.dtype, genes: int) -> None:
    """Moments of two slides, with NaN and a mask; pairs of genes are read at once if G is even."""
    torch.manual_seed(0)
    pred, target, mask = torch.randn(300, genes), torch.randn(300, genes), torch.rand(300, genes)
    pred[3, 5] = torch.nan
    inputs = [pred.to(dtype), target.to(dtype), mask < 0.9, torch.arange(300) % 2]
    results = []
    for module, device in ((ops, DEVICE), (reference, "cpu")):
        state = torch.zeros(6, 2, genes, dtype=torch.float64, device=device)
        module.pearson_update(state, *(t.to(device) for t in inputs))
        results.append(list(state))
    close(f"pearson_update {dtype}, G {genes}", *results, 1e-9)


def linear(dim: int, form: str, dtype: torch.dtype = torch.float32, genes: int = 203) -> None:
    """Correlation, loss and gradients of a linear head; wide rows are d 256, narrow ones d 37."""
    torch.manual_seed(0)
    rows = 2 * dim - 13
    dense = torch.rand(rows, genes, dtype=dtype) * (torch.rand(rows, genes) < 0.2)
    target = dense.to_sparse_csr()
    kind = torch.int32 if form == "int32" else torch.int64
    index = [t.to(DEVICE, kind) for t in (target.crow_indices(), target.col_indices())]
    ours = ops.Csr(*index, target.values().to(DEVICE), genes)
    ours = dense.to(DEVICE) if form == "dense" else ours
    tensors = [torch.randn(shape, dtype=dtype) for shape in ((rows, dim), (genes, dim), (genes,))]
    results = []
    for module, device, y in ((ops, DEVICE, ours), (reference, "cpu", dense)):
        given = [t.to(device).requires_grad_() for t in tensors]
        loss = module.linear_mse(*given, y)
        grads = torch.autograd.grad(loss, given)
        with torch.no_grad():
            results.append([loss, *grads, *module.linear_pearson(*given, y)])
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    close(f"linear ops {dtype}, d {dim}, G {genes}, {form}", *results, tolerance)


def graph(name: str, call, inputs: list[torch.Tensor]) -> None:
    """Record a call as a CUDA graph, and replay it on other numbers in the same places."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # what is made once is made before
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        out = call()
    for tensor in inputs:
        tensor.copy_(torch.randn_like(tensor))
    recorded.replay()
    close(f"{name} as a graph", [out.clone()], [call()], 1e-6)


def graphs() -> None:
    """Every op without gradients, and the loss with its own."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, (call, inputs) in graph_calls(DEVICE).items():
            graph(name, call, inputs)


def graph_calls(device: str) -> dict:
    """A call of each op, and the inputs that may change from replay to replay."""
    x, context = torch.randn(40, 64, device=device), torch.randn(2, 3, 64, device=device)
    layer, norm = torch.nn.MultiheadAttention(64, 4), torch.nn.LayerNorm(64)
    layer, norm = layer.to(device), norm.to(device)
    slides = torch.arange(40, device=device) % 2
    key, gate = torch.randn(5, 64, device=device), torch.rand(5, device=device)
    q, coords = torch.randn(4, 40, 16, device=device), torch.rand(40, 2, device=device)
    slope = torch.rand(4, device=device)
    weight, dense = torch.randn(90, 64, device=device), torch.rand(40, 90, device=device)
    few, many = torch.randn(90, 8, device=device), torch.randn(40, 8, device=device)
    target = (dense * (dense > 0.7)).to_sparse_csr()
    target = ops.Csr(target.crow_indices(), target.col_indices(), target.values(), 90)
    weights = (layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.weight)
    weights += (layer.out_proj.bias, norm.weight, norm.bias)

    def moments():
        score = ops.StreamingPearson(90, 2, device=device)
        score.update(dense, dense + weight[0, 0], slide_index=slides)
        return score.moments

    def loss(hidden, heads, y):
        given = hidden.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(ops.linear_mse(given, heads, None, y), given)[0]

    return {
        "cancer_cross_attention": (
            lambda: ops.cancer_cross_attention(
                x, context, *weights, num_heads=4, slide_index=slides
            ),
            [x],
        ),
        "prototype_attention": (
            lambda: ops.prototype_attention(x, key, key, gate, num_heads=4), [x, key]
        ),
        "distance_attention": (lambda: ops.distance_attention(q, q, q, coords, slope), [q]),
        "pearson_update": (moments, [weight]),
        "linear_mse, residuals": (lambda: loss(x, weight, target), [x]),
        "linear_mse, sparse": (lambda: loss(many, few, target), [many]),
        "linear_mse, dense": (lambda: loss(many, few, dense), [many]),
        "linear_pearson": (lambda: ops.linear_pearson(many, few, None, target)[1], [many]),
        "linear_pearson, rows": (lambda: ops.linear_pearson(x, weight, None, dense)[1], [x]),
    }  # fmt: skip


def main() -> None:
    """All of it."""
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for rows, dim, tokens in ((37, 64, 1), (21, 66, 3), (5, 2056, 2)):
            shapes = [(rows, dim), (2, tokens, dim), (3 * dim, dim), (3 * dim,)]
            shapes += [(dim, dim), (dim,), (dim,), (dim,)]
            index = torch.arange(rows) % 2
            attention("cancer_cross_attention", dtype, shapes, num_heads=2, slide_index=index)
        for rows, num, width, heads in ((300, 65, 64, 4), (70, 7, 33, 1), (70, 9, 256, 4)):
            shapes = [(rows, width), (num, width), (num, width), (num,)]
            attention("prototype_attention", dtype, shapes, num_heads=heads)
        for shape in ((300, 4, 128), (130, 2, 64), (70, 1, 33), (5, 2, 8)):
            distance(dtype, *shape)
        for genes in (133, 134):
            pearson(dtype, genes)
    for form in ("dense", "int32", "int64"):
        for dim in (37, 64, 128, 256):
            linear(dim, form)
        linear(37, form, torch.float64)
    linear(64, "int32", genes=35_000)  # enough rows of the turned target for tall blocks
    if DEVICE == "cuda" and "PYTORCH_NO_CUDA_MEMORY_CACHING" not in os.environ:
        graphs()  # which need torch's allocator


if __name__ == "__main__":
    main()
