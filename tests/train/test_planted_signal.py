"""Every model learns what is planted, and nothing where spots are dealt out anew."""

import anndata
import numpy as np
import pytest
from cohorts import write_cohort

import run_train
from histokit.data.cohort import Cohort
from histokit.evaluate.runs import Run
from histokit.evaluate.views import Views
from histokit.models.registry import OFFERED

SLIDES = {f"{p}{i}": ("IDC", p, 60) for p in "ABC" for i in (1, 2)} | {"D1": ("IDC", "D", 200)}
FEW = {"preset": "small", "epochs": 40, "lr": 3e-3, "val_fraction": 0.0, "refit": False}
OPTIONS = {
    "ridge-hest": {}, "ridge-hest-no-pca": {}, "ridge": {}, "ridge-no-pca": {},
    "ridge-by-gene": {}, "knn": {"retrieval_k": 10},
    "bleep": FEW | {"retrieval_k": 10}, "mclstexp": FEW | {"retrieval_k": 10},
    "bpbooster": {"preset": "small", "num_svgs": 20, "num_hvgs": 20, "val_fraction": 0.0},
}  # fmt: skip
WIDTHS = {"hidden_dim": 32, "feedforward_dim": 64}
OPTIONS["histoprism"] = OPTIONS["stpath"] = FEW | WIDTHS
OPTIONS["average"] = FEW | {"epochs": 8}
OPTIONS["histogene"] = FEW | WIDTHS | {"histogene_heads": 4}
# mean learns nothing, and spots of this cohort have nothing to do with their neighbors, of which
# merge is made; it has a test on slides of its own, as the four that take minutes here have
APART = ("mean", "merge", "triplex", "stflow", "stem", "auto")
LEARN = [name for name in OFFERED if name not in APART]


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    """With what is planted, and with the expression of each slide's spots dealt out anew."""
    folders = [tmp_path_factory.mktemp(name) for name in ("planted", "dealt")]
    for folder in folders:
        write_cohort(folder, SLIDES)
    rng = np.random.default_rng(3)
    for slide_id in SLIDES:
        path = folders[1] / "expression" / f"{slide_id}.h5ad"
        data = anndata.read_h5ad(path)
        data.X = data.X[rng.permutation(data.n_obs)]
        data.write_h5ad(path)
    return folders


def pcc(folder, run, model, test="D1"):
    """Mean PCC of the test slide, constant predictions as 0."""
    split = run.parent / f"{run.name}.csv"
    rows = [f"{s},{'test' if s == test else 'train'}" for s in SLIDES]
    split.write_text("slide_id,split\n" + "\n".join(rows) + "\n")
    run_train.main(
        run_train.Options(
            data=str(folder), run=str(run), model=model, encoder="tiny", folds=str(split),
            neighbors="none", target="log1p", **OPTIONS.get(model, FEW)
        )
    )  # fmt: skip
    (view,) = Views(Run(run), Cohort(folder, "tiny")).of()
    return np.nan_to_num(view.score.pcc).mean()


@pytest.mark.parametrize("model", LEARN)
def test_a_model_learns_what_is_planted_and_nothing_else(cohorts, tmp_path, model):
    planted, dealt = (
        pcc(folder, tmp_path / name, model)
        for folder, name in zip(cohorts, ("planted", "dealt"), strict=True)
    )
    # the mean of 30 genes that share 16 features, over 200 spots
    assert planted > 0.2
    assert abs(dealt) < 0.12
