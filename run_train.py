r"""Train a model on an extracted cohort, fold by fold.

    python run_train.py --data data/her2st --model histoprism --folds leave-one-slide-out \
        --run runs/her2st-histoprism

    python run_train.py --data data/her2st --model bpbooster --init programs \
        --programs h.all.v2025.1.Hs.symbols.gmt --folds leave-one-slide-out --run runs/booster

    python run_train.py --data data/her2st --model auto --folds leave-one-patient-out \
        --run runs/her2st-auto

auto trains several models and takes the one that predicts held-out training patients best
(docs/models.md); average takes the mean of their predictions.

Given again, the same command goes on where it was stopped.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from histokit.core.options import run
from histokit.train.options import Options


def main(cfg: Options) -> None:
    """Train every fold that is not trained yet, and its controls where they are asked for."""
    from histokit import ops
    from histokit.core import distributed
    from histokit.core.precision import tensor_float
    from histokit.train.ablation import variants

    distributed.check_device(cfg.device)
    team = distributed.start(cfg.device)
    with ops.use(cfg.kernels), tensor_float(cfg.precision, cfg.device):
        if not cfg.ablate:
            train(cfg.resolved(), team)
            return
        for variant in variants(cfg):
            print(f"ablation: {variant.run}")
            train(variant.resolved(), team)


def train(cfg: Options, team) -> None:
    """Train one run: check its slides, claim its folder, then fold by fold."""
    from histokit import audit
    from histokit.core.files import folder_lock, make_folder, remove_leftovers
    from histokit.data.cohort import Cohort, check_alike, refuse_missing
    from histokit.data.gene_map import read_gene_map
    from histokit.train import run as runs
    from histokit.train.controls import controls_of

    cohort = Cohort(cfg.data, cfg.encoder, cfg.neighbors)
    refuse_missing(cohort, cfg.allow_missing)
    cohort = cohort.with_counts()
    cohort = cohort.zero_filled() if cfg.unmeasured == "zero" else cohort
    if cfg.gene_map:
        cohort = cohort.with_gene_map(read_gene_map(cfg.gene_map, cfg.same_id))
    folds = runs.choose_folds(cohort, cfg)
    if team.first:
        runs.say_folds(cohort, folds)
    runs.refuse_seen(cohort, folds, cfg.controls)
    check_alike(cohort, folds)
    leaks = audit.training_leaks(cohort, runs.with_tuners(cohort, folds))
    if not cfg.allow_leakage:
        audit.refuse_leakage(leaks)
    folder = make_folder(cfg.run)
    with folder_lock(folder) if team.first else nullcontext():
        if team.first:
            remove_leftovers(folder)
            runs.claim(folder, cfg, cohort, folds)
            # where each fold has features of its own, those of the first are looked at
            seen = folds[:1] if cohort.by_fold else folds
            own = cohort.of_fold(folds[0].id)
            audit.audit_training(own, seen, cfg.panel, folder / "audit", leaks)
        team.wait()
        key = runs.join_genes(cohort, folds, folder, team)
        train_folds(folder, cfg, cohort, folds, team, key)
        for control in controls_of(cohort, cfg, folder) if cfg.controls else ():
            place = Path(control.options.run)
            own = control.folds(runs.choose_folds(cohort, control.options))
            if team.first:
                print(f"control: {control.label}")
                runs.claim(make_folder(place), control.options, control.cohort, own, control.note)
            team.wait()
            train_folds(place, control.options, control.cohort, own, team, key, control.taught)
    if team.first:
        print(f"wrote {cfg.model} for {len(folds)} folds to {folder}")


def train_folds(folder: Path, cfg: Options, cohort, folds: list, team, key, taught=None) -> None:
    """All ranks train a network together; of the other models each takes folds of its own.

    ``taught`` makes of a fold the cohort that the model learns from, where it is another.
    """
    from histokit.core.distributed import ALONE
    from histokit.core.files import make_folder
    from histokit.core.progress import within
    from histokit.models.registry import MODELS, NETWORK
    from histokit.train import fold as steps

    together = MODELS[cfg.model].trained_by == NETWORK
    helpers, own = (team, folds) if together else (ALONE, team.share(folds))
    for number, split in enumerate(own, 1):
        place = make_folder(folder / "folds" / split.id)
        if not steps.is_trained(place):
            with within(f"fold {number} of {len(own)}"):
                train_fold(place, cfg, cohort, split, helpers, key, taught)
        elif helpers.first:
            print(f"fold {split.name}: already trained")
    team.wait()


def train_fold(place: Path, cfg: Options, cohort, split, team, key, taught=None) -> None:
    """Train one fold into its folder; arguments as of ``train_folds``."""
    from histokit.train import fold as steps
    from histokit.train.auto import fit

    own = cohort.of_fold(split.id).with_cancers(split.cancers)
    learnt = taught(split).with_cancers(split.cancers) if taught else own
    slides = steps.FoldSlides(own, learnt, split)
    panel = steps.choose_panel(slides, cfg, key)
    moments, kept = steps.read_slides(slides, panel, cfg, team)
    panel, seen = steps.rank_genes(panel, moments, kept, cfg, split.name)
    standardizer = steps.fit_standardizer(slides, moments, cfg)
    task = steps.FoldTask(slides, panel, standardizer, cfg, place, team)
    steps.write_tables(task)
    if cohort.by_fold and team.first:
        steps.write_features(own.provenance(split.train[0]), place)
    steps.save(task, fit(task, kept, seen))


if __name__ == "__main__":
    run(main, Options, __doc__)
