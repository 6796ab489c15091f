"""From the scored slides of runs to folders of tables, pictures and a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from histokit.core.distributed import Team
from histokit.core.files import write_json
from histokit.core.progress import progress_bar
from histokit.evaluate import compare as comparison
from histokit.evaluate.context import Context
from histokit.evaluate.evaluation import Evaluation, Job
from histokit.evaluate.folders import versions
from histokit.evaluate.official import official_sentence
from histokit.evaluate.options import Options
from histokit.evaluate.protocol_scores import ProtocolScores
from histokit.evaluate.protocols import PROTOCOLS, Protocol
from histokit.evaluate.questions import Questions, comparison_folder
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.summary import pcc_matrix
from histokit.evaluate.tables import text_table
from histokit.evaluate.topics.audit import AuditTopic
from histokit.evaluate.topics.base import Topic
from histokit.evaluate.topics.clusters import ClusterTopic
from histokit.evaluate.topics.context import ContextTopic
from histokit.evaluate.topics.controls import ControlTopic
from histokit.evaluate.topics.embeddings import EmbeddingTopic
from histokit.evaluate.topics.maps import DetailTopic, MapTopic, ResultTopic, representative_slides
from histokit.evaluate.topics.pathways import (
    PathwayTopic,
)
from histokit.evaluate.topics.predictions import PredictionTopic
from histokit.evaluate.topics.protocol import ProtocolTopic, PublishedTopic
from histokit.evaluate.topics.prototypes import PrototypeTopic
from histokit.evaluate.topics.residuals import ResidualTopic
from histokit.evaluate.topics.signatures import (
    SignatureTopic,
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
from histokit.evaluate.views import Views
from histokit.report.page import Page, plural, render


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
    results, out = comparison.without_repeats(results), comparison_folder(cfg)
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
