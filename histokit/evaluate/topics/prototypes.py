"""What BP-Booster's prototypes have become: gates, attention over the tissue, genes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from histokit.data.cohort import Cohort, Slide
from histokit.evaluate.predictions import read_tissue
from histokit.evaluate.runs import Fold, Run
from histokit.evaluate.topics.maps import picture_path, representative_slides
from histokit.evaluate.topics.pathway_plots import short_name
from histokit.evaluate.views import SlideScore, load_held_out
from histokit.models.bpbooster import BPBooster
from histokit.report import plots
from histokit.report.page import NONE, Picture, Section, Table, number

GENES = 8  # named for a prototype
ROWS = 10  # prototypes of a fold in the report; the CSV has them all
MAPS = 5
TEXT = (
    "A patch's embedding is a mean of the prototypes' values, weighted by its attention and by the "
    "gates. “Attention” is the mean over the fold's test patches and all heads; “varies” is its "
    "standard deviation over them. A prototype that all patches attend to alike says nothing "
    "about the tissue, however open its gate, so prototypes are ranked by gate times variation. "
    "“Raises” names the genes, detected in a tenth of all spots, whose prediction gains most, in "
    "standard deviations of their training expression, where a patch attends to this prototype "
    "and no other."
)
NAMED = (
    " Prototypes bear the name of the pathway whose expression they started as; training may have "
    "led them away from it."
)
LITERAL = (
    " With attention to the letter of the paper, all prototypes reach a patch through one number "
    "a head, so none raises genes of its own."
)


def prototype_sections(
    run: Run, cohort: Cohort, scores: Sequence[SlideScore], folder: Path, pictures: int
) -> list[Section]:
    """Report the prototypes of every fold of a run of BP-Booster.

    Args:
        run: the run.
        cohort: its slides.
        scores: of its test slides.
        folder: of the evaluation; gets prototypes.csv and pictures.
        pictures: slides drawn at most.
    """
    folds = {fold.name: fold for fold in run.folds}
    tables = {
        name: fold_table(fold, cohort, [s.slide_id for s in scores if s.fold == name])
        for name, fold in folds.items()
        if any(s.fold == name for s in scores)
    }
    table = pd.concat(tables.values(), keys=tables, names=["fold"]).reset_index("fold")
    table.to_csv(folder / "prototypes.csv", index=False, float_format="%.6g")
    drawn = representative_slides(scores, pictures)
    maps = [draw_attention(folds[s.fold], cohort, s, tables[s.fold], folder) for s in drawn]
    text = TEXT + (NAMED if table["program"].ne("").any() else "")
    text += LITERAL if run.config["options"]["attention"] == "literal" else ""
    return [Section("Prototypes", text, [_report(n, t) for n, t in tables.items()], maps)]


def fold_table(fold: Fold, cohort: Cohort, slides: Sequence[str]) -> pd.DataFrame:
    """Prototypes of a fold over its test slides, what tells patches apart most first.

    Returns:
        prototype, program (empty where it started random), gate, attention, varies, raises.
    """
    model = fold.load_model()
    weights = torch.cat([attention(model, load_held_out(fold, cohort, s, [])) for s in slides])
    gate = model.prototype_gate.detach().numpy()
    table = pd.DataFrame(
        {
            "prototype": np.arange(len(gate)),
            "program": model.prototype_names or "",
            "gate": gate,
            "attention": weights.mean(0).numpy(),
            "varies": weights.std(0, correction=0).numpy(),
            "raises": top_genes(model, fold.genes),
        }
    )
    order = (-table["gate"] * table["varies"]).argsort(kind="stable")
    return table.iloc[order].reset_index(drop=True)


def attention(model: BPBooster, slide: Slide) -> torch.Tensor:
    """Attention of a slide's patches to the prototypes, (N, M), before the gates."""
    return model.attention_weights(model.standardizer(slide.features))


def top_genes(model: BPBooster, genes: pd.DataFrame) -> list[str]:
    """Names of the genes that each prototype raises most, or nothing for literal attention."""
    effects = model.prototype_effects()
    if effects is None:
        return [""] * len(model.prototypes)
    deviation = np.sqrt(genes["train_variance"].to_numpy())
    # In genes that few spots detect, a small change is many deviations.
    detected = genes["hvg_rank"].notna().to_numpy() & (deviation > 0)
    effects = effects.numpy() / np.where(detected, deviation, np.inf)
    names = genes["symbol"].where(genes["symbol"] != "", genes["gene"]).to_numpy()
    best = np.argsort(-effects, axis=1, kind="stable")[:, :GENES]
    raised = np.take_along_axis(effects, best, axis=1) > 0
    return [" ".join(names[b[r]]) for b, r in zip(best, raised, strict=True)]


def draw_attention(
    fold: Fold, cohort: Cohort, score: SlideScore, table: pd.DataFrame, folder: Path
) -> Picture:
    """Draw a slide's attention to the prototypes that tell its fold's patches apart most."""
    slide = load_held_out(fold, cohort, score.slide_id, [])
    weights = attention(fold.load_model(), slide)
    maps = {
        f"{_name(row)}, gate {number(float(row.gate))}": weights[:, row.prototype].numpy()
        for row in table.head(MAPS).itertuples()
    }
    figure = plots.spot_maps(read_tissue(cohort, slide), maps, f"{score.slide_id}: attention")
    path = picture_path(folder, "prototypes", fold, score.slide_id)
    plots.save(figure, path)
    caption = (
        f"Slide {score.slide_id}, fold {score.fold}: attention to the {len(maps)} prototypes that "
        "tell its patches apart most; each map has its own colour scale."
    )
    return Picture(path, caption)


def _report(fold: str, table: pd.DataFrame) -> Table:
    opened = int((table["gate"] > 0.5).sum())
    rows = [
        [_name(row), row.raises or NONE, number(row.gate), number(row.attention, 3),
         number(row.varies, 4)]
        for row in table.head(ROWS).itertuples()
    ]  # fmt: skip
    return Table(
        f"Fold {fold}",
        ["prototype", "raises", "gate", "attention", "varies"],
        rows,
        f"{opened} of {len(table)} gates are more than half open, from "
        f"{number(float(table['gate'].min()))} to {number(float(table['gate'].max()))}. "
        f"All prototypes are in prototypes.csv.",
        text_columns=2,
    )


def _name(row) -> str:
    return short_name(row.program) if row.program else f"prototype {row.prototype}"
