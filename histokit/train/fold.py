"""The steps of training one fold: choose genes, read slides, fit the model, write its folder."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histokit import models
from histokit.core.distributed import ALONE, Team
from histokit.core.errors import InputError
from histokit.core.files import atomic_path, write_json
from histokit.core.progress import placed, progress_bar
from histokit.data.cohort import Slide
from histokit.data.features import FOLD_FEATURES, feature_identity
from histokit.data.gene_keys import GeneKey
from histokit.data.genes import dispersion, rank_hvgs, select_panel
from histokit.models.base import Standardizer
from histokit.models.registry import BOOSTED, CLOSED_FORM, MODELS, NETWORK
from histokit.train.bpbooster import fit_bpbooster
from histokit.train.network import fit_network
from histokit.train.options import Options
from histokit.train.ridge import fit_closed_form
from histokit.train.spots import TrainingMoments, stack
from histokit.train.task import FoldSlides, FoldTask, Trained


def is_trained(folder: Path) -> bool:
    """Whether the fold in a folder is trained to its end: the weights are written last."""
    return (folder / "model.safetensors").is_file()


def choose_panel(slides: FoldSlides, cfg: Options, key: GeneKey | None = None) -> pd.DataFrame:
    """The genes to predict: gene, gene_id, symbol; test slides have no say.

    Args:
        slides: the slides of the fold.
        cfg: the options, resolved.
        key: how the cohort's genes are joined; decided by the fold's slides alone by default.
    """
    tables = {s: slides.cohort.gene_table(s) for s in slides.members}
    return select_panel(tables, cfg.panel, key)


def fit_standardizer(slides: FoldSlides, moments: TrainingMoments, cfg: Options) -> Standardizer:
    """What is done to features before a model sees them."""
    blocks = slides.cohort.provenance(slides.split.train[0]).get("blocks", ())
    how = cfg.standardize or "none"  # a model made of others leaves it to them
    return Standardizer.from_moments(how, *moments.feature_moments(), blocks)


def write_tables(task: FoldTask) -> None:
    """Write split.csv and genes.csv into the fold's folder."""
    if task.team.first:
        _write_table(task.split.table(task.slides.cohort.slides), task.folder / "split.csv")
        _write_table(task.panel, task.folder / "genes.csv")


def write_features(about: Mapping, folder: Path) -> None:
    """Write features.json, the identity of features that are a fold's own, into its folder.

    Args:
        about: the provenance of a slide of the fold.
        folder: the folder of the fold.
    """
    write_json(folder / FOLD_FEATURES, feature_identity(about))


def fit(task: FoldTask, slides: list[Slide], seen: np.ndarray) -> Trained:
    """Train the model as its row of the table says.

    Args:
        task: the fold.
        slides: training and validation slides; empty for a network, which reads them itself.
        seen: (G,) bool, which genes of the slides are in the panel.
    """
    if task.spec.trained_by == NETWORK:
        return fit_network(task)
    spots = stack(slides, task.options.target, seen, task.standardizer)
    return TRAINERS[task.spec.trained_by](task, spots)


def save(task: FoldTask, trained: Trained) -> None:
    """Write model.json and, last, model.safetensors; checkpoints go."""
    if task.team.first:
        name = trained.name or task.spec.name
        models.save(trained.model, name, trained.arguments, task.folder)
        shutil.rmtree(task.folder / "checkpoints", ignore_errors=True)
        print(f"fold {task.split.name}: {trained.said}")
    task.team.wait()


def read_slides(
    slides: FoldSlides, panel: pd.DataFrame, cfg: Options, team: Team = ALONE
) -> tuple[TrainingMoments, list[Slide]]:
    """Moments of the training and validation slides, each rank its share; one slide in memory.

    Closed forms, BP-Booster and ``--hvg dispersion`` need all training spots at once: for them the
    slides are kept, as the model is taught them.
    """
    stacked = MODELS[cfg.model].trained_by != NETWORK or cfg.hvg == "dispersion"
    moments, kept = TrainingMoments(len(panel), cfg.target), []
    genes = panel[["gene", "gene_id", "symbol"]]
    cohort, taught, split = slides.cohort, slides.taught, slides.split
    on_all = cfg.refit or not MODELS[cfg.model].validates  # closed forms have no validation
    fitted = slides.members if on_all else split.train
    bar = progress_bar(
        slides.members if stacked else team.share(slides.members),
        desc="reading",
        unit="slide",
    )
    for slide_id in bar:
        bar.set_description(placed(f"reading {slide_id}"), refresh=False)
        try:
            slide = cohort.load(slide_id, genes)
        except InputError as error:
            if stacked or cfg.on_error == "stop":
                raise
            print(f"slide {slide_id} is left out: {error}", file=sys.stderr)
            continue
        moments.add(slide, slide_id in fitted)
        if stacked:
            kept.append(slide if taught is cohort else taught.load(slide_id, genes))
    if not stacked:
        moments, *others = team.gather(moments)
        for other in others:
            moments.merge(other)
    return moments, kept


def rank_genes(
    panel: pd.DataFrame, moments: TrainingMoments, kept: list[Slide], cfg: Options, fold: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """The panel's final genes with rank and moments, and which of all they are, (G,) bool."""
    panel["train_mean"], panel["train_variance"] = moments.moments()
    panel["train_spots"] = moments.train_spots
    if unlearned := int((moments.train_spots == 0).sum()):
        print(
            f"fold {fold}: {unlearned:,} of {len(panel):,} genes get no prediction: no training "
            "spot has a count of them"
        )
    seen = np.ones(len(panel), bool)
    if cfg.panel == "detected":
        seen = moments.detected
        if not seen.any():
            raise InputError(
                f"no gene is detected in 10 % of the spots of every training slide of fold {fold}; "
                "use --panel common"
            )
    variability, eligible = moments.variability(), moments.detected
    if cfg.hvg == "dispersion":
        counts = sp.vstack([s.counts for s in kept], format="csr")
        sizes = np.concatenate([s.library_size for s in kept])
        variability = dispersion(counts, sizes, eligible)
    ranks = rank_hvgs(variability, eligible)
    if cfg.top_genes:
        seen = seen & (ranks <= cfg.top_genes)
        if not seen.any():
            raise InputError(
                f"--top-genes: no gene is detected in 10 % of the spots of every training slide of "
                f"fold {fold}, so none can be ranked; leave the option out"
            )
    panel.insert(3, "hvg_rank", pd.array(ranks, dtype="Int64"))
    return panel[seen].reset_index(drop=True), seen


TRAINERS = {CLOSED_FORM: fit_closed_form, BOOSTED: fit_bpbooster}


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
