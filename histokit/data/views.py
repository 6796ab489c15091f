"""Cohorts that controls are trained on: shuffled spots, and library size in place of features."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from histokit.data.cohort import Cohort, Slide

SHUFFLED, LIBRARY_SIZE = "shuffled-spots", "library-size"
LABELS = {SHUFFLED: "shuffled spots", LIBRARY_SIZE: "library size"}


class ShuffledCohort(Cohort):
    """A cohort in which the counts of some slides are dealt out anew among all their spots.

    Features and coordinates stay, so whatever a model takes from neighboring patches is intact;
    the pairing with expression is lost, and with it what differs between slides: within a slide
    alone, a model still learns from the image which slides have much of a gene, which also tells
    spots of a test slide apart. Slides are dealt together that measured the same of the genes asked
    for, so one that is alone in this keeps its own counts, in another order.

    The counts of all these slides are held in memory, for the genes last asked for.

    Args:
        cohort: the cohort that holds the slides.
        members: slides to deal; others are left as they are.
        seed: the seed of the dealing.
    """

    def __init__(self, cohort: Cohort, members: Sequence[str], seed: Sequence[int]):
        vars(self).update(vars(cohort))
        self.members, self.seed = list(members), list(seed)
        self._dealt: tuple[list[str], dict] = ([], {})

    def load(self, slide_id: str, genes=None, *, features=True, counts=True) -> Slide:
        """As Cohort.load, a member with counts and library sizes of other spots."""
        slide = super().load(slide_id, genes, features=features, counts=counts)
        if slide_id not in self.members or not counts:
            return slide
        if genes is None:
            genes = list(self.gene_table(slide_id).index)
        names = list(genes["gene"] if isinstance(genes, pd.DataFrame) else genes)
        if self._dealt[0] != names or not self._dealt[1]:
            self._dealt = names, self._deal(genes)
        counts, library_size = self._dealt[1][slide_id]
        return dataclasses.replace(slide, counts=counts, library_size=library_size)

    def _deal(self, genes) -> dict[str, tuple[sp.csr_matrix, np.ndarray]]:
        """Counts (N, G) and library sizes (N,) of each member after the dealing."""
        slides = [super(ShuffledCohort, self).load(name, genes) for name in self.members]
        alike: dict[bytes, list[int]] = {}
        for place, slide in enumerate(slides):
            alike.setdefault(slide.measured.tobytes(), []).append(place)
        rng, dealt = np.random.default_rng(self.seed), {}
        for places in alike.values():
            counts = sp.vstack([slides[i].counts for i in places], format="csr")
            sizes = np.concatenate([slides[i].library_size for i in places])
            order, start = rng.permutation(len(sizes)), 0
            for i in places:
                rows = order[start : start + len(slides[i].barcodes)]
                dealt[self.members[i]] = counts[rows], sizes[rows]
                start += len(rows)
        return dealt


class LibrarySizeCohort(Cohort):
    """A cohort whose only feature is log(1 + library size) of the spot itself: (N, 1)."""

    def __init__(self, cohort: Cohort):
        vars(self).update(vars(cohort))

    def load(self, slide_id: str, genes=None, *, features=True, counts=True) -> Slide:
        """As Cohort.load, with library sizes in place of features."""
        slide = super().load(slide_id, genes, features=features)
        x = np.log1p(slide.library_size).astype(np.float32)[:, None]
        return dataclasses.replace(slide, features=torch.from_numpy(x))

    def provenance(self, slide_id: str) -> dict:
        """What stands in for the encoder."""
        return {"encoder": LIBRARY_SIZE, "dimension": 1}


DRAW = ", draw "


def draw_of(fold: str) -> str:
    """The draw in the name of a fold of a control; empty in any other."""
    return fold.rpartition(DRAW)[2] if DRAW in fold else ""
