"""Training slides: kept in memory up to a bound, beyond it read ahead by worker processes."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch.utils.data import DataLoader, Dataset

from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.data.genes import normalize
from histokit.data.sparse import csr_tensor
from histokit.models.base import Standardizer


@dataclasses.dataclass(frozen=True)
class TrainingSlide:
    """One slide as the loss needs it.

    Attributes:
        features: (N, D) float32.
        coords: (N, 2) float32 spot centers in pixels of level 0.
        target: (N, G) sparse CSR float32 on the target scale.
        measured: (G,) bool.
        cancer: the slide's oncotree code.
    """

    slide_id: str
    features: torch.Tensor
    target: torch.Tensor
    measured: torch.Tensor
    cancer: str
    coords: torch.Tensor

    def num_bytes(self) -> int:
        """Memory that the slide holds."""
        index = self.target.crow_indices().nbytes + self.target.col_indices().nbytes
        own = self.features.nbytes + self.coords.nbytes + self.measured.nbytes
        return own + self.target.values().nbytes + index


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A training slide as plain arrays, which travel between processes; fields as its own."""

    features: np.ndarray
    target: sp.csr_matrix
    measured: np.ndarray
    cancer: str
    centers: np.ndarray


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How a slide of a cohort becomes a training slide: genes, scale of targets and features."""

    cohort: Cohort
    genes: pd.DataFrame | Sequence[str]
    target: str
    standardizer: Standardizer

    def __call__(
        self, slide_id: str
    ) -> tuple[np.ndarray, sp.csr_matrix, np.ndarray, str, np.ndarray]:
        """Plain arrays: features (N, D), targets (N, G) CSR, measured (G,), cancer, centers."""
        slide = self.cohort.load(slide_id, self.genes)
        y = normalize(slide.counts, slide.library_size, self.target)
        features = self.standardizer(slide.features).numpy()
        return Prepared(features, y, slide.measured, slide.cancer, slide.centers)


class SlideReader:
    """Training slides in the order that each epoch asks for.

    Slides are kept as long as ``max_bytes`` are not full. From then on the others are read again
    each time, by worker processes that are one slide ahead of the training.

    Args:
        prepare: slide id to plain arrays; see ``Preparation``.
        device: where slides go.
        max_bytes: memory for slides that are kept.
        workers: processes that read ahead; 0 reads in this one.
        skip: go on without a slide that cannot be read, instead of raising InputError.

    Attributes:
        waited: seconds that the training has waited for slides.
    """

    def __init__(
        self,
        prepare: Callable,
        device: str = "cpu",
        max_bytes: int = 0,
        workers: int = 0,
        skip: bool = False,
    ):
        self.prepare, self.device, self.max_bytes = prepare, device, max_bytes
        self.workers, self.skip = workers, skip
        self.waited = 0.0
        self._kept: dict[str, TrainingSlide] = {}
        self._bytes, self._full = 0, False

    def stream(self, order: Sequence[str]) -> Iterator[TrainingSlide | None]:
        """Yield the slides in this order, None for one that was left out."""
        with ExitStack() as stack:
            ahead = None
            for position, slide_id in enumerate(order):
                if slide_id in self._kept:
                    yield self._kept[slide_id]
                    continue
                begin = time.perf_counter()
                if ahead is None and self._full and self.workers:
                    rest = [s for s in order[position:] if s not in self._kept]
                    # closed even where an error keeps this frame alive: its workers do not hear
                    # SIGTERM, and the end of the process would wait for them for ever
                    ahead = stack.enter_context(closing(self._read_ahead(rest)))
                found, mistake = next(ahead) if ahead else self.attempt(slide_id)
                slide = None if mistake else self._place(slide_id, found)
                self.waited += time.perf_counter() - begin
                if mistake and not self.skip:
                    raise InputError(mistake)
                if mistake:
                    print(f"slide {slide_id} is left out: {mistake}", file=sys.stderr, flush=True)
                yield slide

    def _read_ahead(self, slide_ids: list[str]) -> Iterator:
        loader = DataLoader(
            _Attempts(self.attempt, slide_ids),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=1,
            collate_fn=_as_it_is,  # tensors would go through /dev/shm, which containers keep small
            multiprocessing_context="fork",
            generator=torch.Generator(),  # of its own: the loader draws one number, used or not
        )
        # What a terminal or scheduler sends to all processes is the training's to answer; workers
        # inherit the mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        try:
            found = iter(loader)
        except OSError as error:  # workers need semaphores, and those /dev/shm
            self.workers = 0  # tried, and said, once
            print(f"slides are not read ahead: no workers here ({error})", file=sys.stderr)
            return (self.attempt(slide_id) for slide_id in slide_ids)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return _pulled(found)

    def attempt(self, slide_id: str) -> tuple[Prepared | None, str]:
        """The prepared slide and no mistake, or None and what is wrong with its files."""
        try:
            return self.prepare(slide_id), ""
        except InputError as error:
            return None, str(error)

    def _place(self, slide_id: str, found: Prepared) -> TrainingSlide:
        # a copy, for what came from a worker lies at odd addresses, at which products may sum in
        # another order
        slide = TrainingSlide(
            slide_id,
            torch.tensor(found.features, device=self.device),
            csr_tensor(found.target).to(self.device),
            torch.from_numpy(found.measured).to(self.device),
            found.cancer,
            torch.tensor(found.centers, dtype=torch.float32, device=self.device),
        )
        if self._bytes + slide.num_bytes() <= self.max_bytes:
            self._kept[slide_id] = slide
            self._bytes += slide.num_bytes()
        else:
            self._full = True
        return slide


class _Attempts(Dataset):
    def __init__(self, attempt: Callable, slide_ids: list[str]):
        self.attempt, self.slide_ids = attempt, slide_ids

    def __len__(self) -> int:
        return len(self.slide_ids)

    def __getitem__(self, index: int):
        return self.attempt(self.slide_ids[index])


def _pulled(items: Iterator) -> Iterator:
    """The items, each fetched by a thread while the one before is in use.

    A slide of some 100 MB takes tenths of a second through the pipe of a worker, which holds no
    more than a sliver of it until somebody reads.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _as_it_is(item):
    return item
