"""The controls beside a run: what they mean, and how they are read."""

from __future__ import annotations

from pathlib import Path

from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.data.gene_map import GENE_MAP, read_gene_map
from histokit.data.views import LABELS, LIBRARY_SIZE, SHUFFLED, LibrarySizeCohort
from histokit.evaluate.runs import Run

MEANING = (
    "Shuffled spots: the same model trained on the same images after the counts of all training "
    "spots of a fold were dealt out anew among them, over the borders of slides, so that neither a "
    "spot nor a slide has its own expression; the genes and the test slides stay as they are. What "
    "is left of the PCC is chance. It is the mean of several draws, whose range says how far "
    "chance reaches. Library size: a line through each gene on the log of the spot's total counts, "
    "which it is told for the test spots too; no image is seen, so this much of a PCC says how "
    "many molecules were caught and nothing of the tissue's genes."
)
_OLD = "shuffled"  # dealt within each slide, whose level a model could still learn from the image


def open_cohort(run: Run, data: str | None = None) -> Cohort:
    """The slides that a run predicts from: ``data``, or the folder it was trained on.

    Raises:
        InputError: that folder is not there, or as ``Cohort``.
    """
    if data is None and not Path(run.config["options"]["data"]).is_dir():
        raise InputError(
            f"{run.folder} was trained on the data in {run.config['options']['data']}, which is "
            f"not there (looked for from {Path.cwd()}); give its present place with --data"
        )
    options, control = run.config["options"], run.config.get("control") or {}
    encoder = control.get("encoder", options["encoder"])
    cohort = Cohort(data or options["data"], encoder, options.get("neighbors", "none"))
    if (run.folder / GENE_MAP).is_file():
        cohort = cohort.with_gene_map(read_gene_map(run.folder / GENE_MAP, options["same_id"]))
    return LibrarySizeCohort(cohort) if control.get("kind") == LIBRARY_SIZE else cohort


def controls_of(run: Run) -> dict[str, Run]:
    """The finished controls beside a run, by label.

    Raises:
        InputError: a control that was begun and not trained to its end.
    """
    found = {}
    for kind, label in LABELS.items():
        folder = run.folder / "controls" / kind
        if not (folder / "config.json").is_file():
            continue
        control = Run(folder)
        for fold in control.folds:
            if not fold.is_finished():
                raise InputError(
                    f"the control {folder} is not trained to its end; give run_train.py the same "
                    "command again"
                )
        found[label] = control
    return found


def outdated(run: Run) -> str:
    """A sentence on a control of another kind that lies beside a run; empty where there is none."""
    old = run.folder / "controls" / _OLD
    if not (old / "config.json").is_file() or (run.folder / "controls" / SHUFFLED).is_dir():
        return ""
    return (
        f"The control in {old} is left out: it was dealt within each slide, so its model could "
        "still learn what differs between slides; give run_train.py the same command again for one "
        "that is dealt over all training slides."
    )
