"""What has to be said of a run whose weights others trained, on slides that nobody here knows."""

from __future__ import annotations

from histokit.core.errors import InputError
from histokit.evaluate.runs import Run
from histokit.report.page import plural

_NAMED = 10


def official_sentence(run: Run) -> str:
    """Whose weights they are and what they may have seen; empty for a run that was trained here."""
    about = run.official
    if not about:
        return ""
    said = (
        f"The weights are published ones ({about['title']}, {about['weights']}) and were not "
        "trained here. They were trained on public slides, those of HEST-1k among them"
    )
    unless = "; on slides that were, the figures say nothing about new ones."
    if not about["split"]:
        return f"{said}, and nothing says whether the test slides here were among those{unless}"
    if len(run.folds) > 1:
        return (
            f"{said}. By the splits {about['split']} each slide is scored by weights that it did "
            "not train; that they are the splits of these weights is taken on trust"
            f"{unless}"
        )
    split = run.folds[0].split
    used = sorted(split.loc[split["split"] != "test", "slide_id"])
    seen = f"{plural(len(used), 'slide')} of the cohort trained or validated them"
    if used:
        more = f" and {len(used) - _NAMED} more" if len(used) > _NAMED else ""
        seen += f" and none of these is scored ({', '.join(used[:_NAMED])}{more})"
    return (
        f"{said}. By the split {about['split']} the test slides were not, and {seen}. That it is "
        f"the split of these weights is taken on trust{unless}"
    )


def check_genes(run: Run, listed: bool, protocol: str) -> None:
    """Raise InputError where nothing says which genes of published weights make the headline."""
    if run.official and not listed and protocol == "histokit":
        raise InputError(
            f"{run.folder} holds published weights, whose training slides are not there to choose "
            "highly variable genes on; give the genes with --hvg-file, or a --protocol that "
            "chooses its own, such as histoprism"
        )
