"""From the scored slides of runs to folders of tables, pictures and a report."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from histokit.core.distributed import Team
from histokit.core.errors import InputError
from histokit.core.files import write_json
from histokit.core.progress import progress_bar
from histokit.data.cohort import Cohort
from histokit.evaluate import compare as comparison
from histokit.evaluate.context import Context, read_context, refuse_context
from histokit.evaluate.controls import controls_of, open_cohort
from histokit.evaluate.evaluation import Evaluation, Job
from histokit.evaluate.folders import check_replaceable, versions
from histokit.evaluate.gene_lists import GeneLists, read_lists
from histokit.evaluate.official import check_genes, official_sentence
from histokit.evaluate.options import Options
from histokit.evaluate.protocol_genes import choose_genes, drawn_from
from histokit.evaluate.protocols import PROTOCOLS, Protocol, ProtocolScores, check_protocol
from histokit.evaluate.published import read_published
from histokit.evaluate.runs import Run
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.summary import check_same_slides, pcc_matrix
from histokit.evaluate.tables import text_table
from histokit.evaluate.topics.audit import AuditTopic
from histokit.evaluate.topics.base import Topic
from histokit.evaluate.topics.clusters import ClusterTopic
from histokit.evaluate.topics.context import ContextTopic
from histokit.evaluate.topics.controls import ControlTopic
from histokit.evaluate.topics.embeddings import EmbeddingTopic
from histokit.evaluate.topics.maps import DetailTopic, MapTopic, ResultTopic, representative_slides
from histokit.evaluate.topics.pathways import (
    Collection,
    PathwayGenes,
    PathwayTopic,
    panel_of,
    read_collections,
)
from histokit.evaluate.topics.predictions import PredictionTopic
from histokit.evaluate.topics.protocol import ProtocolTopic, PublishedTopic
from histokit.evaluate.topics.prototypes import PrototypeTopic
from histokit.evaluate.topics.residuals import ResidualTopic
from histokit.evaluate.topics.signatures import (
    Signature,
    SignatureTopic,
    find_genes,
    read_signatures,
)
from histokit.evaluate.topics.variance import VarianceTopic
from histokit.evaluate.verdict import (
    GLOSSARY,
    RAW_COUNTS,
    cautions,
    patients_sentence,
    unknown_cancers,
    verdict,
)
from histokit.evaluate.views import Views, check_run
from histokit.report.page import Page, plural, render


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
        check_replaceable(_comparison_folder(cfg))
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


def _comparison_folder(cfg: Options) -> Path:
    """Where several runs are set side by side."""
    return Path(cfg.out) if cfg.out else Path(os.path.normpath(cfg.run[0])).parent / "comparison"


@dataclasses.dataclass(frozen=True)
class Report:
    """The evaluation of one run, from its slides to its folder.

    Attributes:
        job: the run.
        cfg: the options.
        questions: what is asked; takes what a comparison needs of the run.
        views: its test slides; a few are seen again to be drawn.
        folder: the folder to write.
    """

    job: Job
    cfg: Options
    questions: Questions
    views: Views
    folder: Path


def topics(report: Report, results: Mapping[str, Evaluation], team: Team) -> list[Topic]:
    """What the report of a run asks, in the order of its sections.

    Args:
        report: the run's.
        results: evaluations of runs before it, its controls among them.
        team: the processes that evaluate together.
    """
    job, cfg, questions = report.job, report.cfg, report.questions
    found: list[Topic] = [ResultTopic(), ControlTopic({n: results[n] for n in job.controls
                                                       if team.first})]  # fmt: skip
    if questions.context:
        found.append(ContextTopic(questions.context))
    if cfg.protocol != "histokit":
        lists = team.gather(questions.gene_lists(job, cfg.protocol) if team.first else None)[0]
        rule = str(questions.listed) if questions.listed else ""
        protocol = _protocol(cfg, questions.context)
        found.append(ProtocolTopic(ProtocolScores(job.run, protocol, lists, rule)))
    if cfg.published and not job.control:
        found.append(PublishedTopic(cfg.published, cfg.protocol, questions.listed is not None))
    if cfg.pictures and not job.control:
        found += [MapTopic(), ResidualTopic()]
    found += [DetailTopic(), VarianceTopic()]
    if job.run.config["options"]["model"] == "bpbooster" and not job.control:
        found += [PrototypeTopic(), EmbeddingTopic(job.run, job.cohort)]
    found += [PathwayTopic(questions.collections), SignatureTopic(questions.signatures)]
    if cfg.clusters and not job.control:
        found.append(ClusterTopic(report.views))
    if cfg.predictions and not job.control:
        whole = cfg.predict_genes == "all"
        about = _provenance(job, cfg, questions.context)
        found.append(PredictionTopic(report.folder, job.cohort, about, whole))
    return [*found, AuditTopic()]


def _protocol(cfg: Options, context: Context | None) -> Protocol:
    """The protocol, each of whose figures names the context under which it was reached."""
    protocol = PROTOCOLS[cfg.protocol]
    if context is None:
        return protocol
    return dataclasses.replace(
        protocol,
        average=f"{protocol.average}; {context}",
        warning=f"{context.warning} {protocol.warning}",
    )


def write(report: Report, topics: Sequence[Topic], scores: Sequence[SlideScore]) -> Evaluation:
    """Write a run's tables, pictures and report into its folder.

    Args:
        report: the run's.
        topics: as ``topics`` returns them, after the pass over the slides.
        scores: the scores of its test slides.
    """
    job, cfg, questions = report.job, report.cfg, report.questions
    views, folder = report.views, report.folder
    found = Evaluation.of(job, folder, scores)
    found.slides.to_csv(folder / "slides.csv", index=False)
    found.genes.to_csv(folder / "genes.csv", float_format="%.6g")
    # by this name run_predict.py finds which genes to trust, without context
    by_slide = "pcc_by_slide.csv" if not questions.context else "pcc_by_slide_in_context.csv"
    pcc_matrix(scores).to_csv(folder / by_slide, float_format="%.4f")
    by_cancer = found.summary[found.summary["by"] == "cancer"]
    by_cancer.to_csv(folder / "cancers.csv", index=False)
    _write_summary(folder, found.summary, _provenance(job, cfg, questions.context))
    folds = {fold.name: fold for fold in job.run.folds}
    drawn = cfg.max_pictures if cfg.pictures and not job.control else 0
    for score in progress_bar(representative_slides(scores, drawn), desc="pictures"):
        view = views.again(folds[score.fold], score.slide_id)
        for topic in topics:
            topic.show(view, found)
    parts = [topic.finish(found) for topic in topics]
    said = _said(found, cfg, questions) + [s for part in parts for s in part.sentences]
    warnings = _warnings(job, questions)
    found.caveats = _caveats(found, cfg, questions) + list(parts[-1].sentences)  # the audit's
    for sentence in filter(None, (*warnings, unknown_cancers(found.slides))):
        print(f"{job.name}: {sentence}")
    page = Page(
        f"How well {found.model} predicts expression from tissue",
        f"Run {job.run.folder} · encoder {found.encoder} · "
        f"{plural(len(job.run.folds), 'fold')} · data {job.cohort.folder}",
        said,
        [section for part in parts for section in part.sections],
        {
            "evaluation": dataclasses.asdict(cfg),
            "training": job.run.config,
            "features": job.features(),
            "versions": versions(),
        },
        GLOSSARY,
    )
    render(folder / "report.html", page)
    for topic in topics:
        if isinstance(topic, PathwayTopic):
            questions.pathway_genes[job.name] = topic.genes
    found.scores = ()
    return found


def _said(found: Evaluation, cfg: Options, questions: Questions) -> list[str]:
    """The verdict, with a word on a given gene list of which the model lacks some."""
    said = verdict(found.slides, found.summary, found.target)
    patients = patients_sentence(found.slides, found.summary)
    said = [s for s in said if s != patients or s == _patients(found)]
    said[1:1] = [*_warnings(found.job, questions), *_lists(found, cfg, questions)]
    return said


def _caveats(found: Evaluation, cfg: Options, questions: Questions) -> list[str]:
    """What a comparison repeats of a run's report: all that its figures must be read with."""
    said = [*_warnings(found.job, questions), *_lists(found, cfg, questions)]
    said += [*cautions(found.slides, found.summary), _patients(found)]
    if found.target != "counts10k-log1p":
        said.append(RAW_COUNTS)
    return [sentence for sentence in said if sentence]


def _lists(found: Evaluation, cfg: Options, questions: Questions) -> list[str]:
    """A sentence on each given gene list of which the model lacks some."""
    said = []
    for cancer in dict.fromkeys(found.slides["cancer"]) if questions.listed else ():
        genes, of = questions.listed.of(cancer), ""
        if "" not in questions.listed.by_cancer:
            of = f" for {cancer}"
        hvgs = int(found.slides.loc[found.slides["cancer"] == cancer, "hvgs"].max())
        sentence = (
            f"Of the {len(genes)} genes of {cfg.hvg_file}{of} the model predicts {hvgs}; the "
            "headline is theirs alone."
        )
        if hvgs < len(genes) and sentence not in said:
            said.append(sentence)
    return said


def _warnings(job: Job, questions: Questions) -> list[str]:
    """What a model saw of the test slides, or may have."""
    shown = questions.context.warning if questions.context else ""
    return [sentence for sentence in (shown, official_sentence(job.run)) if sentence]


def _patients(found: Evaluation) -> str:
    """Whether the test patients were seen; nothing of weights whose training nobody knows."""
    unknown = set(found.slides["patient_seen"]) == {"unknown"}
    if found.job.run.official and unknown:
        return ""
    return patients_sentence(found.slides, found.summary)


def tell(found: Evaluation, alone: bool) -> None:
    """Print where a run's evaluation lies, and its first tables where it is the only run."""
    job = found.job
    if alone and not job.control:
        print(text_table(found.table))
        if found.beside_controls is not None:
            print(f"\n{text_table(found.beside_controls)}\n")
    print(f"wrote the evaluation of {job.run.folder} to {job.out}, see {job.out}/report.html")


def compare(results: Mapping[str, Evaluation], questions: Questions, cfg: Options) -> None:
    """Write and print the comparison of several runs."""
    results, out = comparison.without_repeats(results), _comparison_folder(cfg)
    genes = {name: questions.pathway_genes[name] for name in results}
    for table in comparison.compare_runs(results, genes, questions.collections, out, cfg):
        print(f"{table.title}\n{text_table(table)}\n")
    print(f"wrote the comparison of {len(cfg.run)} runs to {out}, see {out}/report.html")


def _provenance(job: Job, cfg: Options, context: Context | None) -> dict:
    """The choices behind every figure."""
    options = job.run.config["options"]
    default = f"top {cfg.num_hvg} of the training slides of each fold"
    if cfg.protocol != "histokit" and not job.run.ranks_genes:
        default = f"the list of the protocol {cfg.protocol}"
    knobs = PROTOCOLS["histokit"].knobs() | {
        "gene_rule": f"the list {cfg.hvg_file}" if cfg.hvg_file else default,
        "target": options["target"],
        "model": options["model"],
    }
    if context:
        knobs["context"] = str(context)
    if cfg.precision != "float32":
        knobs["precision"] = cfg.precision
    return {
        "run": str(job.run.folder),
        "model": options["model"],
        "encoder": options["encoder"],
        "transform": options["target"],
        "knobs": knobs,
        "hvgs": cfg.hvg_file or default,
        "intervals": "95 %, over the unit of each row; see docs/statistics.md",
        "config": job.run.config,
    }


def _write_summary(folder: Path, summary: pd.DataFrame, provenance: Mapping) -> None:
    summary.assign(**provenance["knobs"]).to_csv(folder / "summary.csv", index=False)
    rows = summary.astype(object).where(summary.notna(), None).to_dict("records")
    write_json(folder / "summary.json", {**provenance, "versions": versions(), "results": rows})
