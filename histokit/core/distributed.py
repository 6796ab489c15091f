"""Several processes at one piece of work, as ``torchrun`` starts them; one alone is the same code.

    torchrun --nproc-per-node=2 run_train.py ...

gloo carries what CPU processes tell each other, NCCL what those on GPUs do.
"""

from __future__ import annotations

import atexit
import datetime
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from histokit.core.errors import InputError

# Rank 0 writes reports alone while the others wait; torchrun, not a timeout, ends a broken run.
PATIENCE = datetime.timedelta(hours=24)


@dataclass(frozen=True)
class Team:
    """The processes of a run. Every rank must reach each call that exchanges something.

    Attributes:
        rank: the rank of this process, from 0.
        size: how many processes there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0

    def share(self, items: Sequence) -> Sequence:
        """This rank's part of a sequence that all ranks hold."""
        return items[self.rank :: self.size]

    def gather(self, value) -> list:
        """Every rank's value, by rank."""
        if self.size == 1:
            return [value]
        found = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def gather_shares(self, items: Sequence) -> list:
        """What ``share`` took apart, in the old order."""
        parts = self.gather(list(items))
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def any(self, *asked: bool) -> list[bool]:
        """For each question, whether any rank says yes."""
        if self.size == 1:
            return list(asked)
        return [any(answers) for answers in zip(*self.gather(asked), strict=True)]

    def total(self, *values: float) -> list[float]:
        """Sums over ranks, in the order of the ranks: the same number on each."""
        return [sum(parts) for parts in zip(*self.gather(values), strict=True)]

    def average_gradients(self, parameters: Iterable[torch.Tensor], weight: float) -> None:
        """Replace gradients by their mean over ranks, each weighted by its number of slides."""
        if self.size == 1:
            return
        parameters = [p for p in parameters if p.requires_grad]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(p.flatten() for p in parts), parts[0].new_ones(1)]) * weight
        dist.all_reduce(flat)
        flat = flat[:-1] / flat[-1]
        for p, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = mean.view_as(p)

    def wait(self) -> None:
        """Go on when all ranks are here."""
        self.gather(None)


ALONE = Team()


def check_device(name: str) -> None:
    """Refuse a device that this machine, or this build of torch, does not have.

    Raises:
        InputError: says what torch says, and what to do.
    """
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("meta tensors hold no values")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise InputError(
            f"--device {name} is not to be had here ({reason}); use --device cpu, or a build of "
            "torch and a machine that have it"
        ) from error


def start(device: str = "cpu") -> Team:
    """Join the run that ``torchrun`` started; a team of one without it.

    Raises:
        InputError: WORLD_SIZE is set but not by torchrun, or there are fewer GPUs than ranks.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return ALONE
    if not dist.is_initialized():
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            if not os.environ.get(name, "").isdecimal():
                raise InputError(
                    f"WORLD_SIZE is {size} but {name} is {os.environ.get(name)!r}; start several "
                    "processes with torchrun, or unset WORLD_SIZE"
                )
        backend = "gloo"
        if device.startswith("cuda"):
            own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if own >= there:
                raise InputError(
                    f"torchrun started rank {own} on a machine with {there} GPUs; give "
                    f"--nproc-per-node={there} at most"
                )
            torch.cuda.set_device(own)
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=PATIENCE)
        # gloo's threads, left to the end of the process, can abort it although all went well
        atexit.register(dist.destroy_process_group)
    return Team(dist.get_rank(), dist.get_world_size())
