"""Predict expression on slides that have none, and say how far to trust it.

    python run_predict.py --run runs/her2st-ridge --source slide.svs --cancer IDC --out maps
    python run_predict.py --run runs/her2st-ridge --source outs/ --image slide.tif --out maps

SOURCE is whatever run_extract.py reads, with counts or without. Each slide gets OUT/SLIDE: a page
to look at (page/index.html), prediction.h5ad, prediction.zarr, tiles.geojson.gz and overlays; its
features are made as those of the run were and kept in OUT/data. What is finished is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from histokit.core.errors import InputError
from histokit.core.files import make_folder
from histokit.core.options import option, required, run
from histokit.extract.options import SlideOptions

FORMATS = ("page", "h5ad", "geojson", "overlays", "spatialdata")
OF_RUN, OF_OFFICIAL = "fold eval training_data features_from".split(), ["checkpoint", "gene_list"]
OF_EXTRACTION = "cancer image mpp bin_um mask no_mask allow_misfit weights features_from".split()


@dataclass(frozen=True)
class Options(SlideOptions):
    """Options of run_predict.py."""

    out: str = required("folder to write into; made if absent")
    run: str | None = option(
        None, "folder that run_train.py wrote; evaluate it first (run_eval.py)"
    )
    official: str | None = option(
        None,
        "in place of --run, whose published checkpoint --checkpoint is",
        choices=("histoprism", "stpath"),
    )
    checkpoint: str | None = option(None, "the file of a published checkpoint")
    gene_list: str | None = option(
        None, "the published list of that checkpoint's genes (docs/prediction.md)"
    )
    source: str | None = option(
        None, "slides: an image, a folder of images, cohort.csv or a folder in a known layout"
    )
    data: str | None = option(
        None, "in place of --source, a folder that run_extract.py wrote as for this run"
    )
    fold: str = option("all", "the fold whose model predicts; all: the mean of all")
    slides: list[str] = option([], "ids of the slides to predict; an empty list means all")
    formats: list[str] = option(
        list(FORMATS), f"what to write: {', '.join(FORMATS)}", choices=FORMATS
    )
    genes: list[str] = option(
        [],
        "genes for overlays, tiles.geojson.gz and, of more than 2,000 genes, prediction.zarr",
        shown="the 12 trusted ones of highest held-out PCC",
    )
    gene_sets: list[str] = option(
        [], "pathways to score: GMT files or libraries of gseapy", shown="none"
    )
    signature: list[str] = option(
        [], "signatures to score: files with one gene a line, or pam50", shown="none"
    )
    dtype: str = option(
        "float32", "of prediction.h5ad; float16 halves it", choices=("float32", "float16")
    )
    eval: str | None = option(
        None, "the run's evaluation, which says which genes to trust", shown="RUN/eval"
    )
    training_data: str | None = option(
        None, "where the run's training features lie now", shown="as the run recorded it"
    )
    weights: str | None = option(
        None, "weights of the run's encoder", shown="from the hub or its cache"
    )
    features_from: str | None = option(
        None, "features of these slides, for a run trained on features of TRIDENT, CLAM or HEST"
    )
    batch_size: str = option("auto", "patches encoded at a time", group="machine")
    device: str = option("cpu", "torch device: cpu, cuda, cuda:1 or mps", group="machine")
    workers: int = option(1, "threads that read patches ahead", group="machine", least=1, most=256)


def main(cfg: Options) -> None:
    """Extract what is missing, then predict and write slide by slide."""
    check(cfg)
    from histokit.core import distributed
    from histokit.core.memory import keep_freed_memory
    from histokit.maps.index import write_index
    from histokit.maps.slide import map_slide
    from histokit.maps.writing import is_finished, write_slide

    distributed.check_device(cfg.device)
    keep_freed_memory()
    out = make_folder(cfg.out)
    oracle = ask(cfg)
    cohort = features(cfg, oracle.ensemble.run, out)
    slide_ids = list(cfg.slides or cohort.slides.index)
    for slide_id in slide_ids:
        if is_finished(out / slide_id, oracle, cohort, slide_id, cfg):
            print(f"{slide_id}: predicted already, see {out / slide_id}")
            continue
        slide = map_slide(oracle, cohort, slide_id)
        for sentence in slide.said:
            print(f"{slide_id}: {sentence}")
        write_slide(slide, out / slide_id, oracle, cohort, cfg)
    print(f"all maps: {write_index(out)}")


def check(cfg: Options) -> None:
    """Raises InputError for options that do not go together."""
    from histokit.extract.base import check_batch_size

    if (cfg.source is None) == (cfg.data is None):
        raise InputError("give --source (slides) or --data (an extraction of them), one of the two")
    if (cfg.run is None) == (cfg.official is None):
        raise InputError("give --run, or --official with --checkpoint FILE, one of the two")
    if cfg.official and not cfg.checkpoint:
        raise InputError(f"--official {cfg.official} needs its file: --checkpoint FILE")
    unread, takes = (OF_RUN, "run") if cfg.official else (OF_OFFICIAL, "official")
    if given := _given(cfg, unread):
        other = "official" if cfg.official else "run"
        raise InputError(f"{given} applies only to --{takes}, not to --{other}; leave it out")
    if cfg.data is not None and (given := _given(cfg, OF_EXTRACTION)):
        raise InputError(
            f"{given} is for slides that are extracted here, and those of --data are extracted "
            "already; leave it, or give the slides with --source"
        )
    check_batch_size(cfg.batch_size)


def _given(cfg: Options, names: list[str]) -> str:
    """The first of some options that is not left at its default; empty without one."""
    first = [f.name for f in fields(cfg) if f.name in names and getattr(cfg, f.name) != f.default]
    return f"--{first[0].replace('_', '-')}" if first else ""


def ask(cfg: Options):
    """The models, what is known of each gene, and the slides that they were trained on."""
    from histokit.evaluate.runs import Run
    from histokit.evaluate.topics.pathways import read_collections
    from histokit.evaluate.topics.signatures import read_signatures
    from histokit.maps.official import open_official
    from histokit.maps.oracle import consult

    if cfg.official:
        listed = Path(cfg.gene_list) if cfg.gene_list else None
        official = open_official(cfg.official, Path(cfg.checkpoint), listed, cfg.device)
        collections = read_collections(cfg.gene_sets, curate=False)
        return official.oracle(collections, read_signatures(cfg.signature))
    return consult(
        Run(cfg.run),
        cfg.fold,
        evaluation=Path(cfg.eval) if cfg.eval else None,
        training_data=cfg.training_data,
        gene_sets=cfg.gene_sets,
        signatures=cfg.signature,
        device=cfg.device,
    )


def features(cfg: Options, trained, out: Path):
    """The slides with the features that the run takes."""
    from histokit.data.layouts import read_source
    from histokit.evaluate.controls import open_cohort
    from histokit.evaluate.views import check_features
    from histokit.maps.features import extract_for

    if cfg.data is not None:
        cohort = open_cohort(trained, cfg.data)
    else:
        slides = read_source(cfg.source, cfg.cancer, cfg.slides, cfg.mpp, cfg.image, cfg.bin_um)
        settings = {
            "source": cfg.source,
            "given_mpp": cfg.mpp,
            "bin_um": cfg.bin_um,
            "mask": Path(cfg.mask) if cfg.mask else None,
            "no_mask": cfg.no_mask,
            "allow_misfit": cfg.allow_misfit,
            "workers": cfg.workers,
        }
        machine = {
            name: getattr(cfg, name)
            for name in ("weights", "device", "batch_size", "features_from")
        }
        cohort = extract_for(
            trained, slides, make_folder(out / "data"), settings, machine, whole=not cfg.slides
        )
        cohort = cohort.only([slide.slide_id for slide in slides])
    for slide_id in cfg.slides or cohort.slides.index:
        check_features(trained, cohort, slide_id)
    return cohort


if __name__ == "__main__":
    run(main, Options, __doc__)
