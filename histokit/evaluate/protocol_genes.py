"""The gene lists of published protocols; test slides have their say, as they had there."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.data.genes import detected
from histokit.evaluate.gene_lists import GeneLists
from histokit.evaluate.runs import Run

HEST_GENES = 50
STEM_HVGS, STEM_TOP = 2000, 241
_CONTROLS = ("BLANK", "Control")
_PREFIXES = ("MT-", "RPS", "RPL")


def choose_genes(run: Run, cohort: Cohort, protocol: str) -> GeneLists:
    """The protocol's own choice of genes.

    Args:
        run: its slides of every split take part; of cancers, those that are tested.
        cohort: the cohort that the run predicts.
        protocol: hest-bench, histoprism, stpath or stem-topk.
    """
    whole = pd.concat([fold.split for fold in run.folds], ignore_index=True)
    slides = list(dict.fromkeys(whole["slide_id"]))
    if protocol == "hest-bench":
        return GeneLists({"": hest_genes(cohort, slides)})
    if protocol == "stem-topk":
        return GeneLists({"": stem_genes(cohort, slides)})
    tested = dict.fromkeys(whole.loc[whole["split"] == "test", "cancer"])
    own = {name: whole.loc[whole["cancer"] == name, "slide_id"] for name in sorted(tested)}
    return GeneLists(
        {name: hest_genes(cohort, list(dict.fromkeys(ids))) for name, ids in own.items()}
    )


def drawn_from(run: Run, cohort: Cohort) -> tuple:
    """What ``choose_genes`` reads of a run and its cohort, as a key: equal keys, equal lists."""
    whole = pd.concat([fold.split for fold in run.folds])
    told = zip(whole["slide_id"], whole["cancer"], whole["split"] == "test", strict=True)
    mapped = cohort.gene_map and (frozenset(cohort.gene_map.ids.items()), cohort.gene_map.merge)
    return str(cohort.folder), tuple(dict.fromkeys(told)), mapped


def hest_genes(cohort: Cohort, slides: list[str], num_genes: int = HEST_GENES) -> list[str]:
    """HEST-Bench's list: highly variable genes of a task's slides, in the order of the genes.

    Genes detected in at least 10 % of the spots of every slide, control probes dropped; scanpy's
    highly variable genes (Seurat flavor) of log1p of the raw counts of all slides together.
    """
    import anndata
    import scanpy

    kept, parts = None, []
    for slide_id in slides:
        names = list(cohort.gene_table(slide_id).index)
        counts = cohort.load(slide_id, names, features=False).counts
        enough = detected(counts)
        own = {name for name, keep in zip(names, enough, strict=True) if keep}
        kept = [n for n in (names if kept is None else kept) if n in own]
        parts.append((pd.Index(kept), counts[:, pd.Index(names).get_indexer(kept)]))
    kept = [name for name in kept if not any(word in name for word in _CONTROLS)]
    if len(kept) < 3:
        raise InputError(
            f"only {len(kept)} genes are detected in 10 % of the spots of each of the "
            f"{len(slides)} slides; give a gene list with --hvg-file"
        )
    own = [counts[:, names.get_indexer(kept)] for names, counts in parts]
    data = anndata.AnnData(sp.vstack(own, format="csr"))
    data.var_names = kept
    scanpy.pp.log1p(data)
    scanpy.pp.highly_variable_genes(data, n_top_genes=min(num_genes, len(kept)))
    return list(data.var_names[data.var["highly_variable"]][:num_genes])


def stem_genes(
    cohort: Cohort, slides: list[str], num_hvgs: int = STEM_HVGS, top: int = STEM_TOP
) -> list[str]:
    """Stem's HMHVG: genes of high mean and high deviation of the raw counts of all slides.

    Slides are cut to the genes that all of them measured before anything else, as Stem does: what
    is left out would take part in the total counts and in the ranks. Then the union of each slide's
    highly variable genes (genes with a count; counts normalized to the median total, log1p,
    scanpy), without mitochondrial and ribosomal ones, and of these the ``top`` by mean that are
    also among the ``top`` by standard deviation.
    """
    import anndata
    import scanpy

    common = list(cohort.gene_table(slides[0]).index)
    for slide_id in slides[1:]:
        own = set(cohort.gene_table(slide_id).index)
        common = [name for name in common if name in own]
    union = {}
    for slide_id in slides:
        slide = cohort.load(slide_id, common, features=False)
        data = anndata.AnnData(slide.counts.copy())
        data.var_names = common
        data = data[:, slide.counts.getnnz(axis=0) > 0].copy()
        scanpy.pp.normalize_total(data)
        scanpy.pp.log1p(data)
        scanpy.pp.highly_variable_genes(data, n_top_genes=min(num_hvgs, data.n_vars))
        union |= dict.fromkeys(data.var_names[data.var["highly_variable"]])
    kept = [name for name in union if not name.startswith(_PREFIXES)]
    counts = sp.vstack([cohort.load(s, kept, features=False).counts for s in slides], format="csc")
    mean = np.asarray(counts.mean(axis=0, dtype=np.float64)).ravel()
    square = np.asarray(counts.multiply(counts).mean(axis=0, dtype=np.float64)).ravel()
    both = np.zeros(len(kept), int)
    for values in (mean, square - mean**2):
        both[np.argsort(-values, kind="stable")[:top]] += 1
    return [name for name, votes in zip(kept, both, strict=True) if votes == 2]
