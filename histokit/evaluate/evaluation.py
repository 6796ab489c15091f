"""What an evaluation knows of a run, for its topics and for comparisons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from histokit.data.cohort import Cohort
from histokit.evaluate.runs import Run
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.summary import gene_table, slide_table, summarize
from histokit.evaluate.tables import result_table
from histokit.report.page import Table


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to evaluate.

    Attributes:
        name: its short name.
        cohort: its slides.
        out: the folder to write.
        tests: its test slides.
        controls: jobs that are its controls, by name; they come before it.
        control: what it is a control of, such as ``shuffled spots``; empty for a run of its own.
    """

    name: str
    run: Run
    cohort: Cohort
    out: Path
    tests: list[str]
    controls: tuple[str, ...] = ()
    control: str = ""

    def features(self) -> dict:
        """How the features of the first test slide were made."""
        fold = next(f for f in self.run.folds if (f.split["split"] == "test").any())
        return self.cohort.of_fold(fold.id).provenance(self.tests[0])


@dataclasses.dataclass
class Evaluation:
    """A run whose test slides are scored.

    Attributes:
        job: the run.
        folder: where its tables and pictures go.
        scores: the scores of its test slides; dropped once its topics are done.
        slides: as ``histokit.evaluate.summary.slide_table`` returns them.
        genes: as ``histokit.evaluate.summary.gene_table`` returns them.
        summary: as ``histokit.evaluate.summary.summarize`` returns it.
        table: the figures of the report's first table.
        hvg_sets: the genes of the headline PCC, by slide.
        protocol: figures under a published protocol; empty without one.
        clusters: as ``histokit.evaluate.topics.clusters.score_clusters`` returns them; empty where
            they are not scored.
        beside_controls: the table of the run beside its controls.
        caveats: sentences that a comparison repeats.
    """

    job: Job
    folder: Path
    scores: Sequence[SlideScore]
    slides: pd.DataFrame
    genes: pd.DataFrame
    summary: pd.DataFrame
    table: Table
    hvg_sets: dict[str, frozenset[str]]
    protocol: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    clusters: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    beside_controls: Table | None = None
    caveats: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, job: Job, folder: Path, scores: Sequence[SlideScore]) -> Evaluation:
        """From the scores of a run's test slides."""
        slides = slide_table(scores)
        summary = summarize(slides)
        table = result_table(summary, int(slides["hvgs"].max()))
        chosen = {s.slide_id: frozenset(s.genes["gene"][s.hvg]) for s in scores}
        return cls(job, folder, scores, slides, gene_table(scores), summary, table, chosen)

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.job.run.config["options"]["model"]

    @property
    def encoder(self) -> str:
        """Name of the encoder."""
        return self.job.run.config["options"]["encoder"]

    @property
    def target(self) -> str:
        """Scale of the targets."""
        return self.job.run.config["options"]["target"]

    @property
    def gene_ids(self) -> Mapping[str, str] | None:
        """Ensembl ids of symbols, by --gene-map; None without."""
        return self.job.cohort.gene_map and self.job.cohort.gene_map.ids

    @property
    def same_id(self) -> str | None:
        """What became of genes that share an id, by --same-id; None without a map."""
        return self.job.cohort.gene_map and self.job.cohort.gene_map.merge

    @property
    def panel(self) -> frozenset[str]:
        """Every gene that some fold predicts."""
        return frozenset(self.genes.index)

    @property
    def training(self) -> dict[str, set[frozenset[str]]]:
        """Slides that trained or validated the models of each test slide."""
        seen = {}
        for fold in self.job.run.folds:
            split = fold.split
            rest = frozenset(split.loc[split["split"] != "test", "slide_id"])
            for slide_id in split.loc[split["split"] == "test", "slide_id"]:
                seen.setdefault(slide_id, set()).add(rest)
        return seen
