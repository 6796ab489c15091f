"""What is asked of runs, and whether they can be asked it: read and checked before any work."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from histokit.core.distributed import Team
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.evaluate.context import Context, read_context, refuse_context
from histokit.evaluate.controls import controls_of, open_cohort
from histokit.evaluate.evaluation import Job
from histokit.evaluate.folders import check_replaceable
from histokit.evaluate.gene_lists import GeneLists, read_lists
from histokit.evaluate.official import check_genes
from histokit.evaluate.options import Options
from histokit.evaluate.protocol_genes import choose_genes, drawn_from
from histokit.evaluate.protocols import PROTOCOLS, check_protocol
from histokit.evaluate.published import read_published
from histokit.evaluate.runs import Run
from histokit.evaluate.summary import check_same_slides
from histokit.evaluate.topics.pathways import (
    Collection,
    PathwayGenes,
    panel_of,
    read_collections,
)
from histokit.evaluate.topics.signatures import Signature, find_genes, read_signatures
from histokit.evaluate.views import check_run


@dataclasses.dataclass
class Questions:
    """What is asked of every run, read once.

    Attributes:
        collections: gene sets.
        signatures: lists of genes.
        listed: genes that replace the training slides' most variable ones; None without them.
        context: spots whose expression the models are shown; None for none.
        lists: gene lists of a published protocol, by what they are drawn from.
        pathway_genes: what a comparison of pathways needs of each run, by name.
    """

    collections: list[Collection]
    signatures: list[Signature]
    listed: GeneLists | None
    context: Context | None = None
    lists: dict[tuple, GeneLists] = dataclasses.field(default_factory=dict)
    pathway_genes: dict[str, PathwayGenes] = dataclasses.field(default_factory=dict)

    def gene_lists(self, job: Job, protocol: str) -> GeneLists:
        """The protocol's gene lists; runs share them where they would draw the same."""
        if self.listed is not None:
            return self.listed
        key = (protocol, *drawn_from(job.run, job.cohort))
        if key not in self.lists:
            self.lists[key] = choose_genes(job.run, job.cohort, protocol)
        return self.lists[key]

    def headline(self, job: Job, protocol: str, team: Team) -> GeneLists | None:
        """The genes of the headline where no training slides rank them; for all ranks."""
        if self.listed is not None or protocol == "histokit" or job.run.ranks_genes:
            return self.listed
        return team.gather(self.gene_lists(job, protocol) if team.first else None)[0]


def without_comparisons(cfg: Options) -> Options:
    """The options without folders that compare runs, which ``--run RUNS/*`` names too."""
    runs = [r for r in cfg.run if not (Path(r) / "comparison.csv").is_file()]
    return dataclasses.replace(cfg, run=runs or cfg.run)


def prepare(cfg: Options) -> tuple[Questions, list[Job]]:
    """Open every run and refuse what cannot be scored or compared before any work is done.

    Returns:
        What is asked, and the runs with their controls, each control before its run.

    Raises:
        InputError: says what is wrong with which run, file or option.
    """
    if cfg.published:
        read_published(cfg.published)  # an unknown task ends here
    listed = read_lists(cfg.hvg_file) if cfg.hvg_file else None
    collections = read_collections(cfg.gene_sets or (), cfg.curate)
    context = read_context(cfg.context_genes, cfg.context_seed) if cfg.context_genes else None
    questions = Questions(collections, read_signatures(cfg.signature or ()), listed, context)
    if context:
        refuse_context([Run(folder) for folder in cfg.run], cfg.published)
    jobs = []
    for name, folder in zip(short_names(cfg.run), cfg.run, strict=True):
        run, controls = Run(folder), []
        check_protocol(run, PROTOCOLS[cfg.protocol])
        check_genes(run, listed is not None, cfg.protocol)
        # the controls are scored without context, on all spots
        for label, control in controls_of(run).items() if not context else ():
            cohort, out = open_cohort(control, cfg.data), control.folder / "eval"
            tests = _tests(control, cohort)
            job = Job(f"{name}, {label}", control, cohort, out, tests, control=label)
            controls.append(_checked(job, questions))
        out = _own_folder(run, cfg)
        name += f", {context}" if context else ""
        names = tuple(control.name for control in controls)
        cohort = open_cohort(run, cfg.data)
        job = Job(name, run, cohort, out, _tests(run, cohort), names)
        jobs += [*controls, _checked(job, questions)]
    if len(cfg.run) > 1:
        check_same_slides({job.name: set(job.tests) for job in jobs})
        check_replaceable(comparison_folder(cfg))
    return questions, jobs


def _own_folder(run: Run, cfg: Options) -> Path:
    """Where a run's evaluation goes; one with context never where predictions look for theirs."""
    plain = run.folder / "eval"
    if not cfg.out or len(cfg.run) > 1:
        return plain if not cfg.context_genes else run.folder / "eval-context"
    if cfg.context_genes and Path(cfg.out).resolve() == plain.resolve():
        raise InputError(
            f"{plain} is the place of figures without context, by which run_predict.py trusts "
            "genes; give another --out with --context-genes"
        )
    return Path(cfg.out)


def _checked(job: Job, questions: Questions) -> Job:
    """Refuse gene sets and signatures that a run cannot score, and a folder that is not ours."""
    for collection in questions.collections:
        collection.within(panel_of(job.run))
    for signature in questions.signatures:
        for fold in job.run.folds:
            find_genes(signature, fold.genes)
    check_replaceable(job.out)
    return job


def _tests(run: Run, cohort: Cohort) -> list[str]:
    return [slide for _, members in check_run(run, cohort) for slide in members]


def short_names(folders: list[str]) -> list[str]:
    """The last part of each path, or the whole path where that is not enough."""
    paths = [os.path.normpath(folder) for folder in folders]
    if len(set(paths)) < len(paths):
        raise InputError("--run names a run twice; name each once")
    short = [Path(path).name for path in paths]
    return short if len(set(short)) == len(short) else paths


def comparison_folder(cfg: Options) -> Path:
    """Where several runs are set side by side."""
    return Path(cfg.out) if cfg.out else Path(os.path.normpath(cfg.run[0])).parent / "comparison"
