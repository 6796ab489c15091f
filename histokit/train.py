"""One fold of a run: choose genes, fit the model, write its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from histokit import controls, fit, models
from histokit.boost import fit_bpbooster
from histokit.cohort import Cohort
from histokit.errors import InputError
from histokit.files import atomic_path
from histokit.genes import detected, moments, normalise, rank_hvgs, select_panel
from histokit.models.base import Standardizer
from histokit.network import fit_network
from histokit.progress import progress_bar
from histokit.splits import Split


def train_fold(cohort: Cohort, split: Split, cfg, folder) -> None:
    """Train one fold into ``folder``; a finished one is left alone.

    Files: split.csv, genes.csv, metrics.csv and loss.png for a network, model.json, and last
    model.safetensors, whose presence marks the fold as finished.
    """
    if (folder / "model.safetensors").is_file():
        print(f"fold {split.name}: already trained")
        return
    _write_table(split.table(cohort.slides), folder / "split.csv")
    members = split.train + split.val  # test slides are never read here
    tables = {s: cohort.gene_table(s) for s in members}
    panel = select_panel(tables, cfg.panel)
    loaded = progress_bar(members, desc=f"fold {split.name}: reading", unit="slide")
    pooled = _pool([cohort.load(s, list(panel["gene"])) for s in loaded], cfg.target)
    if cfg.panel == "detected":
        seen = detected(pooled["counts"], pooled["slide"])
        if not seen.any():
            raise InputError(
                f"no gene is detected in 10 % of the spots of every training slide of fold "
                f"{split.name}; use --panel common"
            )
        panel = panel[seen].reset_index(drop=True)
        pooled |= {key: pooled[key][:, seen] for key in ("counts", "y", "measured")}
    panel["hvg_rank"] = pd.array(
        rank_hvgs(pooled["counts"], pooled["library_size"], pooled["slide"], cfg.hvg),
        dtype="Int64",
    )
    y, measured, slide = pooled["y"], pooled["measured"], pooled["slide"]
    panel["train_mean"], panel["train_variance"] = moments(y, measured, slide)
    _write_table(panel, folder / "genes.csv")
    blocks = cohort.provenance(members[0]).get("blocks", ())
    standardizer = Standardizer.fit(cfg.standardize, torch.cat(pooled["x"]), blocks)
    if cfg.model == "bpbooster":
        model, arguments, said = fit_bpbooster(
            cohort, split, cfg, folder, panel, pooled, standardizer
        )
    elif cfg.model in models.NETWORKS:
        model, arguments, said = fit_network(cohort, split, cfg, folder, panel, standardizer)
    else:
        model, arguments, said = _fit_closed_form(cfg.model, pooled, standardizer)
    models.save(model, cfg.model, arguments, folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    print(f"fold {split.name}: {said}")


def _pool(slides: list, target: str) -> dict:
    """Stack the training spots: features x, targets y, raw counts, and which slide each is of."""
    sizes = [len(s.barcodes) for s in slides]
    widths = {s.features.shape[1] for s in slides}
    if len(widths) > 1:
        raise InputError(
            f"the slides' features have {sorted(widths)} dimensions; extract them with one encoder"
        )
    counts = sp.vstack([s.counts for s in slides], format="csr")
    library_size = np.concatenate([s.library_size for s in slides])
    return {
        "x": [s.features for s in slides],
        "y": normalise(counts, library_size, target),
        "counts": counts,
        "library_size": library_size,
        "measured": np.stack([s.measured for s in slides]),
        "slide": np.repeat(np.arange(len(slides)), sizes),
        "group": _groups(slides),
    }


def _groups(slides: list) -> np.ndarray:
    """What cross-validation holds out: patients, slides of one patient, or stripes of one slide."""
    sizes = [len(s.barcodes) for s in slides]
    if len({s.patient for s in slides}) > 1:
        return np.repeat([s.patient for s in slides], sizes)
    if len(slides) > 1:
        return np.repeat([s.slide_id for s in slides], sizes)
    x = slides[0].centres[:, 0]
    return np.searchsorted(np.quantile(x, [0.25, 0.5, 0.75]), x)


def _fit_closed_form(
    name: str, pooled: dict, standardizer: Standardizer
) -> tuple[models.Model, dict, str]:
    """The fitted model, the arguments that rebuild it, and a line on what was done."""
    x = torch.cat([standardizer(features) for features in pooled["x"]]).numpy()
    y, measured, slide = (pooled[key] for key in ("y", "measured", "slide"))
    arguments = {"input_dim": x.shape[1], "num_genes": y.shape[1]}
    if name == "mean":
        model, said = fit.fit_mean(x, y, measured, slide), "mean"
    elif name == "ridge-hest":
        model, said = fit.fit_ridge_hest(x, y), "HEST-Bench ridge"
    elif name == controls.LIBRARY_SIZE:
        model, said = controls.fit_library_size(x, y, measured, slide), "line on library size"
    else:
        rescale = standardizer.how == "none"
        components = None if name == "ridge-no-pca" else fit.HEST_COMPONENTS
        groups = pooled["group"]
        model, alpha = fit.fit_ridge(x, y, measured, slide, groups, rescale, components)
        said = f"{name}, alpha {alpha:.3g} by cross-validation"
    if name != "mean":
        arguments["num_components"] = len(model.components)
    model.standardizer = standardizer
    return model, arguments, f"{said}, on {y.shape[0]:,} spots"


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
