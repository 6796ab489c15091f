"""Published benchmarks from their downloads, each by one command.

    python run_bench.py --source hest-bench --encoder uni --weights pytorch_model.bin --out bench
    python run_bench.py --source hest-bench --encoder uni --features-from EMBEDDINGS --out bench

SOURCE is HEST-Bench as downloaded: a folder for each task with adata, patches, splits and
var_50genes.json. Every task is extracted once and scored by the recipe to the letter, beside what
is published, and by a sound one: a cross-validated penalty, PCC within slides, counts per 10,000.
Killed at any moment, the same command goes on.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import run_eval
import run_extract
import run_train
from histokit.core.errors import InputError
from histokit.core.files import atomic_path, make_folder
from histokit.core.options import Checked, option, required, run
from histokit.models.presets import BOOSTER_LR
from histokit.models.registry import MODELS, OFFERED, PRESET_NAMES

RECIPE, NORMALIZED = "log1p", "counts10k-log1p"
SOUND = "ridge"


@dataclass(frozen=True)
class Options(Checked):
    """Options of run_bench.py."""

    source: str = required("HEST-Bench as downloaded, or one of its tasks")
    out: str = required("folder to write into; made if absent")
    encoder: str = option("resnet50", "as of run_extract.py; HEST's ResNet-50 is resnet50")
    weights: str | None = option(None, "weights of the encoder", shown="from the hub or its cache")
    features_from: str | None = option(
        None, "embeddings made elsewhere: FOLDER/TASK/SLIDE.h5 or FOLDER/SLIDE.h5"
    )
    tasks: list[str] = option([], "tasks to run; an empty list means all that are there")
    models: list[str] = option(
        ["ridge-hest", "ridge-hest-no-pca"],
        "models on the benchmark's targets; ridge is always there beside them",
        choices=OFFERED,
    )
    preset: str = option(
        "paper",
        "preset of networks; bpbooster takes its own of the task, and one without it paper",
        choices=PRESET_NAMES,
    )
    batch_size: str = option("auto", "patches encoded at a time", group="machine")
    device: str = option("cpu", "torch device", group="machine")
    workers: int = option(1, "threads that read patches ahead", group="machine", least=1, most=256)


def main(cfg: Options) -> None:
    """Every task: extract, train and score each model; then the table."""
    from histokit.evaluate import leaderboard
    from histokit.evaluate.tables import text_table

    out, entries = make_folder(cfg.out), []
    for task in find_tasks(cfg):
        place = make_folder(out / task.name)
        print(f"{task.name}: extracting, training and scoring; see {place / 'log.txt'}")
        with open(place / "log.txt", "a") as log, redirect_stdout(log):
            encoder = extract(task, place / "data", cfg)
            for model, target in plan(cfg):
                folder = score(task, place, encoder, model, target, cfg)
                entries.append(
                    leaderboard.read_entry(task.name, model, target, encoder, folder / "eval")
                )
    entries += leaderboard.averaged(entries, cfg.encoder)
    table = leaderboard.as_table(entries, f"HEST-Bench, {cfg.encoder}")
    with atomic_path(out / "leaderboard.csv") as temporary:
        leaderboard.as_frame(entries).to_csv(temporary, index=False)
    print(text_table(table))
    print(f"wrote {out / 'leaderboard.csv'}")


def find_tasks(cfg: Options) -> list[Path]:
    """The folders of the tasks asked for.

    Raises:
        InputError: no task, one that is not there, or one that is not whole.
    """
    source = Path(cfg.source)
    folders = [source] if (source / "adata").is_dir() else sorted(source.glob("[!.]*"))
    tasks = {f.name: f for f in folders if (f / "adata").is_dir() and (f / "patches").is_dir()}
    if not tasks:
        raise InputError(
            f"{source} holds no task of HEST-Bench; a folder of tasks with adata, patches, splits "
            "and var_50genes.json was expected, as downloaded"
        )
    for name in cfg.tasks:
        if name not in tasks:
            raise InputError(f"--tasks: {source} has no {name}; there: {', '.join(tasks)}")
    for name in cfg.tasks or tasks:
        for part in ("splits", "var_50genes.json"):
            if not (tasks[name] / part).exists():
                raise InputError(f"{tasks[name]} lacks {part}; download the task again")
    return [tasks[name] for name in cfg.tasks or tasks]


def plan(cfg: Options) -> list[tuple[str, str]]:
    """Models with their targets; the sound one on normalized counts too."""
    models = list(dict.fromkeys([*cfg.models, SOUND]))
    return [*((model, RECIPE) for model in models), (SOUND, NORMALIZED)]


def extract(task: Path, data: Path, cfg: Options) -> str:
    """Extract a task; returns what its features are called."""
    made = None
    if cfg.features_from:
        own = Path(cfg.features_from) / task.name
        made = str(own if own.is_dir() else cfg.features_from)
    return run_extract.main(
        run_extract.Options(
            source=str(task),
            out=str(data),
            encoder=cfg.encoder,
            weights=cfg.weights,
            features_from=made,
            batch_size=cfg.batch_size,
            device=cfg.device,
            workers=cfg.workers,
        )
    )


def score(task: Path, place: Path, encoder: str, model: str, target: str, cfg: Options) -> Path:
    """Train a model on the task's folds and score it on its genes; returns the run."""
    folder = place / "runs" / f"{model}-{target}"
    genes = str(task / "var_50genes.json")
    run_train.main(
        run_train.Options(
            data=str(place / "data"),
            model=model,
            run=str(folder),
            encoder=encoder,
            target=target,
            panel=genes,
            folds=str(task),
            preset=preset_of(model, task.name, cfg.preset),
            allow_leakage=True,  # the published folds are what is measured; the audit says it
            device=cfg.device,
        )
    )
    if not is_evaluated(folder):
        run_eval.main(
            run_eval.Options(
                run=[str(folder)],
                protocol="hest-bench" if target == RECIPE else "histokit",
                hvg_file=genes,
                predictions=False,
                pictures=False,
                device=cfg.device,
            )
        )
    return folder


def is_evaluated(run: Path) -> bool:
    """Whether a run was scored as it is now: no fold was trained again since."""
    manifest = run / "eval" / "manifest.json"
    if not manifest.is_file():
        return False
    trained = [path.stat().st_mtime_ns for path in run.glob("folds/*/model.safetensors")]
    return manifest.stat().st_mtime_ns >= max(trained)


def preset_of(model: str, task: str, given: str) -> str:
    """BP-Booster's own preset of a task, where its paper has one."""
    own = {"LUNG": "paper-luad"}.get(task, f"paper-{task.lower()}")
    if model == "bpbooster" and given == "paper" and own in BOOSTER_LR:
        return own
    return given if given in MODELS[model].presets else "paper"


if __name__ == "__main__":
    run(main, Options, __doc__)
