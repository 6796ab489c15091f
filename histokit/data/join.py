"""Spots and counts of a slide, joined by barcode."""

from __future__ import annotations

from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from histokit.core.errors import InputError
from histokit.data.placement import FLAGS, selected_spots
from histokit.data.sources import SlideSource, check_spots


def unmeasured(barcodes: Sequence[str]) -> anndata.AnnData:
    """What ``read_counts`` returns, for spots where no gene was measured."""
    empty = pd.DataFrame({"gene_id": [], "symbol": [], "measured": []}, dtype=object)
    names = pd.Index(barcodes, dtype=str).str.strip().drop_duplicates()
    none = {"control_probes": 0, "other_features": 0, "date_names": 0, "renamed_genes": 0}
    return anndata.AnnData(
        sp.csr_matrix((len(names), 0), dtype=np.float32),
        obs=pd.DataFrame(index=names),
        var=empty.astype({"measured": bool}).set_axis(pd.Index([], dtype=str)),
        uns=none | {"note": ""},
    )


def join_spots(slide: SlideSource, width: int, height: int) -> tuple[anndata.AnnData, dict]:
    """Join spots and counts of a slide by barcode, in the order of the spot list.

    Args:
        slide: where to read from.
        width: the width of the image in level-0 pixels; spots that lie outside are dropped.
        height: the height of the image in level-0 pixels.

    Returns:
        counts of the joined spots, without genes where nothing was measured, with
        ``obsm["spatial"]`` (N, 2) float64 centers, and the row of the reconciliation table.

    Raises:
        InputError: no common barcode, no spot on the image, or fewer than two joined spots.
    """
    listed = slide.load_spots()
    counts = slide.load_counts() if slide.load_counts else unmeasured(listed["barcode"])
    spots = check_spots(listed, slide.slide_id)
    selected = spots[selected_spots(spots, f"slide {slide.slide_id}")]
    inside = selected["x"].between(0, width, "left") & selected["y"].between(0, height, "left")
    common = selected["barcode"].isin(counts.obs_names)
    kept = selected[inside & common]
    name = slide.slide_id
    if not common.any():
        shown = [
            str(v[0]) if len(v) else "none" for v in (selected["barcode"].array, counts.obs_names)
        ]
        raise InputError(
            f"slide {name}: spots and counts have no barcode in common (spots: {shown[0]!r}, "
            f"counts: {shown[1]!r}); make both use the same names, with barcodes as rows"
        )
    if not inside.any():
        raise InputError(
            f"slide {name}: no spot lies on the image ({width} x {height} px); coordinates must be "
            "level-0 pixels of this image"
        )
    if len(kept) < 2 and slide.load_counts:
        raise InputError(
            f"slide {name}: spots left after the join: {len(kept)}; at least 2 are needed to score "
            "a slide, leave it out"
        )
    joined = counts[kept["barcode"].to_numpy()].copy()
    joined.obsm["spatial"] = kept[["x", "y"]].to_numpy()
    for column in kept.columns.difference(["barcode", "x", "y", *FLAGS], sort=False):
        values = kept[column]
        joined.obs[column] = (values.astype(str) if values.dtype == object else values).to_numpy()
    row = {
        "slide_id": name,
        "spots_listed": len(listed),
        "without_position": len(listed) - len(spots),
        "spots_selected": len(selected),
        "counts_rows": counts.n_obs,
        "joined": len(kept),
        "outside_image": int((~inside).sum()),
        "without_counts": int((inside & ~common).sum()),
        "counts_without_spot": int((~counts.obs_names.isin(selected["barcode"])).sum()),
        "genes": counts.n_vars,
        "control_probes": counts.uns["control_probes"],
        "other_features": counts.uns["other_features"],
        "date_names": counts.uns["date_names"],
        "note": counts.uns["note"],
        "renamed_genes": counts.uns["renamed_genes"],
        "empty_spots": int((np.asarray(joined.X.sum(axis=1)).ravel() == 0).sum()),
    }
    return joined, row
