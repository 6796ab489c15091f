"""Make a run of published weights, which run_eval.py scores as any other.

    python -m histokit.train.official --model stpath --weights stfm.pth \
        --genes symbol2ensembl.json --data data/her2st --run runs/stpath-official
    python run_eval.py --run runs/stpath-official --protocol stpath

Nothing is trained. Every slide of DATA is a test slide, or, with --split, the test slides of the
split that the weights were trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from histokit import __version__, models
from histokit.core.errors import InputError
from histokit.core.files import atomic_path, make_folder, reading, write_json
from histokit.core.options import Checked, option, required, run
from histokit.data.cohort import Cohort
from histokit.data.features import difference, feature_identity
from histokit.data.gene_map import GENE_MAP, read_gene_map
from histokit.data.official_genes import read_outputs
from histokit.data.splits import (
    ROLES,
    Split,
    describe_folds,
    published_splits,
    read_cancers,
    read_splits,
)
from histokit.models.official import ALIASES, PUBLISHED, TARGET, Published, load_published

FOLD = "official"
PATCH_UM = 112.0


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Options of an import."""

    model: str = required("whose weights they are", choices=tuple(PUBLISHED))
    weights: str = required("the published checkpoint, read without running code of its own")
    genes: str = required("the authors' list of its outputs (docs/prediction.md)")
    data: str = required("folder that run_extract.py wrote")
    run: str = required("folder of the run to make")
    split: str | None = option(
        None,
        "the split that these very weights were trained on, a folder of HistoPrism's or a CSV "
        "slide_id,split: only its test slides are scored",
        shown="every slide is scored, whatever the weights have seen",
    )
    encoder: str | None = option(
        None, "encoder whose features are used, as extraction named it", shown="the model's own"
    )
    gene_map: str | None = option(
        None, "symbols to Ensembl ids where slides name none; as of run_train.py"
    )
    same_id: str = option(
        "sum",
        "genes of a slide that the map gives one id; log-sum as HistoPrism's authors do",
        choices=("sum", "first", "log-sum"),
    )


def main(cfg: Options) -> None:
    """Write RUN: config.json and one fold with split, genes and weights."""
    folder = Path(cfg.run)
    if (folder / "config.json").exists():
        raise InputError(f"{folder} holds a run already; give another --run or delete it")
    about = PUBLISHED[cfg.model]
    encoder = cfg.encoder or about.encoder
    cohort = Cohort(cfg.data, encoder).with_counts()
    if cfg.gene_map:
        cohort = cohort.with_gene_map(read_gene_map(cfg.gene_map, cfg.same_id))
    split = make_split(cohort, cfg)
    model, arguments = load_published(cfg.model, Path(cfg.weights))
    check_features(cohort, split.test, about, model.input_dim)
    genes = read_outputs(Path(cfg.genes), model.head.out_features, Path(cfg.weights))
    place = make_folder(folder / "folds" / FOLD)
    _write(split.table(cohort.with_cancers(split.cancers).slides), place / "split.csv")
    blank = dict.fromkeys(("hvg_rank", "train_mean", "train_variance"))
    columns = ["gene", "gene_id", "symbol", *blank]
    _write(genes.reset_index().assign(**blank)[columns], place / "genes.csv")
    models.save(model, cfg.model, arguments, place)
    if cohort.gene_map:
        cohort.gene_map.write(folder / GENE_MAP)
    write_json(folder / "config.json", describe(cfg, encoder, cohort, split))
    print(f"wrote the published {about.title} for {len(split.test)} test slides to {folder}")


def make_split(cohort: Cohort, cfg: Options) -> Split:
    """The only fold: all slides are tested, or those that the weights' own split tests.

    Slides of the split that the cohort lacks are left out; oncotree codes that the model knows by
    another name are renamed, and what is done is printed.

    Raises:
        InputError: a file of several splits, a slide of two roles, or no test slide in the cohort.
    """
    roles, codes = {"test": list(cohort.slides.index)}, {}
    if cfg.split:
        named = read_splits(cfg.split)
        if len(named) > 1:
            raise InputError(
                f"{cfg.split} holds {len(named)} splits ({', '.join(name for name, _ in named)}); "
                "give the one that these weights were trained on"
            )
        ((_, roles),) = named
        codes = {s: c for p in published_splits(cfg.split) for s, c in read_cancers(p).items()}
        listed = pd.Index([s for role in ROLES for s in roles.get(role, [])])
        if listed.has_duplicates:
            twice = listed[listed.duplicated()][0]
            raise InputError(f"{cfg.split} lists slide {twice} twice; a slide has one role")
        lacking = [s for s in listed if s not in cohort.slides.index]
        if lacking:
            print(f"{len(lacking)} slides of the split are not extracted, such as {lacking[0]}")
    there = [[s for s in roles.get(role, []) if s in cohort.slides.index] for role in ROLES]
    if not there[-1]:
        raise InputError(
            f"no test slide of {cfg.split} is in {cohort.folder}; extract them, or leave --split "
            "out to score every slide, whatever the weights have seen"
        )
    own = {s: codes.get(s, cohort.slides["cancer"][s]) for part in there for s in part}
    if cfg.model == "histoprism":
        for code in sorted(set(own.values()) & set(ALIASES)):
            print(f"slides of {code} are called {ALIASES[code]}, as HistoPrism's authors do")
        own = {s: ALIASES.get(code, code) for s, code in own.items()}
    return Split(FOLD, *there, own)


def check_features(cohort: Cohort, slides: list[str], about: Published, dimension: int) -> None:
    """Raise InputError for features that the published model does not take."""
    first = cohort.provenance(slides[0])
    wanted = {"encoder": about.encoder, "patch_um": PATCH_UM, "dimension": dimension}
    for slide_id in slides:
        given = cohort.provenance(slide_id)
        if found := difference(first, given):
            raise InputError(
                f"the features of {slides[0]} have {found[0]} {found[1]} and those of {slide_id} "
                f"{found[2]}; extract both the same way"
            )
        given["encoder"] = str(given.get("encoder", about.encoder)).partition("@")[0]
        if found := difference(wanted, given):
            key, own, here = found
            raise InputError(
                f"{about.title} takes features of {key} {own} and those of slide {slide_id} have "
                f"{here}; extract the slides with --encoder {about.encoder}"
            )


def describe(cfg: Options, encoder: str, cohort: Cohort, split: Split) -> dict:
    """What config.json says of the run; ``official`` tells it from a training."""
    about = PUBLISHED[cfg.model]
    with reading(Path(cfg.weights), "file of weights"), open(cfg.weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    options = {
        "data": str(Path(cfg.data).resolve()),
        "model": cfg.model,
        "encoder": encoder,
        "neighbors": "none",
        "target": TARGET,
        "panel": cfg.genes,
        "folds": cfg.split or FOLD,
        "gene_map": cfg.gene_map,
        "same_id": cfg.same_id,
    }
    official = {
        "title": about.title,
        "weights": Path(cfg.weights).name,
        "weights_sha256": digest,
        "genes": Path(cfg.genes).name,
        "split": cfg.split or "",
    }
    names = ("torch", "numpy")
    return {
        "options": options,
        "official": official,
        **describe_folds([split]),
        "features": feature_identity(cohort.provenance(split.test[0])),
        "environment": {name: version(name) for name in names}
        | {"python": platform.python_version(), "histokit": __version__},
    }


def _write(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


if __name__ == "__main__":
    run(main, Options, __doc__)
