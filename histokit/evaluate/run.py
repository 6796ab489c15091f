"""From trained runs to folders of tables, pictures and a report."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.distributed import ALONE, Team
from histokit.core.errors import InputError
from histokit.core.files import make_folder, write_json
from histokit.core.progress import progress_bar
from histokit.data.cohort import Cohort
from histokit.data.genes import read_gene_list
from histokit.evaluate.controls import controls_of, open_cohort, outdated
from histokit.evaluate.folders import check_replaceable, versions, whole_folder
from histokit.evaluate.predictions import read_tissue, write_prediction
from histokit.evaluate.protocols import PROTOCOLS, check_protocol
from histokit.evaluate.published import read_published
from histokit.evaluate.runs import Run
from histokit.evaluate.summary import (
    check_same_slides,
    gene_table,
    pcc_matrix,
    slide_table,
    summarise,
)
from histokit.evaluate.tables import (
    result_table,
    run_sections,
)
from histokit.evaluate.topics.biology import SignatureScores, check_biology, genes_of, read_biology
from histokit.evaluate.topics.biology_sections import biology_sections
from histokit.evaluate.topics.embeddings import embedding_sections
from histokit.evaluate.topics.maps import draw_maps, draw_overview
from histokit.evaluate.topics.prototypes import prototype_sections
from histokit.evaluate.topics.trust import (
    audit_parts,
    control_parts,
    control_section,
    protocol_parts,
)
from histokit.evaluate.verdict import GLOSSARY, patients_sentence, unknown_cancers, verdict
from histokit.evaluate.views import check_run, score_run
from histokit.report.page import plural, render


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


def prepare(cfg) -> list[Job]:
    """Open every run and refuse what cannot be scored or compared before any work is done."""
    if cfg.published:
        read_published(cfg.published)  # an unknown task ends here
    names = _short_names(cfg.run)
    jobs = []
    for name, folder in zip(names, cfg.run, strict=True):
        run, controls = Run(folder), []
        check_protocol(run, PROTOCOLS[cfg.protocol])
        for label, control in controls_of(run).items():
            out = control.folder / "eval"
            controls.append(_job(f"{name}, {label}", control, cfg, out, control=label))
        out = Path(cfg.out) if cfg.out and len(cfg.run) == 1 else run.folder / "eval"
        job = _job(name, run, cfg, out, tuple(control.name for control in controls))
        jobs += [*controls, job]
    if len(cfg.run) > 1:
        check_same_slides({job.name: set(job.tests) for job in jobs})
        check_replaceable(comparison_folder(cfg))
    return jobs


def _job(name: str, run: Run, cfg, out: Path, controls=(), control: str = "") -> Job:
    cohort = open_cohort(run, cfg.data)
    tests = [slide for _, members in check_run(run, cohort) for slide in members]
    check_biology(read_biology(cfg), run)
    check_replaceable(out)
    return Job(name, run, cohort, out, tests, controls, control)


def _short_names(folders: list[str]) -> list[str]:
    """The last part of each path, or the whole path where that is not enough."""
    paths = [os.path.normpath(folder) for folder in folders]
    if len(set(paths)) < len(paths):
        raise InputError("--run names a run twice; name each once")
    short = [Path(path).name for path in paths]
    return short if len(set(short)) == len(short) else paths


def comparison_folder(cfg) -> Path:
    """Where several runs are set side by side."""
    return Path(cfg.out) if cfg.out else Path(os.path.normpath(cfg.run[0])).parent / "comparison"


def evaluate(job: Job, cfg, controls: Mapping[str, dict], team: Team = ALONE) -> dict:
    """Score one run and write its folder.

    Args:
        job: the run.
        cfg: options of run_eval.py.
        controls: results of its controls, by name.
        team: the processes that score together; rank 0 writes the folder.

    Returns:
        On rank 0, what a comparison needs: slides, summary, model, encoder, transform, table, and
        the genes and slides behind the figures.
    """
    options = job.run.config["options"]
    if job.control:
        cfg = dataclasses.replace(cfg, predictions=False, pictures=False, clusters=False)
    listed = read_gene_list(cfg.hvg_file) if cfg.hvg_file else None
    provenance, biology = _provenance(job, cfg), read_biology(cfg)
    signatures = SignatureScores(biology.signatures)
    with whole_folder(job.out) if team.first else nullcontext() as folder:
        folder = team.gather(folder)[0]
        bar = progress_bar(total=len(team.share(job.tests)), desc=job.name, unit="slide")

        def keep(fold, slide, prediction, target, score):
            signatures.add(fold, slide, prediction, target, score)
            if not cfg.predictions:
                return
            path = make_folder(folder / "predictions" / fold.id)
            write_prediction(
                path / f"{slide.slide_id}.h5ad",
                slide,
                prediction,
                target,
                score,
                read_tissue(job.cohort, slide),
                provenance | {"fold": fold.name, "slide_id": slide.slide_id},
                score.hvg if cfg.predict_genes == "hvg" else np.ones_like(score.hvg),
            )

        with bar:
            scores = score_run(job.run, job.cohort, cfg.num_hvg, listed, keep, bar.update, team)
        signatures.gather(team, scores)
        if not team.first:
            return {}
        slides, genes = slide_table(scores), gene_table(scores)
        summary = summarise(slides)
        slides.to_csv(folder / "slides.csv", index=False)
        genes.to_csv(folder / "genes.csv", float_format="%.6g")
        pcc_matrix(scores).to_csv(folder / "pcc_by_slide.csv", float_format="%.4f")
        summary[summary["by"] == "cancer"].to_csv(folder / "cancers.csv", index=False)
        _write_summary(folder, summary, provenance)
        overview = draw_overview(slides, genes, folder)
        maps = []
        if cfg.pictures:
            maps = draw_maps(job.run, job.cohort, scores, genes, folder, cfg.max_pictures)
        shown = cfg.max_pictures if cfg.pictures else 0
        learnt = []
        if options["model"] == "bpbooster":
            for sections_of in (prototype_sections, embedding_sections):
                learnt += sections_of(job.run, job.cohort, scores, folder, shown)
        behind = genes_of(scores)
        asked = biology_sections(biology, job.run, job.cohort, behind, signatures, genes, folder)
        result = {
            "slides": slides,
            "summary": summary,
            "model": options["model"],
            "encoder": options["encoder"],
            "transform": options["target"],
            "control": job.control,
            "table": result_table(summary, int(slides["hvgs"].max())),
            "hvg_sets": {s.slide_id: frozenset(s.genes["gene"][s.hvg]) for s in scores},
            "panel": frozenset(genes.index),
            "genes": behind,
            "training": _training(job.run),
            "caveats": [
                *audit_parts(job.run)[0],
                patients_sentence(slides, summary),
                unknown_cancers(slides),
            ],
        }
        if strange := unknown_cancers(slides):
            print(f"{job.name}: {strange}")
        said = verdict(slides, summary, options["target"])
        found = int(slides["hvgs"].max())
        if listed and found < len(listed):
            said.insert(
                1,
                f"Of the {len(listed)} genes of {cfg.hvg_file} the model predicts {found}; the "
                "headline is theirs alone.",
            )
        sections = [*run_sections(slides, genes, summary, overview, maps), *learnt, *asked]
        _add_trust(job, cfg, result, controls, listed, folder, said, sections)
        render(
            folder / "report.html",
            f"How well {options['model']} predicts expression from tissue",
            f"Run {job.run.folder} · encoder {options['encoder']} · "
            f"{plural(len(job.run.folds), 'fold')} · data {job.cohort.folder}",
            said,
            sections,
            {
                "evaluation": dataclasses.asdict(cfg),
                "training": job.run.config,
                "features": job.cohort.provenance(job.tests[0]),
                "versions": versions(),
            },
            GLOSSARY,
        )
    return result


def _add_trust(job: Job, cfg, result: dict, controls, listed, folder, said, sections) -> None:
    """Controls, protocol, published figures and audit: into the verdict and the sections."""
    extra = []
    if controls:
        sentences, result["controls"] = control_parts(job.name, result, controls)
        said += sentences
        extra.append(control_section(result["controls"]))
    if old := outdated(job.run):
        said.append(old)
    task = None if job.control else cfg.published
    result["protocol"], more = protocol_parts(
        job.run, job.cohort, cfg.protocol, listed, task, folder
    )
    sections[1:1] = extra + more
    sentences, more = audit_parts(job.run)
    said += sentences
    sections += more


def _provenance(job: Job, cfg) -> dict:
    options = job.run.config["options"]
    return {
        "run": str(job.run.folder),
        "model": options["model"],
        "encoder": options["encoder"],
        "transform": options["target"],
        "knobs": _knobs(job, cfg),
        "hvgs": cfg.hvg_file or f"top {cfg.num_hvg} of the training slides of each fold",
        "intervals": "95 %, over the unit of each row; see docs/statistics.md",
        "config": job.run.config,
    }


def _knobs(job: Job, cfg) -> dict:
    """The choices behind every figure of summary.csv."""
    genes = f"top {cfg.num_hvg} of the training slides of each fold"
    return PROTOCOLS["histokit"].knobs() | {
        "gene_rule": f"the list {cfg.hvg_file}" if cfg.hvg_file else genes,
        "target": job.run.config["options"]["target"],
        "model": job.run.config["options"]["model"],
    }


def _training(run: Run) -> dict:
    """Slides that trained or validated the model of each test slide."""
    seen = {}
    for fold in run.folds:
        split = fold.split
        rest = frozenset(split.loc[split["split"] != "test", "slide_id"])
        for slide_id in split.loc[split["split"] == "test", "slide_id"]:
            seen.setdefault(slide_id, set()).add(rest)
    return seen


def _write_summary(folder: Path, summary: pd.DataFrame, provenance: Mapping) -> None:
    summary.assign(**provenance["knobs"]).to_csv(folder / "summary.csv", index=False)
    rows = summary.astype(object).where(summary.notna(), None).to_dict("records")
    write_json(folder / "summary.json", {**provenance, "versions": versions(), "results": rows})
