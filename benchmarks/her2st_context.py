"""What features are worth on her2st: larger patches, neighbors, stages, turns, a second encoder.

    python benchmarks/her2st_context.py --source ../shared/data/her2st

Writes a part of RESULTS.md. Stopped and given again, it goes on.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from her2st import markdown, replace_between, row_of, train_and_score

import run_extract
from histokit.core.options import option, required, run

NET, STAIN = "efficientnet-lite0", "hed"
SCALES = "112,224,448"
NET_SCALES, STAIN_SCALES, STAGES, TURNED = (
    f"{name}-{SCALES.replace(',', '-')}um"
    for name in (NET, STAIN, f"{NET}-stages", f"{NET}-stages-8views")
)
BOTH = f"{NET_SCALES}+{STAIN_SCALES}"
FEATURES = {
    "112 um": {"encoder": NET, "standardize": "slide"},
    "three sizes": {"encoder": NET_SCALES, "standardize": "slide"},
    "three sizes, neighbors": {
        "encoder": NET_SCALES, "neighbors": "mean", "standardize": "slide"
    },
    "three sizes, neighbors by attention": {
        "encoder": NET_SCALES, "neighbors": "attention", "standardize": "slide"
    },
    "three sizes, neighbors by attention, hed": {
        "encoder": BOTH, "neighbors": "attention", "standardize": "slide"
    },
    "stages, three sizes, neighbors": {
        "encoder": STAGES, "neighbors": "mean", "standardize": "slide"
    },
    "stages, 8 views, three sizes, neighbors": {
        "encoder": TURNED, "neighbors": "mean", "standardize": "slide"
    },
    "stages, 112 um": {"encoder": f"{NET}-stages", "standardize": "slide"},
}  # fmt: skip
MODELS = {
    "ridge": {"model": "ridge"},
    "ridge-by-gene": {"model": "ridge-by-gene"},
    "ridge-hest": {"model": "ridge-hest"},
    "mlp": {"model": "mlp", "preset": "small"},
    "histoprism, small": {"model": "histoprism", "preset": "small"},
    "bpbooster, small": {"model": "bpbooster", "preset": "small"},
}
# Ridge is measured on all features, the others on three. HistoPrism's cross-attention has D x D
# weights: it cannot take the features that are 15,360 wide.
STEPS = {
    "ridge": range(len(FEATURES)),
    "ridge-by-gene": (0, 2, 5, 6, 7),
    "histoprism, small": (0, 1, 6),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    source: str = required("folder of the her2st sections in the legacy layout")
    out: str = option("work/results", "folder for features and runs")
    models: list[str] = option(list(MODELS), "models to measure")
    target: str = option("counts10k-log1p", "target to measure")
    results: str = option("RESULTS.md", "file whose part on context is replaced")


def main(cfg: Options) -> None:
    """Extract, train and evaluate what is missing; write the table."""
    data = Path(cfg.out) / "data"
    for wanted in (
        {"encoder": NET},
        {"encoder": NET, "scales": SCALES},
        {"encoder": STAIN, "scales": SCALES},
        {"encoder": NET, "pool": "stages"},
        {"encoder": NET, "scales": SCALES, "pool": "stages"},
        {"encoder": NET, "scales": SCALES, "pool": "stages", "views": 8},
    ):
        run_extract.main(
            run_extract.Options(source=cfg.source, out=str(data), cancer="IDC", **wanted)
        )
    rows = []
    for model in cfg.models:
        for number, (features, chosen) in enumerate(FEATURES.items()):
            if number not in STEPS.get(model, (0, 4, 6)):
                continue
            folder = Path(cfg.out) / "context" / cfg.target / f"{model.split(',')[0]}-{number}"
            options = {"data": str(data), "target": cfg.target} | chosen | MODELS[model]
            train_and_score(folder, **options)
            rows.append(
                {"model": model, "features": features} | row_of(folder / "eval/summary.csv")
            )
    replace_between(Path(cfg.results), "context", markdown(pd.DataFrame(rows)))
    print(f"wrote the table to {cfg.results}; runs are in {cfg.out}/context")


if __name__ == "__main__":
    run(main, Options, __doc__)
