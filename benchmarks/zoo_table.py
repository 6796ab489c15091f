"""The table of the zoo: from a row a test slide to a row a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from her2st import markdown, replace_between
from zoo_models import REFERENCE, ZOO

from histokit.core.errors import InputError
from histokit.evaluate.intervals import mean_interval, units_of

WORDS = {"patients": "a new patient", "within C": "a new section of patient C"}


def check(results: Path, name: str) -> None:
    """See that the document has a place for a table, before hours are spent on it.

    Raises:
        InputError: it has none.
    """
    ends = [f"<!-- {name}:{end} -->" for end in ("begin", "end")]
    if not all(end in results.read_text() for end in ends):
        raise InputError(
            f"{results} has no place for the table: write {' and '.join(ends)} on lines of their "
            "own"
        )


def write_table(scores: pd.DataFrame, results: Path) -> None:
    """Replace the part of a document that holds the tables."""
    parts = []
    groups = scores.astype({"genes": str}).groupby(["target", "genes", "features"])
    for (target, genes, features), own in groups:
        parts.append(f"### Target {target}, {features} features, {genes} genes\n")
        parts.append(markdown(accuracy(own)))
        parts.append("")
        parts.append(markdown(costs(own)))
        parts.append("")
    replace_between(results, "zoo", "\n".join(parts).rstrip())
    print(f"wrote the tables to {results}")


def by_unit(scores: pd.DataFrame, protocol: str, column: str = "pcc_zero") -> pd.DataFrame:
    """(units, models): mean over seeds and slides of each patient, or of each section."""
    own = scores[scores["protocol"] == protocol]
    slides = own.groupby(["model", "fold", "slide_id"])[column].mean()
    return slides.groupby(["model", "fold"]).mean().unstack("model")


def accuracy(scores: pd.DataFrame) -> pd.DataFrame:
    """A row a model, best on new patients first."""
    tables = {protocol: by_unit(scores, protocol) for protocol in WORDS}
    order = tables["patients"].mean().sort_values(ascending=False).index
    rows = []
    for model in order:
        row = {"model": model}
        for protocol, words in WORDS.items():
            own = tables[protocol][model]
            row[f"{words}: PCC"] = f"{own.mean():.3f}"
            gain = own - tables[protocol][REFERENCE]
            row[f"{words}: above ridge with neighbors"] = (
                "-" if model == REFERENCE else with_interval(gain)
            )
        patients = tables["patients"][model]
        row["A / B / C"] = " / ".join(f"{patients[p]:.3f}" for p in "ABC")
        seeds = _over_seeds(scores[scores["model"] == model])
        row["sd over seeds"] = "-" if np.isnan(seeds) else f"{seeds:.3f}"
        rows.append(row | _more(scores[scores["model"] == model]))
    return pd.DataFrame(rows)


def _over_seeds(scores: pd.DataFrame) -> float:
    """Deviation over seeds of the mean over patients."""
    own = scores[scores["protocol"] == "patients"]
    slides = own.groupby(["seed", "fold"])["pcc_zero"].mean()
    return float(slides.groupby("seed").mean().std())


def _more(scores: pd.DataFrame) -> dict[str, str]:
    """Other figures of a model on new patients."""
    own = scores[scores["protocol"] == "patients"]
    by_patient = own.groupby("fold")[["pcc_pooled", "mse", "variance", "above_zero"]].mean().mean()
    weighted = np.average(own["pcc_zero"], weights=own["spots"])
    without = own.groupby("fold")["pcc"].mean().mean()
    return {
        "pooled": f"{by_patient['pcc_pooled']:.3f}",
        "spot-weighted": f"{weighted:.3f}",
        "genes above 0": f"{by_patient['above_zero']:.0%}",
        "constant": f"{own['constant'].mean():.1f}",
        "PCC without them": "-" if np.isnan(without) else f"{without:.3f}",
        "MSE": f"{by_patient['mse']:.3f}",
        "variance": f"{by_patient['variance']:.3f}",
    }


def costs(scores: pd.DataFrame) -> pd.DataFrame:
    """What a model costs, trained on one or two patients, on one core."""
    rows = []
    for model in ZOO:
        own = scores[(scores["model"] == model) & (scores["protocol"] == "patients")]
        if own.empty:
            continue
        epoch = (own["train_seconds"] / own["slide_epochs"]).median()
        chosen = own.groupby("fold")["setting"].first().str.replace(r"[{}']", "", regex=True)
        rows.append(
            {
                "model": model,
                "parameters": f"{own['parameters'].max():,}",
                "ms a slide and epoch": f"{1000 * epoch:.0f}",
                "seconds to predict a slide": f"{own['predict_seconds'].median():.2f}",
                "network calls": f"{own['network_calls'].max()}",
                "peak MiB": f"{own['peak_mib'].median():,.0f}",
                "setting chosen for A; B; C": "; ".join(chosen),
            }
        )
    return pd.DataFrame(rows)


def with_interval(gain: pd.Series) -> str:
    """The mean over patients, or over sections of one, with its 95 % interval."""
    units = units_of([f"{name}" for name in gain.index])
    found = mean_interval(gain.to_numpy(), units)
    return f"{gain.mean():+z.3f} [{found.low:+z.3f}, {found.high:+z.3f}]"
