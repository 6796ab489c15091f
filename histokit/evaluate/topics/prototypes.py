"""What BP-Booster's prototypes have become: gates, attention over the tissue, genes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from histokit.core.distributed import Team
from histokit.data.cohort import Cohort, Slide
from histokit.data.gene_names import full_name
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.topics.base import Part, Topic
from histokit.evaluate.topics.maps import picture_path
from histokit.evaluate.topics.pathway_plots import short_name
from histokit.evaluate.topics.predictions import read_tissue
from histokit.evaluate.views import SlideView
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


class PrototypeTopic(Topic):
    """The prototypes of every fold of a run of BP-Booster, over its test slides."""

    def __init__(self):
        self.weights: dict[tuple[str, str], torch.Tensor] = {}  # (N, M) by fold and slide
        self.learnt: dict[str, pd.DataFrame] = {}  # by fold: prototype, program, gate, raises
        self.tables: dict[str, pd.DataFrame] = {}
        self.pictures: list[Picture] = []

    def add(self, view: SlideView) -> None:
        """Keep a slide's attention."""
        fold = view.fold
        self.weights[fold.name, view.slide.slide_id] = attention(view.model, view.slide)
        if fold.name not in self.learnt:
            self.learnt[fold.name] = learnt_table(view.model, fold.genes)

    def gather(self, team: Team, scores: Sequence[SlideScore]) -> None:
        """Tables of the folds, from what all ranks have seen."""
        for weights, learnt in team.gather((self.weights, self.learnt)):
            self.weights |= weights
            self.learnt |= learnt
        for fold in dict.fromkeys(score.fold for score in scores):
            own = [self.weights[s.fold, s.slide_id] for s in scores if s.fold == fold]
            self.tables[fold] = fold_table(self.learnt[fold], torch.cat(own))

    def show(self, view: SlideView, evaluation: Evaluation) -> None:
        """Draw a slide's attention to the prototypes that tell its fold's patches apart most."""
        weights = self.weights[view.fold.name, view.slide.slide_id]
        table, cohort = self.tables[view.fold.name], evaluation.job.cohort
        self.pictures.append(draw_attention(view, cohort, weights, table, evaluation.folder))

    def finish(self, evaluation: Evaluation) -> Part:
        """A table a fold, and prototypes.csv."""
        table = pd.concat(self.tables.values(), keys=self.tables, names=["fold"])
        table = table.reset_index("fold")
        table.to_csv(evaluation.folder / "prototypes.csv", index=False, float_format="%.6g")
        text = TEXT + (NAMED if table["program"].ne("").any() else "")
        literal = evaluation.job.run.config["options"]["attention"] == "literal"
        text += LITERAL if literal else ""
        tables = [_report(name, table) for name, table in self.tables.items()]
        return Part(sections=[Section("Prototypes", text, tables, self.pictures)])


def learnt_table(model: BPBooster, genes: pd.DataFrame) -> pd.DataFrame:
    """prototype, program (empty where it started random), gate, raises: what a fold has learnt."""
    gate = model.prototype_gate.detach().numpy()
    return pd.DataFrame(
        {
            "prototype": np.arange(len(gate)),
            "program": model.prototype_names or "",
            "gate": gate,
            "raises": top_genes(model, genes),
        }
    )


def fold_table(learnt: pd.DataFrame, weights: torch.Tensor) -> pd.DataFrame:
    """Prototypes of a fold over its test slides, what tells patches apart most first.

    Args:
        learnt: as ``learnt_table`` returns it.
        weights: (N, M) attention of all test patches.

    Returns:
        prototype, program, gate, attention, varies, raises.
    """
    table = learnt.assign(
        attention=weights.mean(0).numpy(), varies=weights.std(0, correction=0).numpy()
    )[["prototype", "program", "gate", "attention", "varies", "raises"]]
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
    rows = genes[["gene", "symbol", "gene_id"]].itertuples(index=False)
    names = np.array([full_name(*row) for row in rows], dtype=object)
    best = np.argsort(-effects, axis=1, kind="stable")[:, :GENES]
    raised = np.take_along_axis(effects, best, axis=1) > 0
    return [", ".join(names[b[r]]) for b, r in zip(best, raised, strict=True)]


def draw_attention(
    view: SlideView, cohort: Cohort, weights: torch.Tensor, table: pd.DataFrame, folder: Path
) -> Picture:
    """Draw a slide's attention (N, M) to the first prototypes of its fold's table."""
    slide_id, fold = view.slide.slide_id, view.fold
    maps = {
        f"{_name(row)}, gate {number(float(row.gate))}": weights[:, row.prototype].numpy()
        for row in table.head(MAPS).itertuples()
    }
    figure = plots.spot_maps(read_tissue(cohort, view.slide), maps, f"{slide_id}: attention")
    path = picture_path(folder, "prototypes", fold, slide_id)
    plots.save(figure, path)
    caption = (
        f"Slide {slide_id}, fold {fold.name}: attention to the {len(maps)} prototypes that "
        "tell its patches apart most; each map has its own color scale."
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
