"""A training step of BP-Booster beside the same model in plain PyTorch.

    python benchmarks/bpbooster.py

Plain is the paper's Eq. 3 as one writes it down: the (N, M, L2) tensor of every prototype's answer
to every patch, gated and summed. Both take the same weights and must give the same loss and
gradients. Times are medians of a step (loss, gradients, Adam) on one batch of all patches, the two
models in turns; peak memory is what a step adds to the process, each in one of its own.
"""

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histokit import ops
from histokit.models import bpbooster
from histokit.options import option, run


@dataclass(frozen=True)
class Options:
    """Command line."""

    patches: int = option(10_000, "patches in a step")
    input_dim: int = option(1024, "dimensions of a patch's features")
    latent_dim: int = option(256, "dimensions of a prototype")
    prototypes: int = option(64, "prototypes")
    threads: int = option(2, "CPU threads")
    repeat: int = option(5, "timed steps of each")
    child: str = option("", "internal: measure the memory of this one and print it")


class Plain:
    """Stands in for ``histokit.ops`` in the model."""

    @staticmethod
    def prototype_attention(query, key, value, gate, *, num_heads):
        """(N, L2) by way of (N, M, h, L2 / h)."""
        split = (num_heads, query.shape[1] // num_heads)
        query, key, value = (t.unflatten(1, split) for t in (query, key, value))
        alpha = (torch.einsum("nhd,mhd->nmh", query, key) * split[1] ** -0.5).softmax(1)
        answers = alpha[..., None] * value
        return (gate[:, None, None] * answers).sum(1).flatten(1)


FORMS = {"fused": ops, "plain": Plain}


def make(cfg: Options):
    """The model, its optimizer and a batch."""
    torch.manual_seed(0)
    torch.set_num_threads(cfg.threads)
    model = bpbooster.BPBooster(cfg.input_dim, 1, cfg.latent_dim, cfg.prototypes)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], 1e-3, weight_decay=0, fused=True
    )
    return model, optimizer, torch.randn(cfg.patches, cfg.input_dim), torch.rand(cfg.patches, 200)


def step(form: str, model, optimizer, x, y) -> torch.Tensor:
    """One training step; returns the loss."""
    bpbooster.ops = FORMS[form]
    loss = model.loss(x, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def verify(cfg: Options) -> None:
    """Loss and gradients of both forms are the same to rounding."""
    found = {}
    for form in FORMS:
        model, optimizer, x, y = make(cfg)
        loss = step(form, model, optimizer, x[:500], y[:500])
        found[form] = [loss, *(p.grad for p in model.parameters() if p.grad is not None)]
    for a, b in zip(found["fused"], found["plain"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def peak_mb(form: str, cfg: Options) -> float:
    """Memory that a step adds, in MB; run in a process of its own."""
    parts = make(cfg)
    small = tuple(t[:8] for t in parts[2:])
    step(form, *parts[:2], *small)  # code, optimizer state and thread pools are there
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step(form, *parts)
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1])


def main(cfg: Options) -> None:
    """Verify, time and weigh both forms."""
    if cfg.child:
        print(peak_mb(cfg.child, cfg))
        return
    verify(cfg)
    parts, seconds = make(cfg), {form: [] for form in FORMS}
    for turn in range(cfg.repeat + 1):
        for form in FORMS:
            start = time.perf_counter()
            step(form, *parts)
            if turn:  # the first is not counted
                seconds[form].append(time.perf_counter() - start)
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    memory = {f: float(subprocess.check_output([*command, f], text=True)) for f in FORMS}
    median = {form: statistics.median(values) for form, values in seconds.items()}
    print(
        f"{cfg.patches:,} patches of {cfg.input_dim}, M {cfg.prototypes}, L2 {cfg.latent_dim}, "
        f"{cfg.threads} threads"
    )
    for form in FORMS:
        print(f"{form:6} {median[form] * 1e3:9.1f} ms a step {memory[form]:9.1f} MB")
    ratio = median["plain"] / median["fused"]
    print(f"ratio  {ratio:9.1f}{memory['plain'] / memory['fused']:21.1f}")


if __name__ == "__main__":
    run(main, Options, __doc__)
