"""A run and all that is known of its predictions: genes, training slides, scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from histokit.core.errors import InputError
from histokit.evaluate.official import official_sentence
from histokit.evaluate.runs import Run
from histokit.evaluate.topics.pathways import read_collections
from histokit.evaluate.topics.signatures import read_signatures
from histokit.maps.ensemble import Ensemble, choose_folds
from histokit.maps.novelty import make_reference
from histokit.maps.slide import Oracle
from histokit.maps.trust import gene_trust


def consult(
    run: Run,
    fold: str = "all",
    *,
    evaluation: Path | None = None,
    training_data: str | None = None,
    gene_sets: Sequence[str] = (),
    signatures: Sequence[str] = (),
    device: str = "cpu",
) -> Oracle:
    """Open a run for predictions.

    Args:
        run: a run.
        fold: the fold whose model predicts, or ``all``.
        evaluation: the run's evaluation, where it does not lie in ``RUN/eval``.
        training_data: where the run's training features lie now.
        gene_sets: GMT files, or libraries of gseapy.
        signatures: files with one gene a line, or shipped names.
        device: where networks run.

    Raises:
        InputError: a fold that is not there or not trained, a run whose folds have encoders of
            their own, or a file that is not what it should be. Training features that are not at
            hand are no error: the map then says so.
    """
    if any(fold.features for fold in run.folds):
        raise InputError(
            f"{run.folder} was trained on an encoder that was tuned for each fold, and a new slide "
            "is predicted by one encoder alone; use a run on a published encoder"
        )
    collections = read_collections(gene_sets, curate=False)
    scored = read_signatures(signatures)
    ensemble = Ensemble(run, choose_folds(run, fold), device)
    trust = gene_trust(run, ensemble.genes.index, evaluation)
    if said := official_sentence(run):
        trust = replace(trust, said=[said, *trust.said])
    reference, unchecked = None, ""
    try:
        reference = make_reference(run, ensemble.folds, ensemble.models, training_data)
    except InputError as error:
        if training_data is not None:
            raise
        unchecked = f"Nothing says whether the slide is like the training slides: {error}."
    options = run.config["options"]
    about = {
        "run": str(run.folder),
        "model": options["model"],
        "encoder": options["encoder"],
        "folds": ", ".join(fold.name for fold in ensemble.folds),
        "target": options["target"],
        "features": run.config["features"],
    }
    return Oracle(ensemble, trust, reference, unchecked, collections, scored, about)
