"""Make a run of published weights, which run_eval.py scores as any other.

    python -m histokit.train.official --model stpath --weights stfm.pth \
        --genes symbol2ensembl.json --data data/her2st --run runs/stpath-official
    python run_eval.py --run runs/stpath-official --protocol stpath

Nothing is trained. Every slide of DATA is a test slide, or, with --split, the test slides of the
split that the weights were trained on; several splits take as many files of weights, in their
order. With --test, one file is scored on the test slides of splits that say nothing about it.
"""

from __future__ import annotations

import dataclasses
import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from histokit import __version__, models
from histokit.core.encoder_names import split_maker
from histokit.core.errors import InputError
from histokit.core.files import atomic_path, make_folder, write_json
from histokit.core.options import Checked, option, required, run
from histokit.core.weights import file_sha256
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
    weights: list[str] = required(
        "the published checkpoint, read without running code of its own; one for each of --split"
    )
    genes: str = required("the authors' list of its outputs (docs/prediction.md)")
    data: str = required("folder that run_extract.py wrote")
    run: str = required("folder of the run to make")
    split: str | None = option(
        None,
        "the split that these very weights were trained on, a folder of HistoPrism's, one that "
        "holds several, or a CSV slide_id,split[,fold]: only test slides are scored",
        shown="every slide is scored, whatever the weights have seen",
    )
    test: str | None = option(
        None,
        "splits whose test slides are scored, whatever the weights have seen",
        shown="every slide",
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
    splits = make_splits(cohort, cfg)
    weights = [Path(file) for file in cfg.weights]
    weights *= len(splits) if len(weights) == 1 else 1
    for split, file in zip(splits, weights, strict=True):
        model, arguments = load_published(cfg.model, file)
        check_features(cohort, split.test, about, model.input_dim)
        genes = read_outputs(Path(cfg.genes), model.head.out_features, file)
        place = make_folder(folder / "folds" / split.id)
        _write(split.table(cohort.with_cancers(split.cancers).slides), place / "split.csv")
        blank = dict.fromkeys(("hvg_rank", "train_mean", "train_variance"))
        columns = ["gene", "gene_id", "symbol", *blank]
        _write(genes.reset_index().assign(**blank)[columns], place / "genes.csv")
        models.save(model, cfg.model, arguments, place)
    if cohort.gene_map:
        cohort.gene_map.write(folder / GENE_MAP)
    write_json(folder / "config.json", describe(cfg, encoder, cohort, splits))
    tested = len({s for split in splits for s in split.test})
    print(f"wrote the published {about.title} for {tested} test slides to {folder}")


def make_splits(cohort: Cohort, cfg: Options) -> list[Split]:
    """The folds: all slides are tested, or those of the splits that are given.

    Slides of a split that the cohort lacks are left out; oncotree codes that the model knows by
    another name are renamed, and what is done is printed.

    Raises:
        InputError: ``--split`` with ``--test``, another number of weights than of splits, a slide
            of two roles, or no test slide in the cohort.
    """
    if cfg.split and cfg.test:
        raise InputError("--split says what trained the weights, --test does not; give one of them")
    given = cfg.split or cfg.test
    named = read_splits(given) if given else [(FOLD, {"test": list(cohort.slides.index)})]
    if cfg.test:
        named = [(name, {"test": roles.get("test", [])}) for name, roles in named]
    count = len(named) if cfg.split else 1
    if len(cfg.weights) != count:
        raise InputError(
            f"{given or cfg.data} holds {len(named)} splits and --weights names "
            f"{len(cfg.weights)} files; give {count}, each trained on the split at its place"
        )
    published = [read_cancers(p) for p in published_splits(given)] if given else []
    codes = published or [{}] * len(named)
    names = [name for name, _ in named] if len(named) > 1 else [FOLD]
    return [
        _split(name, roles, own, cohort, cfg)
        for name, (_, roles), own in zip(names, named, codes, strict=True)
    ]


def _split(name: str, roles: dict, codes: dict, cohort: Cohort, cfg: Options) -> Split:
    """One fold, of slides that the cohort has."""
    given = cfg.split or cfg.test
    listed = pd.Index([s for role in ROLES for s in roles.get(role, [])])
    if listed.has_duplicates:
        twice = listed[listed.duplicated()][0]
        raise InputError(f"{given} lists slide {twice} twice; a slide has one role")
    lacking = [s for s in listed if s not in cohort.slides.index]
    if lacking:
        print(f"{len(lacking)} slides of the split are not extracted, such as {lacking[0]}")
    there = [[s for s in roles.get(role, []) if s in cohort.slides.index] for role in ROLES]
    if not there[-1]:
        raise InputError(
            f"no test slide of {given} is in {cohort.folder}; extract them, or leave --split "
            "out to score every slide, whatever the weights have seen"
        )
    own = {s: codes.get(s, cohort.slides["cancer"][s]) for part in there for s in part}
    if cfg.model == "histoprism":
        for code in sorted(set(own.values()) & set(ALIASES)):
            print(f"slides of {code} are called {ALIASES[code]}, as HistoPrism's authors do")
        own = {s: ALIASES.get(code, code) for s, code in own.items()}
    return Split(name, *there, own)


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
        encoder, maker = split_maker(str(given.get("encoder", about.encoder)))
        if maker == "hest":  # whose patches have the published size, which its files do not say
            given |= {"encoder": encoder, "patch_um": PATCH_UM}
        if found := difference(wanted, given):
            key, own, here = found
            raise InputError(
                f"{about.title} takes features of {key} {own} and those of slide {slide_id} have "
                f"{here}; extract the slides with --encoder {about.encoder}"
            )


def describe(cfg: Options, encoder: str, cohort: Cohort, splits: list[Split]) -> dict:
    """What config.json says of the run; ``official`` tells it from a training."""
    about = PUBLISHED[cfg.model]
    options = {
        "data": str(Path(cfg.data).resolve()),
        "model": cfg.model,
        "encoder": encoder,
        "neighbors": "none",
        "target": TARGET,
        "panel": cfg.genes,
        "folds": cfg.split or cfg.test or FOLD,
        "gene_map": cfg.gene_map,
        "same_id": cfg.same_id,
    }
    official = {
        "title": about.title,
        "weights": ", ".join(Path(path).name for path in cfg.weights),
        "weights_sha256": ", ".join(map(file_sha256, cfg.weights)),
        "genes": Path(cfg.genes).name,
        "split": cfg.split or "",
    }
    names = ("torch", "numpy")
    return {
        "options": options,
        "official": official,
        **describe_folds(splits),
        "features": feature_identity(cohort.provenance(splits[0].test[0])),
        "environment": {name: version(name) for name in names}
        | {"python": platform.python_version(), "histokit": __version__},
    }


def _write(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


if __name__ == "__main__":
    run(main, Options, __doc__)
