import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import GENES, write_cohort

import run_eval
import run_train
from histokit.core.distributed import ALONE
from histokit.data.cohort import Cohort
from histokit.evaluate.runs import Run
from histokit.evaluate.topics.prototypes import PrototypeTopic, top_genes
from histokit.evaluate.views import Views
from histokit.models.bpbooster import BPBooster


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prototypes")
    data = write_cohort(folder / "data")
    (folder / "sets.gmt").write_text(
        "".join(f"HALLMARK_{n}\tna\t" + "\t".join(g) + "\n"
                for n, g in (("FIRST", GENES[:14]), ("SECOND", GENES[10:25])))
    )  # fmt: skip
    programs = {"init": "programs", "programs": str(folder / "sets.gmt")}
    for name, options in (
        ("random", {"num_prototypes": 12}),
        ("programs", programs | {"standardize_programs": True}),
        ("literal", {"attention": "literal"}),
    ):
        run_train.main(
            run_train.Options(
                data=str(data), run=str(folder / name), model="bpbooster", encoder="tiny",
                latent_dim=16, num_hvgs=10, epochs=4, folds="leave-one-patient-out",
                val_fraction=0.0, standardize="none", **options,
            )
        )  # fmt: skip
    return folder


def evaluate(folder, name, **options):
    run_eval.main(
        run_eval.Options(run=[str(folder / name)], num_hvg=8, predictions=False, **options)
    )
    return folder / name / "eval"


@pytest.mark.parametrize(("name", "shown"), [("random", "prototype 1"), ("programs", "SECOND")])
def test_report_shows_prototypes(runs, name, shown):
    out = evaluate(runs, name, max_pictures=2)
    table = pd.read_csv(out / "prototypes.csv", keep_default_na=False)
    assert list(dict.fromkeys(table["fold"])) == ["A", "B", "C", "D"]
    assert set(table["program"]) == (
        {""} if name == "random" else {"HALLMARK_FIRST", "HALLMARK_SECOND"}
    )
    assert table["gate"].between(0, 1).all()
    np.testing.assert_allclose(table.groupby("fold")["attention"].sum(), 1, rtol=1e-4)
    pictures = list(out.glob("prototypes/*/*.png"))
    assert len(pictures) == 2
    assert min(p.stat().st_size for p in pictures) > 10_000
    report = (out / "report.html").read_text()
    assert shown in report
    assert "gates are more than half open" in report


def test_literal_attention_raises_no_genes(runs):
    out = evaluate(runs, "literal", pictures=False)
    table = pd.read_csv(out / "prototypes.csv", keep_default_na=False)
    assert set(table["raises"]) == {""}
    assert "none raises genes of its own" in (out / "report.html").read_text()
    assert not list(out.glob("prototypes/*/*.png"))


def test_attention_is_of_the_test_patches(runs):
    run, cohort = Run(runs / "random"), Cohort(runs / "data", "tiny")
    fold = run.folds[0]
    topic, views = PrototypeTopic(), Views(run, cohort)
    for view in views.of():
        topic.add(view)
    topic.gather(ALONE, [views.again(fold, name).score for name in ("A1", "A2")])
    table = topic.tables[fold.name]
    model = fold.load_model()
    x = torch.cat([cohort.load(s).features for s in ("A1", "A2")])
    weights = model.attention_weights(x)
    table = table.sort_values("prototype")
    np.testing.assert_allclose(table["attention"], weights.mean(0), rtol=1e-5)
    np.testing.assert_allclose(table["varies"], weights.std(0, correction=0), rtol=1e-4)


def test_raised_genes_are_those_of_a_patch_that_attends_to_one_prototype():
    model = BPBooster(6, 5, latent_dim=8, num_prototypes=3, num_hvgs=2, num_heads=2).eval()
    model.prototype_logit.data.normal_()
    effects = model.prototype_effects()
    with torch.no_grad():  # queries that point at one key alone
        values = model.value(model.prototypes) * model.prototype_gate[:, None]
        predicted = [model.head(model.output(v) * model.latent_gate) for v in values]
        mean = model.head(model.output(values.mean(0)) * model.latent_gate)
    for effect, prediction in zip(effects, predicted, strict=True):
        torch.testing.assert_close(effect, prediction - mean, atol=1e-5, rtol=1e-4)
    genes = pd.DataFrame(
        {"gene": list("abcde"), "symbol": ["A", "", "C", "D", "E"], "gene_id": ["id1", *[""] * 4],
         "train_variance": [1.0, 1.0, 0.0, 1.0, 1.0], "hvg_rank": [1, 2, 3, np.nan, 4]}
    )  # fmt: skip
    for effect, named in zip(effects.numpy(), top_genes(model, genes), strict=True):
        order = [i for i in np.argsort(-effect) if i in (0, 1, 4) and effect[i] > 0]
        full = ["A (id1)", "b", "C (c)", "D (d)", "E (e)"]
        assert named == ", ".join(full[i] for i in order)
