r"""Tune an image encoder on the training slides of each fold, with ST-Net's head.

    python run_extract.py  --source COHORT --out DATA
    python run_finetune.py --data DATA --folds leave-one-patient-out --run runs/tuned
    python run_eval.py     --run runs/tuned

The run holds a head and encoder weights for each fold, and is scored as any other. The features of
each fold's encoder go into DATA/features/NAME/FOLD, where other models find those of their fold:

    python run_train.py --data DATA --encoder efficientnet-lite0-tuned \
        --folds leave-one-patient-out --model ridge --run runs/tuned-ridge

Given again, the same command goes on where it was stopped. No pixel of a fold's test slides is read
before its encoder is tuned.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from histokit.core.errors import InputError
from histokit.core.options import Checked, option, required, run


@dataclass(frozen=True)
class Options(Checked):
    """Options of run_finetune.py; what run_train.py has too means the same there."""

    data: str = required("folder that run_extract.py wrote, with the encoder's features")
    run: str = required("folder of this run, made if absent")
    encoder: str = option(
        "efficientnet-lite0",
        "encoder to tune, as of run_extract.py; timm:densenet121 is ST-Net's",
    )
    weights: str | None = option(
        None, "weights of the encoder, as of run_extract.py", shown="from the hub or its cache"
    )
    name: str | None = option(
        None, "what the tuned features are called", shown="the encoder's name with -tuned"
    )
    source: str | None = option(
        None,
        "the slides, as of run_extract.py, where images do not lie where the extraction found them",
        shown="as the extraction recorded it",
    )
    folds: str = option("auto", "folds, as of run_train.py")
    cancer_codes: str = option(
        "split", "as of run_train.py", choices=("split", "unfilled", "cohort")
    )
    val_fraction: float | None = option(
        None,
        "share of the training patients that choose the epoch, where the split names no "
        "validation; with 0 it is the last",
        shown="0.2",
        least=0,
        below=1,
    )
    target: str = option(
        "counts10k-log1p", "scale of the targets", choices=("counts10k-log1p", "log1p", "log2")
    )
    panel: str = option("common", "genes to predict, as of run_train.py")
    top_genes: int | None = option(
        None, "keep only so many genes of the panel, as of run_train.py", shown="all", least=1
    )
    seed: int = option(0, "seed of order, mirrors, turns and dropout", least=0, most=2**32 - 1)
    preset: str = option(
        "paper",
        "paper: AdamW on the mean squared error; literal: the authors' SGD on its sum over spots",
        choices=("paper", "literal"),
    )
    lr: float | None = option(None, "learning rate", shown="1e-4; 1e-6 for literal", above=0)
    weight_decay: float = option(0.0, "weight decay", least=0)
    epochs: int = option(50, "epochs at most", least=1)
    patience: int = option(10, "epochs without a better validation loss before stopping", least=1)
    spots_per_step: int = option(32, "patches a step", least=2)
    slides_together: int = option(
        4,
        "slides whose patches are mixed, and in memory at a time: 0.15 MB a patch of 224 px",
        least=1,
    )
    views: int = option(
        8,
        "8: features are means over the turns and mirrors of a patch, so that predictions are too, "
        "as the authors'",
        choices=(1, 8),
    )
    allow_leakage: bool = option(
        False,
        "tune although a test slide shares its patient or image with training",
        group="checks",
    )
    allow_missing: bool = option(
        False, "tune although slides of the source are not extracted", group="checks"
    )
    device: str = option("cpu", "torch device, such as cpu or cuda", group="machine")
    workers: int = option(1, "threads that read patches", group="machine", least=1, most=256)
    checkpoint_seconds: float = option(
        300.0, "seconds between checkpoints", group="machine", least=0
    )


MACHINE = ("run", "source", "device", "workers", "checkpoint_seconds")  # may differ when going on


def main(cfg: Options) -> None:
    """Tune every fold that is not tuned yet."""
    from histokit import audit
    from histokit.core import distributed
    from histokit.core.distributed import ALONE
    from histokit.core.files import folder_lock, make_folder, remove_leftovers
    from histokit.core.progress import within
    from histokit.data.cohort import Cohort, check_alike, refuse_missing
    from histokit.extract.finetune import Patches
    from histokit.train import run as runs

    distributed.check_device(cfg.device)
    cohort = Cohort(cfg.data, cfg.encoder)
    refuse_missing(cohort, cfg.allow_missing)
    cohort, training = cohort.with_counts(), training_options(cfg)
    folds = runs.choose_folds(cohort, training)
    runs.say_folds(cohort, folds)
    check_alike(cohort, folds)
    runs.refuse_seen(cohort, folds)
    leaks = audit.training_leaks(cohort, runs.with_tuners(cohort, folds))
    if not cfg.allow_leakage:
        audit.refuse_leakage(leaks)
    patches = Patches(cohort, network(cfg), images(cfg), workers=cfg.workers)
    for slide_id in dict.fromkeys(s for f in folds for s in (*f.train, *f.val, *f.test)):
        patches.check(slide_id)
    folder, place = make_folder(cfg.run), make_folder(features_folder(cfg))
    with folder_lock(folder), folder_lock(place):
        remove_leftovers(folder)
        remove_leftovers(place)
        about = cohort.provenance(folds[0].train[0])
        about |= tuned(patches.encoder, cfg).provenance()
        claim(cfg, folder, place)
        runs.claim(folder, training, cohort, folds, features=runs.shared_identity(about))
        audit.audit_training(cohort, folds, cfg.panel, folder / "audit", leaks)
        key = runs.join_genes(cohort, folds, folder, ALONE)
        for number, split in enumerate(folds, 1):
            with within(f"fold {number} of {len(folds)}"):
                finetune_fold(cfg, training, cohort, split, key, patches)
    print(f"wrote {len(folds)} tuned encoders to {folder} and their features to {place}")


def training_options(cfg: Options):
    """Options of the run that run_eval.py will find: stnet on the tuned features."""
    from histokit.train.options import Options as Training

    shared = {f.name for f in fields(Training)} & {f.name for f in fields(cfg)}
    own = {name: getattr(cfg, name) for name in shared - {"encoder"}}
    return Training(model="stnet", encoder=tuned_name(cfg), refit=False, **own).resolved()


def tuned_name(cfg: Options) -> str:
    """What the tuned features are called."""
    if cfg.name is not None and (not cfg.name or set(cfg.name) & set("+/:")):
        raise InputError(f"--name {cfg.name!r} cannot name a folder of features; leave out + / :")
    return cfg.name or f"{cfg.encoder}-tuned"


def features_folder(cfg: Options) -> Path:
    """Where the features of all folds go."""
    from histokit.core.files import safe_name
    from histokit.data.features import TUNED

    place = Path(cfg.data) / "features" / safe_name(tuned_name(cfg))
    if place.is_dir() and not (place / TUNED).is_file() and any(place.glob("*.h5")):
        raise InputError(f"{place} holds the features of another encoder; give another --name")
    return place


def claim(cfg: Options, folder: Path, place: Path) -> None:
    """Note in the run and beside the features how both are made, or check that it was so."""
    from histokit.core.files import read_json, write_json
    from histokit.data.features import TUNED

    about = {k: v for k, v in asdict(cfg).items() if k not in MACHINE}
    about |= {"data": str(Path(cfg.data).resolve()), "run": str(folder.resolve())}
    for path in (folder / TUNED, place / TUNED):
        there = read_json(path) if path.is_file() else about
        for name, value in about.items():
            if there.get(name) != value:
                raise InputError(
                    f"{path} says that --{name.replace('_', '-')} was {there.get(name)}, not "
                    f"{value}; give another --run and --name, or delete {path.parent}"
                )
        write_json(path, about)


def network(cfg: Options):
    """The encoder, with the weights to begin from."""
    from histokit.extract.base import How
    from histokit.extract.encoders import NetworkEncoder, make_encoder

    if "+" in cfg.encoder:
        raise InputError(f"--encoder {cfg.encoder} is several; tune one at a time")
    encoder = make_encoder(cfg.encoder, cfg.weights, How(device=cfg.device))
    if not isinstance(encoder, NetworkEncoder):
        raise InputError(f"--encoder {cfg.encoder} has nothing to tune; name a network")
    if encoder.tuned_on:
        raise InputError(f"--weights {cfg.weights} are tuned already; begin with published weights")
    return encoder


def tuned(encoder, cfg: Options):
    """The same network as an encoder of the tuned features, of their name and views."""
    import copy

    found = copy.copy(encoder)
    found.name, found.how = tuned_name(cfg), replace(encoder.how, views=cfg.views)
    return found


def images(cfg: Options) -> dict[str, Path]:
    """Images by slide id where they are read from a source; empty by default."""
    from histokit.data.layouts import read_source

    if cfg.source is None:
        return {}
    return {slide.slide_id: slide.image for slide in read_source(cfg.source)}


def finetune_fold(cfg: Options, training, cohort, split, key, patches) -> None:
    """Tune on one fold: its tables, the training, weights, features and, last, the head."""
    import json
    import shutil

    from histokit import models
    from histokit.core.files import make_folder
    from histokit.data.cohort import Cohort
    from histokit.extract.finetune import save_weights, write_tuned
    from histokit.train import fold as steps
    from histokit.train.network import write_curves
    from histokit.train.task import FoldSlides, FoldTask

    folder = make_folder(Path(cfg.run) / "folds" / split.id)
    if steps.is_trained(folder):
        print(f"fold {split.name}: already tuned")
        return
    own = cohort.with_cancers(split.cancers)
    slides = FoldSlides(own, own, split)
    panel = steps.choose_panel(slides, training, key)
    moments, kept = steps.read_slides(slides, panel, training)
    panel, _ = steps.rank_genes(panel, moments, kept, training, split.name)
    standardizer = steps.fit_standardizer(slides, moments, training)
    steps.write_tables(FoldTask(slides, panel, standardizer, training, folder))
    encoder = network(cfg)
    head, arguments, result = tune_fold(cfg, training, own, split, panel, encoder, patches)
    write_curves(result.history, folder)
    encoder = tuned(encoder, cfg)
    encoder.tuned_on = json.dumps({"train": split.train, "val": split.val})
    path = folder / "encoder.safetensors"
    encoder.weights_sha256 = save_weights(encoder.model, encoder.tuned_on, path)
    place = make_folder(features_folder(cfg) / split.id)
    for slide_id in (*split.train, *split.val, *split.test):
        write_tuned(slide_id, patches, encoder, place / f"{slide_id}.h5")
    made = Cohort(cfg.data, training.encoder).of_fold(split.id)
    steps.write_features(made.provenance(split.train[0]), folder)
    models.save(head, "stnet", arguments, folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    print(f"fold {split.name}: tuned on {len(split.train)} slides, {result.epochs} epochs")


def tune_fold(cfg: Options, training, cohort, split, panel, encoder, patches):
    """The training itself: the head and its arguments, and the result; the encoder is tuned."""
    import torch

    from histokit.core.files import make_folder
    from histokit.models import STNet
    from histokit.train.finetune import PatchSource, Tuned, tune
    from histokit.train.trainer import Settings

    arguments = {"input_dim": encoder.dim, "num_genes": len(panel)}
    head = STNet(**arguments)
    head.start_at(torch.tensor(panel["train_mean"].to_numpy()))
    net = Tuned(encoder.model, encoder.embed, head.to(cfg.device))
    source = PatchSource(cohort, panel[["gene", "gene_id", "symbol"]], cfg.target, patches)
    result = tune(
        net,
        source,
        split.train,
        split.val,
        Settings.of(training),
        make_folder(Path(cfg.run) / "folds" / split.id / "checkpoints") / "tune.ckpt",
        cfg.spots_per_step,
        cfg.slides_together,
    )
    net.load_state_dict(result.weights)
    net.eval().requires_grad_(False)
    return head.cpu(), arguments, result


if __name__ == "__main__":
    run(main, Options, __doc__)
