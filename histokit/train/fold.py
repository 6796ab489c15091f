"""One fold of a run: choose genes, fit the model, write its folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from histokit import models
from histokit.core.distributed import ALONE, Team
from histokit.core.errors import InputError
from histokit.core.files import atomic_path
from histokit.core.progress import progress_bar
from histokit.data.cohort import Cohort, Slide
from histokit.data.gene_keys import GeneKey
from histokit.data.genes import dispersion, normalise, rank_hvgs, select_panel
from histokit.data.splits import Split
from histokit.data.views import LIBRARY_SIZE
from histokit.models.base import Standardizer
from histokit.train import ridge
from histokit.train.bpbooster import fit_bpbooster
from histokit.train.network import fit_network
from histokit.train.spots import Survey


def train_fold(
    cohort: Cohort,
    split: Split,
    cfg,
    folder: Path,
    team: Team = ALONE,
    taught: Cohort | None = None,
    key: GeneKey | None = None,
) -> None:
    """Train one fold into ``folder``; a finished one is left alone.

    Files: split.csv, genes.csv, metrics.csv and loss.png for a network, model.json, and last
    model.safetensors, whose presence marks the fold as finished. One slide at a time is in memory,
    but for closed forms, BP-Booster and ``--hvg dispersion``, which need all training spots.

    Args:
        cohort: of the slides; genes and their ranks come from it.
        split: the fold.
        cfg: options of run_train.py.
        folder: of the fold.
        team: the processes that train a network together.
        taught: what the model learns from instead of it, in a control.
        key: how the cohort's genes are joined; of the fold's slides alone by default.
    """
    taught = taught or cohort
    if (folder / "model.safetensors").is_file():
        if team.first:
            print(f"fold {split.name}: already trained")
        return
    members = split.train + split.val  # test slides are never read here
    panel = select_panel({s: cohort.gene_table(s) for s in members}, cfg.panel, key)
    stacked = cfg.model not in models.NETWORKS or cfg.hvg == "dispersion"
    survey, kept = _read(cohort, taught, split, panel, cfg, stacked, team)
    panel, seen = _describe(panel, survey, kept, cfg, split.name)
    if team.first:
        _write_table(split.table(cohort.slides), folder / "split.csv")
        _write_table(panel, folder / "genes.csv")
    blocks = cohort.provenance(members[0]).get("blocks", ())
    standardizer = Standardizer.from_moments(cfg.standardize, *survey.feature_moments(), blocks)
    if cfg.model in models.NETWORKS:
        model, arguments, said = fit_network(taught, split, cfg, folder, panel, standardizer, team)
    else:
        pooled = _pool(kept, cfg.target, seen)
        if cfg.model == "bpbooster":
            model, arguments, said = fit_bpbooster(
                taught, split, cfg, folder, panel, pooled, standardizer
            )
        else:
            model, arguments, said = _fit_closed_form(cfg.model, pooled, standardizer)
    if team.first:
        models.save(model, cfg.model, arguments, folder)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        print(f"fold {split.name}: {said}")
    team.wait()


def _read(
    cohort: Cohort, taught: Cohort, split: Split, panel: pd.DataFrame, cfg, stacked: bool,
    team: Team,
) -> tuple[Survey, list[Slide]]:  # fmt: skip
    """Survey the training slides, each rank its share.

    Where ``stacked`` asks, keep them as the model is taught them.
    """
    survey, kept = Survey(len(panel), cfg.target), []
    genes = panel[["gene", "gene_id", "symbol"]]
    members = split.train + split.val
    bar = progress_bar(
        members if stacked else team.share(members),
        desc=f"fold {split.name}: reading",
        unit="slide",
    )
    for slide_id in bar:
        try:
            slide = cohort.load(slide_id, genes)
        except InputError as error:
            if stacked or cfg.on_error == "stop":
                raise
            print(f"slide {slide_id} is left out: {error}", file=sys.stderr)
            continue
        survey.add(slide)
        if stacked:
            kept.append(slide if taught is cohort else taught.load(slide_id, genes))
    if not stacked:
        survey, *others = team.gather(survey)
        for other in others:
            survey.merge(other)
    return survey, kept


def _describe(
    panel: pd.DataFrame, survey: Survey, kept: list[Slide], cfg, fold: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """The panel's final genes with rank and moments, and which of all they are, (G,) bool."""
    panel["train_mean"], panel["train_variance"] = survey.moments()
    seen = np.ones(len(panel), bool)
    if cfg.panel == "detected":
        seen = survey.detected
        if not seen.any():
            raise InputError(
                f"no gene is detected in 10 % of the spots of every training slide of fold {fold}; "
                "use --panel common"
            )
    variability, eligible = survey.variability(), survey.detected
    if cfg.hvg == "dispersion":
        counts = sp.vstack([s.counts for s in kept], format="csr")
        sizes = np.concatenate([s.library_size for s in kept])
        variability = dispersion(counts, sizes, eligible)
    panel.insert(3, "hvg_rank", pd.array(rank_hvgs(variability, eligible), dtype="Int64"))
    return panel[seen].reset_index(drop=True), seen


def _pool(slides: list[Slide], target: str, seen: np.ndarray) -> dict:
    """Stack the training spots: features x, targets y of genes seen, and which slide each is of."""
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
        "y": normalise(counts, library_size, target)[:, seen],
        "measured": np.stack([s.measured for s in slides])[:, seen],
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
        model, said = ridge.fit_mean(x, y, measured, slide), "mean"
    elif name == "ridge-hest":
        model, said = ridge.fit_ridge_hest(x, y), "HEST-Bench ridge"
    elif name == LIBRARY_SIZE:
        model, said = ridge.fit_library_size(x, y, measured, slide), "line on library size"
    else:
        rescale = standardizer.how == "none"
        components = None if name == "ridge-no-pca" else ridge.HEST_COMPONENTS
        groups = pooled["group"]
        by_gene = name == "ridge-by-gene"
        how = rescale, components, by_gene
        model, alpha = ridge.fit_ridge(x, y, measured, slide, groups, *how)
        said = f"{name}, {ridge.in_words(alpha)} by cross-validation"
    if name != "mean":
        arguments["num_components"] = len(model.components)
    model.standardizer = standardizer
    return model, arguments, f"{said}, on {y.shape[0]:,} spots"


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
