"""HistoPrism's tables from HEST-1k and the published splits, by one command.

    python run_histoprism.py --source HEST --splits splits --panel stpath_genes.yaml \
        --lists hest_bench --encoder uni --weights pytorch_model.bin --out bench/histoprism

SOURCE is HEST-1k as downloaded, SPLITS the folder with split_0 and split_1. The slides that the
splits name are extracted once; each model is trained on every split, and scored as the paper does:
macro and micro PCC, pathways, agreement of clusters with the cancers. Killed at any moment, the
same command goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import run_eval
import run_extract
import run_train
from histokit.core.errors import InputError
from histokit.core.files import atomic_path, make_folder
from histokit.core.options import Checked, option, required, run
from histokit.models.registry import MODELS, OFFERED, PRESET_NAMES


@dataclass(frozen=True)
class Options(Checked):
    """Options of run_histoprism.py."""

    source: str = required("HEST-1k as downloaded: st, patches or wsis, and the metadata table")
    splits: str = required("folder that holds the published splits, each with test_split.csv")
    panel: str = required("genes to predict: the authors' stpath_genes.yaml")
    out: str = required("folder to write into; made if absent")
    lists: str | None = option(
        None,
        "folder with CODE/var_50genes.json, HEST-Bench's; without it genes are chosen anew on the "
        "slides at hand",
    )
    encoder: str = option("uni", "as of run_extract.py; the paper's is uni")
    weights: str | None = option(None, "weights of the encoder", shown="from the hub or its cache")
    features_from: str | None = option(None, "embeddings made elsewhere, as of run_extract.py")
    models: list[str] = option(["histoprism"], "models to train", choices=OFFERED)
    preset: str = option(
        "paper",
        "preset of the models; release has the checkpoints' settings; one without it takes paper",
        choices=PRESET_NAMES,
    )
    epochs: int | None = option(None, "epochs at most", shown="the preset's", least=1)
    gene_map: str | None = option(None, "symbols to Ensembl ids, as of run_train.py")
    same_id: str = option(
        "log-sum",
        "as of run_train.py; log-sum is the authors'",
        choices=("sum", "first", "log-sum"),
    )
    unmeasured: str = option(
        "zero",
        "genes that a training slide did not measure: zero, as the authors train, or skip",
        choices=("skip", "zero"),
    )
    cancer_codes: str = option(
        "split", "as of run_train.py", choices=("split", "unfilled", "cohort")
    )
    gene_sets: list[str] = option([], "pathways to score, as of run_eval.py", shown="none")
    beside: list[str] = option(
        [], "finished runs on the same test slides to set beside, such as STPath's weights"
    )
    allow_missing: bool = option(
        False, "go on without slides that the splits name and the source lacks; lists them"
    )
    batch_size: str = option("auto", "patches encoded at a time", group="machine")
    device: str = option("cpu", "torch device", group="machine")
    workers: int = option(1, "threads that read patches ahead", group="machine", least=1, most=256)


def main(cfg: Options) -> None:
    """Extract, train each model on all splits, score them together, print the tables."""
    from histokit.evaluate import pan_cancer
    from histokit.evaluate.questions import short_names
    from histokit.evaluate.runs import Run
    from histokit.evaluate.tables import text_table

    out = make_folder(cfg.out)
    encoder = extract(out / "data", cfg)
    runs = [train(model, encoder, out, cfg) for model in cfg.models] + list(cfg.beside)
    run_eval.main(
        run_eval.Options(
            run=runs,
            data=str(out / "data"),
            out=str(out / "comparison") if len(runs) > 1 else None,
            protocol="histoprism",
            hvg_file=cfg.lists,
            gene_sets=cfg.gene_sets,
            clusters=True,
            predictions=False,
            pictures=False,
            device=cfg.device,
        )
    )
    names = short_names(runs)
    tables = {
        name: pan_cancer.table_of(Run(r), Path(r) / "eval")
        for name, r in zip(names, runs, strict=True)
    }
    whole = pan_cancer.joined(tables)
    with atomic_path(out / "histoprism.csv") as temporary:
        whole.to_csv(temporary, index=False)
    print(text_table(pan_cancer.as_table(tables, "HistoPrism's tables")))
    print(f"wrote {out / 'histoprism.csv'}")


def extract(data: Path, cfg: Options) -> str:
    """Extract the slides of the splits that are there; returns what their features are called.

    Raises:
        InputError: slides that the splits name are not there, without ``--allow-missing``.
    """
    from histokit.data.hest import hest_ids
    from histokit.data.splits import read_splits

    named = dict.fromkeys(
        s for _, roles in read_splits(cfg.splits) for r in roles.values() for s in r
    )
    there = hest_ids(Path(cfg.source))
    absent = [s for s in named if s not in there]
    if len(absent) == len(named):
        raise InputError(f"no slide of {cfg.splits} is in {cfg.source}; give HEST-1k's folder")
    if absent:
        said = f"{len(absent)} of {len(named)} slides of the splits are not in {cfg.source}"
        shown = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
        if not cfg.allow_missing:
            raise InputError(
                f"{said}: {shown}; download them, or leave them out with --allow-missing"
            )
        print(f"{said} and are left out: {', '.join(absent)}")
    return run_extract.main(
        run_extract.Options(
            source=cfg.source,
            out=str(data),
            slides=[s for s in named if s in there],
            encoder=cfg.encoder,
            weights=cfg.weights,
            features_from=cfg.features_from,
            batch_size=cfg.batch_size,
            device=cfg.device,
            workers=cfg.workers,
        )
    )


def train(model: str, encoder: str, out: Path, cfg: Options) -> str:
    """Train a model on every split; returns the run."""
    folder = str(out / "runs" / model)
    run_train.main(
        run_train.Options(
            data=str(out / "data"),
            model=model,
            run=folder,
            encoder=encoder,
            target="log1p",
            panel=cfg.panel,
            gene_map=cfg.gene_map,
            same_id=cfg.same_id,
            unmeasured=cfg.unmeasured,
            folds=cfg.splits,
            cancer_codes=cfg.cancer_codes,
            preset=cfg.preset if cfg.preset in MODELS[model].presets else "paper",
            epochs=cfg.epochs,
            allow_leakage=True,  # the published splits are what is measured; the audit says it
            allow_missing=cfg.allow_missing,
            device=cfg.device,
        )
    )
    return folder


if __name__ == "__main__":
    run(main, Options, __doc__)
