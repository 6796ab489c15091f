"""How good a prediction is, in sentences, and what each number of a report means."""

from __future__ import annotations

import math

import pandas as pd

from histokit.evaluate.intervals import FEWEST
from histokit.evaluate.summary import MIN_SPOTS, averaged, pick
from histokit.report.page import number, plural

UNITS = {
    "counts10k-log1p": "log(1 + counts per 10,000)",
    "log1p": "log(1 + raw counts)",
    "log2": "log2(1 + raw counts)",
}
RAW_COUNTS = (
    "Targets are raw counts: how many molecules were caught at a spot can reach as much or more "
    "without any image. Train with --controls to see it, or on counts per 10,000."
)
_NAMED = 10  # slides named in a sentence

GLOSSARY = (
    (
        "PCC",
        "Pearson correlation between measured and predicted expression of one gene over the spots "
        "of one slide: 1 is a perfect pattern, 0 is no relation. It sees the pattern only, not the "
        "level: a prediction that is always twice too high still has PCC 1.",
    ),
    (
        "PCC of the highly variable genes",
        "Mean PCC over the genes that vary most on the training slides (test slides have no say), "
        "then over the slides of a patient, then over patients. Papers differ here: they average "
        "over slides whoever they are of, choose genes on test slides too, pool the spots of "
        "several slides, or rank genes by the PCC reached. Such figures must not be set beside "
        "these.",
    ),
    (
        "PCC of all genes",
        "The same over every gene the model predicts and the slide allows to score. Depends on the "
        "gene panel, so it compares only runs with one panel.",
    ),
    (
        "MSE",
        "Mean squared difference of measured and predicted expression over measured genes, on the "
        "scale of the training targets. Figures on different scales must not be compared.",
    ),
    (
        "Target variance",
        "The MSE that a constant would have if it knew each gene's mean on that very slide. An MSE "
        "above it means that the level of expression is missed, even where the pattern is right.",
    ),
    (
        "Not scored",
        "A gene that the slide did not measure, or that is constant in measurement or prediction, "
        "has no correlation. It is counted and left out, never taken as zero.",
    ),
    (
        "Patient in training",
        "Other slides of the same patient trained or validated the model. Tissue of one patient is "
        "alike, so such scores flatter; only slides of new patients tell what to expect on one.",
    ),
    (
        "Mean over patients, mean of cancers",
        "A slide's figure is averaged over the slides of its patient, then over patients, so that "
        "a patient with many slides does not decide; where all slides are of one patient, or none "
        "names its patient, over slides. The mean of cancers (macro) averages the same figure of "
        "each cancer. A slide tested in several folds counts once.",
    ),
    (
        "95 % interval",
        "How the mean would move with other patients like these: slides of one patient are alike, "
        "so patients are counted, or slides where no patient is known. Fewer than "
        f"{FEWEST} have no interval. Where all slides are of one patient it is over sections and "
        "says nothing of other patients. A mean of cancers has an interval over patients where "
        f"each cancer has {FEWEST}, and over cancers otherwise.",
    ),
    (
        "Slides of few spots",
        f"With fewer than {MIN_SPOTS} spots a correlation is mostly chance (over two it is always "
        "1 or \u22121). Such slides are scored and listed, and left out of every average.",
    ),
    (
        "Raw-count targets",
        "With log1p or log2 of raw counts most of the PCC is the number of molecules caught at a "
        "spot, which nearly any image feature tells. Compare runs on counts per 10,000 first.",
    ),
)


def with_interval(value: float, low: float, high: float, digits: int = 2) -> str:
    """``0.31 [0.25, 0.36]``; without the interval where there is none."""
    if math.isnan(low):
        return number(value, digits)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def over_units(unit: str, units: int) -> str:
    """What an interval is over, such as ``5 patients``."""
    if unit == "section" and units == 1:
        return "one section"
    if unit == "section":
        return f"{plural(units, 'section')} of one patient"
    if unit == "patient or slide":
        return f"{plural(units, 'patient')}, slides where unknown"
    return plural(units, unit) + (" of unknown patients" if unit == "slide" else "")


def averaging(unit: str) -> str:
    """How a figure over several slides is averaged, in a sentence; unit: as of ``over_units``."""
    if unit == "section":
        return "Mean over sections of one patient, which says nothing of other patients."
    if unit == "slide":
        return "Mean over slides, whose patients are unknown."
    said = "Mean over the slides of a patient, then over patients"
    return said + ("." if unit == "patient" else "; a slide of an unknown patient counts as one.")


def no_interval(unit: str, units: int) -> str:
    """Why there is none over so many units."""
    return f"{over_units(unit, units)} cannot show how others vary"


def interval_note(unit: str, units: int, given: bool = True) -> str:
    """What the brackets of a table are, or why there are none, in a sentence.

    Args:
        unit: as ``histokit.evaluate.intervals.Interval`` has it.
        units: how many.
        given: whether there are intervals.
    """
    if not given:
        return f"No interval: {no_interval(unit, units)}."
    said = f"Brackets: 95 % interval over {over_units(unit, units)}"
    return said + (", which says nothing of other patients." if unit == "section" else ".")


def left_out(slides: pd.DataFrame) -> str:
    """A sentence on slides of too few spots for averages; empty where there is none."""
    names = list(dict.fromkeys(slides.loc[slides["below_floor"].astype(bool), "slide_id"]))
    if not names:
        return ""
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" * (len(names) > _NAMED))
    count = plural(len(names), "slide")
    verb = "has" if len(names) == 1 else "have"
    return (
        f"{count} {verb} fewer than {MIN_SPOTS} spots, over which a correlation is mostly chance, "
        f"and {'is' if len(names) == 1 else 'are'} listed but in no average: {shown}."
    )


def _shown(summary: pd.DataFrame, metric: str, *where) -> str:
    row = pick(summary, metric, *where)
    return with_interval(row["value"], row["low"], row["high"])


def verdict(slides: pd.DataFrame, summary: pd.DataFrame, transform: str) -> list[str]:
    """The answer in sentences: how well, on what, and why not to trust it further.

    Args:
        slides: as ``histokit.evaluate.summary.slide_table`` returns them.
        summary: as ``histokit.evaluate.summary.summarize`` returns it.
        transform: scale of the targets.
    """
    headline = pick(summary, "pcc_hvg")
    value, genes = headline["value"], int(slides["hvgs"].max())
    tested = f"{plural(int(headline['slides']), 'test slide')}"
    if headline["patients"]:
        tested += f" of {plural(int(headline['patients']), 'patient')}"
    over = over_units(headline["unit"], int(headline["units"]))
    if not headline["slides"]:
        said = [f"No test slide has the {MIN_SPOTS} spots that an average takes."]
    elif math.isnan(value):
        said = [
            f"On {tested} the {genes} most variable genes have no correlation with their "
            "prediction: it is the same in every spot, or nothing varies."
        ]
    else:
        interval = f"95 % interval over {over}"
        if math.isnan(headline["low"]):
            interval = f"no interval: {no_interval(headline['unit'], int(headline['units']))}"
        said = [
            f"On {tested}, measured and predicted expression of the {genes} most variable genes "
            f"correlate with a mean PCC of {_shown(summary, 'pcc_hvg')} ({interval}). "
            f"{_share(value, transform)}"
        ]
        if headline["low"] <= 0 <= headline["high"]:
            said.append("The interval holds 0: these slides do not show that anything is told.")
    said += [*cautions(slides, summary), patients_sentence(slides, summary)]
    said = [sentence for sentence in said if sentence]
    if averaged(slides).empty:
        return said
    error, variance = (pick(summary, name)["value"] for name in ("mse", "target_variance"))
    said.append(
        f"The mean squared error over all measured genes is {number(error, 3)} on the scale "
        f"{UNITS.get(transform, transform)}; a constant that knew each slide's own means would "
        f"have {number(variance, 3)}."
    )
    return said


def cautions(slides: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """What to know before a figure is believed, in sentences; arguments as of ``verdict``."""
    headline = pick(summary, "pcc_hvg")
    mean = averaging(headline["unit"]) if headline["slides"] > 1 else ""
    said = [left_out(slides), mean, unknown_cancers(slides)]
    return [sentence for sentence in said if sentence]


def _share(pcc: float, transform: str) -> str:
    """What the PCC says of the image; of raw counts nothing, for depth may explain more than it."""
    if transform != "counts10k-log1p":
        return RAW_COUNTS
    share = f"about {pcc**2:.0%} of" if pcc > 0 else "nothing of"
    return f"The image then explains {share} how such a gene varies from spot to spot."


def unknown_cancers(slides: pd.DataFrame) -> str:
    """Which slides a model that is told the cancer was told none for, in a sentence, or nothing."""
    strange = slides[slides["cancer_known"] == "no"].drop_duplicates("slide_id")
    if strange.empty:
        return ""
    named = [f"{s.slide_id} ({s.cancer or 'no code'})" for s in strange.head(4).itertuples()]
    more = f" and {len(strange) - 4} more" if len(strange) > 4 else ""
    return (
        f"The cancers of {', '.join(named)}{more} were not in the training: there the model was "
        "told no cancer (an all-zero code, as its authors do)."
    )


def patients_sentence(slides: pd.DataFrame, summary: pd.DataFrame) -> str:
    """Whether the patients of averaged test slides were seen in training; empty without any."""
    seen = set(averaged(slides)["patient_seen"])
    if not seen:
        return ""
    if seen == {"no"} and pick(summary, "pcc_hvg")["patients"] == 1:
        return (
            "The one test patient was not seen in training; what to expect on others, one patient "
            "does not show."
        )
    if seen == {"no"}:
        return "No test patient was seen in training, so this is what to expect on a new patient."
    if seen == {"yes"}:
        return (
            "Every test slide comes from a patient whose other slides trained the model. Such "
            "scores flatter: on a new patient expect less."
        )
    if seen == {"unknown"}:
        return (
            "The cohort names no patients, so it is unknown whether the model has seen them; if "
            "it has, these scores flatter."
        )
    parts = {
        "no": "of new patients",
        "yes": "of patients also seen in training",
        "unknown": "of unknown patients",
    }
    scores = []
    for key, text in parts.items():
        if key not in seen:
            continue
        row = pick(summary, "pcc_hvg", "patient_seen", key)
        figure = _shown(summary, "pcc_hvg", "patient_seen", key)
        if not math.isnan(row["low"]):
            figure += f" (over {over_units(row['unit'], int(row['units']))})"
        scores.append(f"{figure} on {plural(int(row['slides']), 'slide')} {text}")
    text = f"The PCC is {', '.join(scores[:-1])} and {scores[-1]}."
    if "no" in seen:
        text += " Only the first tells what to expect on a new patient."
    return text
