"""Prototypes from gene programs: pathways of spatially variable genes (BP-Booster, 2.3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.data.gene_sets import rename
from histokit.data.genes import detected, normalize, select_panel
from histokit.data.graph import TOUCHING, morans_i, spot_graph

MIN_GENES = 10  # spatially variable genes that make a pathway a program


@dataclasses.dataclass(frozen=True)
class Programs:
    """Gene programs of a cohort.

    Attributes:
        genes: K rows gene, gene_id, symbol, svg_rank, moran_i, p: the spatially variable genes.
        members: pathway to those of its genes that are among them.
        profiles: (J, K) float64, expression that stands for each pathway (Eq. 8).
    """

    genes: pd.DataFrame
    members: dict[str, list[str]]
    profiles: np.ndarray

    @property
    def similarity(self) -> float:
        """Mean cosine of two profiles: 1 where all prototypes start at the same place."""
        unit = self.profiles / np.linalg.norm(self.profiles, axis=1, keepdims=True)
        off = ~np.eye(len(unit), dtype=bool)
        return float((unit @ unit.T)[off].mean()) if len(unit) > 1 else 1.0

    def table(self) -> pd.DataFrame:
        """One row a program: prototype, program, num_genes, genes."""
        rows = [(i, name, len(g), " ".join(g)) for i, (name, g) in enumerate(self.members.items())]
        return pd.DataFrame(rows, columns=["prototype", "program", "num_genes", "genes"])


def gene_programs(
    cohort: Cohort,
    slides: Sequence[str],
    gene_sets: Mapping[str, Iterable[str]],
    target: str,
    num_svgs: int = 200,
    standardize: bool = False,
) -> Programs:
    """Gene programs of the training slides: their genes, and the profile of each.

    Args:
        cohort: the cohort that holds the slides.
        slides: training slides; no other is read.
        gene_sets: pathway to genes, in symbols or Ensembl ids.
        target: transform of the counts.
        num_svgs: K, spatially variable genes at most.
        standardize: as of :func:`profiles`.

    Raises:
        InputError: a slide without coordinates, fewer spots than genes asked for, no gene to
            choose from, or no pathway with ten of the genes.
    """
    genes, y = spatially_variable_genes(cohort, slides, target, num_svgs)
    members = programs_of(gene_sets, genes)
    places = pd.Index(genes["gene"])
    membership = np.zeros((len(places), len(members)))
    for column, names in enumerate(members.values()):
        membership[places.get_indexer(names), column] = 1
    return Programs(genes, members, profiles(y, membership, standardize))


def spatially_variable_genes(
    cohort: Cohort, slides: Sequence[str], target: str, num: int
) -> tuple[pd.DataFrame, sp.csr_matrix]:
    """Genes whose expression neighboring spots share, by the mean of Moran's I over slides.

    All genes that every slide measures take part, in the panel or not, if at least 10 % of the
    spots of each slide detect them: one pair of neighbors that share a molecule of a rare gene
    would otherwise look like a pattern.

    Returns:
        At most ``num`` rows gene, gene_id, symbol, svg_rank, moran_i (mean over slides), p (the
        largest of a slide), best first; and their expression (N, K) CSR over all slides.
    """
    panel = select_panel({s: cohort.gene_table(s) for s in slides}, "common")
    seen, statistics, parts = np.ones(len(panel), bool), [], []
    for slide_id in slides:
        slide = cohort.load(slide_id, panel)
        y = normalize(slide.counts, slide.library_size, target)
        try:
            found = morans_i(y, spot_graph(slide.centers, TOUCHING))
        except InputError as error:
            raise InputError(
                f"slide {slide_id}: {error}; spatially variable genes need the place of each spot: "
                "extract the slide again, leave it out or use --init random"
            ) from None
        seen &= detected(slide.counts)
        statistics.append(found)
        parts.append(y)
    check_enough_spots(sum(y.shape[0] for y in parts), min(num, len(panel)), "--num-svgs")
    panel["moran_i"] = np.mean([s["I"] for s in statistics], axis=0)
    panel["p"] = np.max([s["p"] for s in statistics], axis=0)
    order = np.argsort(-panel["moran_i"].where(seen, np.nan).to_numpy(), kind="stable")[:num]
    order = order[seen[order] & panel["moran_i"].notna().to_numpy()[order]]
    if not len(order):
        raise InputError(
            "no gene is detected in 10 % of the spots of every training slide, so there is none "
            "that could be spatially variable; use --init random"
        )
    chosen = panel.iloc[order].reset_index(drop=True)
    chosen.insert(3, "svg_rank", np.arange(1, len(chosen) + 1))
    return chosen, sp.vstack([y[:, order] for y in parts], format="csr")


def check_enough_spots(spots: int, genes: int, flag: str) -> None:
    """Refuse to learn about more genes than there are spots."""
    if spots < genes:
        raise InputError(
            f"the training slides have {spots} spots, fewer than the {genes} genes asked for; "
            f"lower {flag} or train on more slides"
        )


def programs_of(
    gene_sets: Mapping[str, Iterable[str]], genes: pd.DataFrame
) -> dict[str, list[str]]:
    """Pathways with at least ten of the genes, cut down to them; names as in ``genes["gene"]``."""
    within, _ = rename(gene_sets, genes)
    members = {name: found for name, found in within.items() if len(found) >= MIN_GENES}
    if not members:
        best = max(within, key=lambda name: len(within[name]))
        raise InputError(
            f"no pathway has {MIN_GENES} of the {len(genes)} spatially variable genes; the best of "
            f"{len(within)}, {best}, has {len(within[best])}: raise --num-svgs, give larger "
            "gene sets with --programs, or use --init random"
        )
    return members


def profiles(y: sp.csr_matrix, membership: np.ndarray, standardize: bool = False) -> np.ndarray:
    """The expression that stands for each program.

    Eq. 6 to 8: a program's activity in a spot is the sum of its genes there, ``A = G B``; the
    spots' weights are ``sigmoid(A)`` scaled to sum to 1; the profile is the weighted mean of G.

    A sum of ten or more log counts is far beyond where the sigmoid still rises: the weights come
    out all but equal, and every profile is close to the mean of the tissue, whatever the pathway.
    ``standardize`` takes genes first, and then activities, to mean 0 and deviation 1 over the
    spots, so that the weights tell spots apart and a profile says what its spots express more
    than the rest.

    Args:
        y: (N, K) expression of the spatially variable genes.
        membership: (K, J) of 0 and 1, B.
        standardize: off is the paper.

    Returns:
        (J, K) float64.
    """
    y = y.toarray().astype(np.float64)
    if standardize:
        y = _standardized(y)
    activity = y @ membership
    if standardize:
        activity = _standardized(activity)
    weights = 1 / (1 + np.exp(-activity))
    return (weights / weights.sum(axis=0)).T @ y


def _standardized(x: np.ndarray) -> np.ndarray:
    deviation = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)


def project(profiles: np.ndarray, latent_dim: int, unit: bool = False) -> torch.Tensor:
    """Profiles (J, K) to prototypes (J, L2) float32 by a random linear map (Eq. 9).

    The map is N(0, 1 / K) from torch's generator: it keeps lengths and angles on average. With
    ``unit`` the prototypes are scaled together to a mean square of 1, that of random ones.
    """
    weight = torch.randn(profiles.shape[1], latent_dim) / profiles.shape[1] ** 0.5
    prototypes = torch.from_numpy(profiles).float() @ weight
    return prototypes / prototypes.square().mean().sqrt() if unit else prototypes
