"""Train BP-Booster on one fold: gene programs, the network, then the linear readout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from histokit.core.errors import InputError
from histokit.core.files import atomic_path, make_folder
from histokit.data.gene_sets import load_gene_sets
from histokit.models.baselines import LinearMap
from histokit.models.bpbooster import BPBooster
from histokit.train import gene_programs, ridge
from histokit.train.checkpoints import Parts
from histokit.train.network import tensorboard, write_curves
from histokit.train.options import Options
from histokit.train.spots import Spots
from histokit.train.task import FoldTask, Trained
from histokit.train.trainer import Result, Settings, run_epochs

CHUNK = 1 << 14  # patches embedded at a time, where no gradients are needed
ALIKE = 1e-3  # deviation of embeddings, relative to their size, that no regression can use


@dataclasses.dataclass(frozen=True)
class Patches:
    """Patches of all slides of a fold, those that train before those that validate.

    Attributes:
        x: (N, L1) features as the model sees them.
        y: (N, K_H) expression of the highly variable genes.
        num_train: patches that train; the others validate.
    """

    x: torch.Tensor
    y: torch.Tensor
    num_train: int


def fit_bpbooster(task: FoldTask, spots: Spots) -> Trained:
    """Train BP-Booster on a fold; write metrics.csv, loss.png and, for programs, two tables.

    The network learns to rebuild the features and to predict the ``num_hvgs`` most variable
    genes that all slides measured: Adam, a constant learning rate, batches of ``batch_size``
    patches drawn over all training slides. The validation slides choose the epoch by their
    regression loss alone: reconstruction keeps improving long after expression is overfitted.
    Without any the epoch is the last, as in the paper. The readout is fitted on the embeddings of
    training and validation patches, as every closed-form model is. The validation slides choose its
    penalty too; without any it is cross-validated over patches that the network has learnt from,
    which look easier to predict than new ones, so that it comes out too weak.

    Args:
        task: the fold; its folder gets svgs.csv and programs.csv where prototypes begin as
            programs.
        spots: those of the training and then the validation slides.

    Raises:
        InputError: no variable gene or fewer spots than genes, an unusable start from programs,
            gates that have all closed, or a loss that is not finite.
    """
    cfg, split, folder, panel = task.options, task.split, task.folder, task.panel
    hvgs = choose_hvgs(panel, spots.measured, cfg.num_hvgs)
    patches = Patches(
        torch.from_numpy(spots.x).to(cfg.device),
        torch.from_numpy(spots.y[:, hvgs].toarray()).to(cfg.device),
        int((spots.slide < len(split.train)).sum()),
    )
    gene_programs.check_enough_spots(patches.num_train, len(hvgs), "--num-hvgs")
    arguments = {
        "input_dim": patches.x.shape[1],
        "num_genes": len(panel),
        "latent_dim": cfg.latent_dim,
        "num_prototypes": cfg.num_prototypes,
        "num_hvgs": len(hvgs),
        "attention": cfg.attention,
        "gates": cfg.gates,
    }
    found, said = None, cfg.model
    if cfg.init == "programs":
        found = _gene_programs(task)
        names = list(found.members)
        arguments |= {"num_prototypes": len(names), "prototype_names": names}
        said += f", {len(names)} programs of {len(found.genes)} spatially variable genes"
        said += f" (mean cosine {found.similarity:.3f})"

    def build() -> BPBooster:
        torch.manual_seed(cfg.seed)
        model = BPBooster(**arguments)
        if found:
            start = gene_programs.project(found.profiles, cfg.latent_dim, cfg.standardize_programs)
            model.prototypes.data.copy_(start)
        if cfg.start_at_mean:
            torch.nn.init.zeros_(model.hvg_head.weight)
            model.hvg_head.bias.data.copy_(patches.y[: patches.num_train].mean(0))
        model.standardizer = task.standardizer
        return model.to(cfg.device)

    model, alpha = build(), None
    checkpoints = make_folder(folder / "checkpoints")
    board = tensorboard(folder) if cfg.tensorboard else None
    result = train_patches(model, patches, cfg, checkpoints / "last.ckpt", on_epoch=board)
    write_curves(result.history, folder, "loss (validation: regression alone)")
    said += f", {result.epochs} epochs"
    if split.val:
        said += f", validation loss {result.history[result.epochs - 1]['val_loss']:.4f}"
        model.load_state_dict(result.weights)
        alpha = alpha_on_validation(model, patches, spots, cfg.readout == "ridge-by-gene")
        if cfg.refit:
            model = build()
            everything = dataclasses.replace(patches, num_train=len(patches.x))
            again = checkpoints / "refit.ckpt"
            result = train_patches(model, everything, cfg, again, stop_after=result.epochs)
            said += ", trained again with the validation slides"
    model.load_state_dict(result.weights)
    model.check_open()
    said += f", {_open(model.prototype_gate)} prototypes and {_open(model.latent_gate)} dimensions"
    said += f" open; {fit_readout(model, spots, cfg.readout, alpha)}"
    return Trained(model.cpu(), arguments, said)


def choose_hvgs(panel: pd.DataFrame, measured: np.ndarray, num: int) -> np.ndarray:
    """Rows of the ``num`` most variable genes of a panel that all slides (S, G) measured."""
    rank = panel["hvg_rank"].astype(float).where(measured.all(axis=0)).to_numpy()
    chosen = np.argsort(rank, kind="stable")[: min(num, int(np.isfinite(rank).sum()))]
    if not len(chosen):
        raise InputError(
            "no gene is measured on all training slides and detected in 10 % of the spots of "
            "each, so BP-Booster has nothing to learn from; use --panel common or other slides"
        )
    return chosen


def _gene_programs(task: FoldTask) -> gene_programs.Programs:
    """Programs of the training slides as they are, in a control too: it deals counts anew later."""
    options, split = task.options, task.split
    found = gene_programs.gene_programs(
        task.slides.cohort,
        split.train + split.val,
        load_gene_sets(options.programs),
        options.target,
        options.num_svgs,
        options.standardize_programs,
    )
    for name, table in (("svgs.csv", found.genes), ("programs.csv", found.table())):
        with atomic_path(task.folder / name) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    return found


def train_patches(
    model: BPBooster,
    patches: Patches,
    cfg: Options,
    checkpoint: Path,
    stop_after=None,
    on_epoch=None,
) -> Result:
    """Adam over shuffled batches of patches; killed and started again it ends the same."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    held = slice(patches.num_train, None)

    def train_steps(epoch: int, done: int) -> Iterator[tuple[float, int]]:
        shuffle = torch.Generator().manual_seed(cfg.seed * 1_000_003 + epoch)
        order = torch.randperm(patches.num_train, generator=shuffle)
        for batch in order.to(patches.x.device).split(cfg.batch_size)[done:]:
            loss = model.patch_loss(patches.x[batch], patches.y[batch], cfg.losses, cfg.loss_scale)
            if not torch.isfinite(loss):
                raise InputError(f"the loss is {loss.item()} in epoch {epoch}; lower --lr")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, cfg.clip)
            optimizer.step()
            yield loss.item() * len(batch), len(batch)
        model.check_open()

    def val_steps() -> Iterator[tuple[float, int]]:
        parts = zip(patches.x[held].split(CHUNK), patches.y[held].split(CHUNK), strict=True)
        kind = "reconstruction" if cfg.losses == "reconstruction" else "regression"
        for x, y in parts:
            yield model.patch_loss(x, y, kind, cfg.loss_scale).item() * len(x), len(x)

    settings = dataclasses.replace(Settings.of(cfg), stop_after=stop_after)
    validated = patches.num_train < len(patches.x)
    return run_epochs(
        Parts(model, optimizer),
        train_steps,
        val_steps if validated else None,
        settings,
        checkpoint,
        on_epoch,
    )


@torch.no_grad()
def embed(model: BPBooster, x: torch.Tensor) -> np.ndarray:
    """Patches x (N, L1) to their refined embeddings (N, L2)."""
    model.eval()
    return torch.cat([model.refine(part) for part in x.split(CHUNK)]).cpu().numpy()


def alpha_on_validation(
    model: BPBooster, patches: Patches, spots: Spots, by_gene: bool
) -> float | np.ndarray:
    """The readout's penalty, or one for each gene, that serves the validation patches best."""
    rows = np.arange(len(patches.x))
    split = (rows[: patches.num_train], rows[patches.num_train :])
    latent = dataclasses.replace(spots, x=embed(model, patches.x))
    return ridge.choose_alpha(latent, [split], by_gene=by_gene)


def fit_readout(
    model: BPBooster, spots: Spots, readout: str, alpha: float | np.ndarray | None = None
) -> str:
    """Fit ``model.head`` on the embeddings of spots in closed form; a line on how.

    Args:
        model: trained.
        spots: the spots of all slides of the fold, before the model.
        readout: ``ridge``, ``ridge-by-gene`` or ``ridge-hest``.
        alpha: penalty of the first two; cross-validated by default.
    """
    x = torch.from_numpy(spots.x).to(model.prototypes.device)
    latent = dataclasses.replace(spots, x=embed(model, x))
    if readout == "ridge-hest":
        linear, said = ridge.fit_ridge_hest(latent.x, latent.y), "HEST-Bench ridge"
    elif alpha is not None:
        linear = ridge.ridge_at(latent, alpha)
        said = f"{readout}, {ridge.in_words(alpha)} by the validation slides"
    else:
        linear, alpha = ridge.fit_ridge(latent, by_gene=readout == "ridge-by-gene")
        said = f"{readout}, {ridge.in_words(alpha)} by cross-validation"
    weight, bias = as_one_layer(linear)
    model.head.weight.data.copy_(weight)
    model.head.bias.data.copy_(bias)
    said += f", on {len(spots):,} spots"
    if latent.x.std(axis=0).max() < ALIKE * np.abs(latent.x).max():
        said += "; warning: every patch has almost the same embedding, because all prototypes are "
        said += "alike: raise --lr, or train with --standardize-programs or --init random"
    return said


def as_one_layer(linear: LinearMap) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardization, components and regression as one weight (G, D) and bias (G,), float64."""
    state = {name: value.double() for name, value in linear.state_dict().items()}
    components = state["components"] / state["scale"]
    offset = components @ state["mean"] + state["offset"]
    weight = state["head.weight"]
    return weight @ components, state["head.bias"] - weight @ offset


def _open(gate: torch.Tensor) -> str:
    return f"{int((gate > 0.5).sum())} of {len(gate)}"
