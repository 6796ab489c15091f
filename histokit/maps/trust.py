"""How far to trust each gene: its held-out correlation beside what chance reaches.

A gene is trusted where its held-out PCC is above that of the model trained on shuffled spots: the
lower end of the 95 % interval of the difference, over patients, is above zero. With fewer than
three patients (or sections) there is no such interval; then the difference has to be above
2 / sqrt(N - 1), two standard deviations of the correlation of N unrelated spots, on every slide.
Neighboring spots are alike, so this second rule is the weaker one. Some 2.5 % of genes that the
model cannot predict pass the first by chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.core.tables import read_table
from histokit.data.views import SHUFFLED
from histokit.evaluate.intervals import row_intervals, unit_mean, units_of
from histokit.evaluate.runs import Run
from histokit.evaluate.summary import CORRELATION, MIN_SPOTS
from histokit.evaluate.verdict import over_units


@dataclass(frozen=True)
class Trust:
    """What the evaluation of a run says of its genes.

    Attributes:
        table: index gene; ``pcc``, ``pcc_low``, ``pcc_high``, ``rank`` (NaN where not scored) and
            ``trusted``.
        said: sentences.
    """

    table: pd.DataFrame
    said: list[str]


def gene_trust(run: Run, genes: pd.Index, folder: Path | None = None) -> Trust:
    """Read how well each gene was predicted on held-out slides.

    Args:
        run: the run.
        genes: whose trust is asked for.
        folder: its evaluation; ``RUN/eval`` by default.

    Raises:
        InputError: an evaluation was given and is none.
    """
    place = folder or run.folder / "eval"
    if not (place / "pcc_by_slide.csv").is_file():
        if folder is not None:
            raise InputError(f"{folder} is no evaluation: it holds no pcc_by_slide.csv")
        nothing = pd.DataFrame(index=genes, columns=["pcc", "pcc_low", "pcc_high", "rank"])
        return Trust(
            nothing.astype(float).assign(trusted=False),
            [
                f"The run was never evaluated on held-out slides, so nothing says which gene to "
                f"trust: run_eval.py --run {run.folder}."
            ],
        )
    pcc, slides = _correlations(place)
    chance, against = _chance(run, pcc)
    units = units_of(slides["patient"].to_list())
    low, high = row_intervals(pcc.to_numpy(), units.labels, CORRELATION)
    difference = (pcc - chance).to_numpy()
    above, _ = row_intervals(difference, units.labels, (-2.0, 2.0))
    margin = 2 / np.sqrt(slides["spots"].to_numpy(float) - 1)
    everywhere = np.where(np.isnan(difference), True, difference > margin).all(axis=1)
    wide = np.isnan(above)  # too few units for an interval
    scored, mean = pcc.notna().any(axis=1).to_numpy(), unit_mean(pcc.to_numpy(), units.labels)
    table = pd.DataFrame(
        {
            "pcc": mean,
            "pcc_low": low,
            "pcc_high": high,
            "trusted": scored & (mean > 0) & np.where(wide, everywhere, above > 0),
        },
        index=pcc.index,
    ).reindex(genes)
    table["trusted"] = table["trusted"].eq(other=True)
    table["rank"] = table["pcc"].rank(ascending=False, method="first")
    count, number = int(table["trusted"].sum()), len(np.unique(units.labels))
    said = [
        f"{count:,} of {len(table):,} genes have a held-out PCC above {against}, over "
        f"{over_units(units.name, number)}; the others are gray."
        + " This says nothing of other patients."
        * (units.name == "section")
    ]
    return Trust(table[["pcc", "pcc_low", "pcc_high", "rank", "trusted"]], said)


def _correlations(place: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """PCC by gene and slide, and patient and spots of these slides; slides of enough spots."""
    pcc = read_table(place / "pcc_by_slide.csv", ("gene",), "PCC by slide").set_index("gene")
    pcc = pcc.replace("", "nan").astype(float)
    slides = read_table(place / "slides.csv", ("slide_id", "patient", "spots"), "slides scored")
    slides = slides.drop_duplicates("slide_id").set_index("slide_id").reindex(pcc.columns)
    slides["spots"] = slides["spots"].astype(float)
    slides = slides[slides["spots"] >= MIN_SPOTS]
    return pcc[slides.index], slides


def _chance(run: Run, pcc: pd.DataFrame) -> tuple[pd.DataFrame | float, str]:
    """The same correlations of the model of shuffled spots, or zero; and what it is called."""
    place = run.folder / "controls" / SHUFFLED / "eval"
    if not (place / "pcc_by_slide.csv").is_file():
        return 0.0, "zero (no control of shuffled spots was trained: run_train.py --controls)"
    control, _ = _correlations(place)
    # a constant prediction of the control has no correlation, which is none
    return control.reindex(index=pcc.index, columns=pcc.columns).fillna(0.0), "shuffled spots"
