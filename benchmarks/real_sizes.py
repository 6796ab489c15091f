"""What the published benchmarks take on disk, in time and memory, from HEST's table of slides.

    python benchmarks/real_sizes.py --metadata HEST_v1_1_0.csv --splits splits

Spots are those of the table; sizes of files are those of one drawn slide of 3,000 spots; rates and
memory are those of benchmarks/results (extraction-cpu.csv, scale-cpu.csv), of two cores. No GPU has
been timed. Writes a part of docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import scale
from her2st import markdown, replace_between

from histokit.core.options import option, required, run
from histokit.data.splits import read_splits
from histokit.evaluate.published import TASKS
from histokit.report.page import plural

PATCH = 224 * 224 * 3  # bytes, stored as they are
SPOTS = 3000
RESULTS = ROOT / "benchmarks" / "results"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the estimate."""

    metadata: str = required("HEST's table of slides, HEST_v1_1_0.csv or newer")
    splits: list[str] = required("folders of HistoPrism's splits")
    encoder: str = option("resnet50", "encoder of extraction-cpu.csv")
    epochs: int = option(300, "epochs of a training, by which the paper converges")
    document: str = option("docs/benchmarks.md", "file whose part on sizes is replaced")


def main(cfg: Options) -> None:
    """Count spots, measure a drawn slide, multiply."""
    table = pd.read_csv(cfg.metadata, encoding="utf-8-sig").drop_duplicates("id").set_index("id")
    spots = table["spots_under_tissue"]
    splits = [roles for path in cfg.splits for _, roles in read_splits(path)]
    named = sorted({s for roles in splits for ids in roles.values() for s in ids})
    taught = [sum(int(spots[s]) for r in ("train", "val") for s in roles[r]) for roles in splits]
    tested = [sum(int(spots[s]) for s in roles["test"]) for roles in splits]
    bench = sorted({s for slides, _ in TASKS.values() for s in slides})
    expression, features = drawn_slide()
    extraction = pd.read_csv(RESULTS / "extraction-cpu.csv").set_index("encoder")
    rate = extraction.loc[cfg.encoder, "ours_per_s"]
    measured = pd.read_csv(RESULTS / "scale-cpu.csv")
    measured = measured[(measured["model"] == "histoprism") & (measured["spots_a_slide"] == SPOTS)]
    stage = measured.set_index("stage")
    train, evaluate = (stage.loc[name] for name in ("run_train.py", "run_eval.py"))
    rows = []
    for name, slides in (("HEST-Bench, nine tasks", bench), ("HistoPrism, both splits", named)):
        total = int(sum(spots[s] for s in slides))
        rows.append(
            {
                "benchmark": name,
                "slides": f"{len(slides):,}",
                "patches": f"{total:,}",
                "patches on disk": f"{total * PATCH / 1e9:,.0f} GB",
                "expression": f"{total * expression / 1e9:.1f} GB",
                "features (D 1,024)": f"{total * features / 1e9:.1f} GB",
                f"extraction ({cfg.encoder})": f"{total / rate / 3600:.1f} h",
            }
        )
    epoch = [spots / train["spots_a_second"] / 3600 for spots in taught]
    hours = list(dict.fromkeys(f"{hours:.2f} h" for hours in (epoch[0], epoch[-1])))
    days = sum(epoch) * cfg.epochs / 24
    scored = sum(tested) / evaluate["spots_a_second"] / 60
    text = (
        f"{markdown(pd.DataFrame(rows))}\n\nOn two cores one epoch of HistoPrism takes "
        f"{' and '.join(hours)} on the two splits, {cfg.epochs} epochs of both "
        f"{days:.0f} days: a GPU is needed, and none has been timed. Scoring both test sets takes "
        f"{plural(round(scored), 'minute')}. "
        f"Memory: {train['peak_gb']} GB at the peak of a training that keeps "
        f"0.5 GB of slides (`--cache-gb`), {evaluate['peak_gb']} GB of an evaluation, whatever the "
        "number of slides."
    )
    replace_between(ROOT / cfg.document, "sizes", text)
    print(text)


def drawn_slide() -> tuple[float, float]:
    """Bytes for each spot of expression (38,982 genes, 8 % not zero) and of features."""
    cfg = scale.Options(train_slides=1, test_slides=0, spots=SPOTS)
    with tempfile.TemporaryDirectory() as folder:
        scale.make_cohort(cfg, Path(folder))
        sizes = [
            sum(file.stat().st_size for file in Path(folder).rglob(pattern))
            for pattern in ("expression/*.h5ad", "features/*/*.h5")
        ]
    return sizes[0] / SPOTS, sizes[1] / SPOTS


if __name__ == "__main__":
    run(main, Options, __doc__)
