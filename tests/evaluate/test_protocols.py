"""Every protocol against scipy and scikit-learn, written from the papers' definitions."""

import dataclasses
import re

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from cohorts import GENES, write_cohort
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

import run_eval
import run_train
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.data.genes import read_gene_list
from histokit.data.splits import read_splits
from histokit.evaluate.figures import figure_name
from histokit.evaluate.protocol_genes import hest_genes, stem_genes
from histokit.evaluate.protocol_scores import score_protocol
from histokit.evaluate.protocols import PROTOCOLS
from histokit.evaluate.published import HISTOPRISM, TASKS, beside_published, read_published
from histokit.evaluate.runs import Run

SLIDES = {
    "A1": ("IDC", "A", 300),
    "A2": ("IDC", "A", 290),
    "B1": ("PRAD", "B", 310),
    "B2": ("PRAD", "B", 280),
    "C1": ("IDC", "C", 305),
    "D1": ("PRAD", "D", 295),
}
LIST = GENES[3:11]
SILENT = GENES[20]  # never detected on D1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_cohort(tmp_path_factory.mktemp("cohort"), SLIDES, dim=8)
    path = folder / "expression" / "D1.h5ad"
    slide = anndata.read_h5ad(path)
    counts = slide.X.toarray()
    counts[:, GENES.index(SILENT)] = 0
    slide.X = type(slide.X)(counts)
    slide.write_h5ad(path)
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for target in ("log1p", "log2"):
        options = {"encoder": "tiny", "model": "ridge-hest", "folds": "2", "val_fraction": 0.0}
        run_train.main(
            run_train.Options(data=str(data), run=str(folder / target), target=target, **options)
        )
    return {target: Run(folder / target) for target in ("log1p", "log2")}


@pytest.fixture(scope="module")
def cohort(data):
    return Cohort(data, "tiny")


def predictions(run, cohort, transform):
    """(fold, slide, cancer, prediction, target) of every test slide, all genes, float64."""
    for fold in run.folds:
        model, genes = fold.load_model(), list(fold.genes["gene"])
        for slide_id in fold.split.query("split == 'test'")["slide_id"]:
            slide = cohort.load(slide_id, genes)
            assert genes == GENES
            prediction = model.predict(slide.features, slide.cancer).double().numpy()
            yield fold.name, slide_id, slide.cancer, prediction, transform(slide.counts.toarray())


def correlations(prediction, target, genes):
    columns = [GENES.index(gene) for gene in genes]
    with np.errstate(invalid="ignore"):
        return np.array([
            np.nan if np.ptp(target[:, c]) == 0 else pearsonr(prediction[:, c], target[:, c])[0]
            for c in columns
        ])  # fmt: skip


def figure(table, name, group="all"):
    (value,) = table.query("figure == @name and group == @group")["value"]
    return value


def stack(parts):
    return [np.concatenate([p[i] for p in parts]) for i in (3, 4)]


def test_hest_bench_is_its_recipe_in_scikit_learn(runs, cohort):
    table = score_protocol(runs["log1p"], cohort, PROTOCOLS["hest-bench"], LIST)
    columns = [GENES.index(gene) for gene in LIST]
    means, errors, spreads = [], [], []
    for fold in runs["log1p"].folds:
        sides = {}
        for side in ("train", "test"):
            slides = [cohort.load(s) for s in fold.split.query("split == @side")["slide_id"]]
            x = np.concatenate([s.features.numpy() for s in slides])
            y = np.log1p(np.concatenate([s.counts.toarray() for s in slides])[:, columns])
            sides[side] = x, y
        (x, y), (x_test, y_test) = sides["train"], sides["test"]
        pca = Pipeline([("s", StandardScaler()), ("p", PCA(8, random_state=1))]).fit(x)
        ridge = Ridge(
            solver="lsqr", alpha=100 / (8 * 50), random_state=1, fit_intercept=False, max_iter=1000
        )
        z, z_test = (pca.transform(v).astype(np.float32) for v in (x, x_test))
        prediction = ridge.fit(z, y).predict(z_test)
        scores = [pearsonr(y_test[:, g], prediction[:, g])[0] for g in range(len(LIST))]
        assert figure(table, "pcc", fold.name) == pytest.approx(np.mean(scores), abs=1e-5)
        means.append(np.mean(scores))
        errors.append(np.mean((y_test - prediction) ** 2))
        spreads.append(np.mean((y_test - y_test.mean(axis=0)) ** 2))
    assert figure(table, "pcc") == pytest.approx(np.mean(means), abs=1e-5)
    assert figure(table, "mse") == pytest.approx(np.mean(errors), rel=1e-4)
    variance = table.query("figure == 'target_variance'").iloc[0]
    assert variance["value"] == pytest.approx(np.mean(spreads), rel=1e-5)
    assert variance["deviation"] == pytest.approx(np.std(spreads), rel=1e-4)
    row = table.query("figure == 'pcc' and group == 'all'").iloc[0]
    assert row["deviation"] == pytest.approx(np.std(means), abs=1e-5)
    assert (row["genes"], row["pools"], row["target"]) == (8, 2, "log1p")
    assert "without intercept" in row["regressor"]


def test_hest_bench_pools_the_spots_of_a_fold(runs, cohort):
    table = score_protocol(runs["log1p"], cohort, PROTOCOLS["hest-bench"], LIST)
    parts = list(predictions(runs["log1p"], cohort, np.log1p))
    values = []
    for fold in runs["log1p"].folds:
        prediction, target = stack([p for p in parts if p[0] == fold.name])
        values.append(np.mean(correlations(prediction, target, LIST)))
    assert figure(table, "pcc") == pytest.approx(np.mean(values), abs=1e-6)


def test_histoprism_is_per_slide_with_macro_and_micro(runs, cohort):
    table = score_protocol(runs["log1p"], cohort, PROTOCOLS["histoprism"], LIST)
    rows = []
    for fold, slide_id, cancer, prediction, target in predictions(runs["log1p"], cohort, np.log1p):
        top = np.nanmean(correlations(prediction, target, LIST))
        every = np.nanmean(correlations(prediction, target, GENES))
        assert figure(table, "pcc-top50", slide_id) == pytest.approx(top, abs=1e-6)
        assert figure(table, "pcc-all", slide_id) == pytest.approx(every, abs=1e-6)
        rows.append((cancer, fold, top, every))
    rows = pd.DataFrame(rows, columns=["cancer", "fold", "pcc-top50", "pcc-all"])
    for name in ("pcc-top50", "pcc-all"):
        assert figure(table, f"{name}-micro") == pytest.approx(rows[name].mean(), abs=1e-6)
        macro = rows.groupby(["cancer", "fold"])[name].mean().groupby("cancer").mean().mean()
        assert figure(table, f"{name}-macro") == pytest.approx(macro, abs=1e-6)
        for cancer, own in rows.groupby("cancer"):
            splits = own.groupby("fold")[name].mean().mean()
            assert figure(table, f"{name}-cancer", cancer) == pytest.approx(splits, abs=1e-6)
            slides = figure(table, f"{name}-cancer-micro", cancer)
            assert slides == pytest.approx(own[name].mean(), abs=1e-6)
    undefined = table.query("figure == 'pcc-all' and group == 'D1'")["genes_undefined"]
    assert undefined.tolist() == [1]


def test_stpath_pools_all_samples_of_a_cancer(runs, cohort):
    table = score_protocol(runs["log1p"], cohort, PROTOCOLS["stpath"], LIST)
    parts = list(predictions(runs["log1p"], cohort, np.log1p))
    values = []
    for cancer in ("IDC", "PRAD"):
        prediction, target = stack([p for p in parts if p[2] == cancer])
        scores = correlations(prediction, target, LIST)
        assert figure(table, "pcc", cancer) == pytest.approx(scores.mean(), abs=1e-6)
        row = table.query("group == @cancer").iloc[0]
        assert row["deviation"] == pytest.approx(scores.std(), abs=1e-6)
        values.append(scores.mean())
    assert figure(table, "pcc") == pytest.approx(np.mean(values), abs=1e-6)


def test_stem_ranks_by_the_correlation_reached(runs, cohort):
    table = score_protocol(runs["log2"], cohort, PROTOCOLS["stem-topk"], GENES)
    best, errors, spreads = [], [], []
    log2 = lambda counts: np.log2(counts.astype(float) + 1)  # noqa: E731
    for *_, prediction, target in predictions(runs["log2"], cohort, log2):
        scores = correlations(prediction, target, GENES)
        best.append(np.sort(scores[~np.isnan(scores)])[::-1])
        errors.append(np.mean((prediction - target) ** 2))
        spreads.append(np.mean(target.var(axis=0)))
    for k in (10, 50, 200):
        expected = np.mean([scores[:k].mean() for scores in best])
        assert figure(table, f"pcc-{k}") == pytest.approx(expected, abs=1e-6)
    assert figure(table, "mse") == pytest.approx(np.mean(errors), rel=1e-6)
    assert figure(table, "target_variance") == pytest.approx(np.mean(spreads), rel=1e-6)
    taken = table.query("figure == 'pcc-50' and group == 'all'").iloc[0]
    assert (taken["genes"], taken["genes_undefined"]) == (30, 1)


class SilentCohort(Cohort):
    """The same slides with one gene never detected anywhere."""

    def __init__(self, cohort):
        vars(self).update(vars(cohort))

    def load(self, slide_id, genes=None, **parts):
        slide = super().load(slide_id, genes, **parts)
        counts = slide.counts.toarray()
        counts[:, GENES.index(SILENT)] = 0
        return dataclasses.replace(slide, counts=type(slide.counts)(counts))


@pytest.mark.parametrize(
    ("name", "spoilt"), [("hest-bench", True), ("stpath", True), ("histoprism", False)]
)
def test_an_undefined_gene_follows_the_rule(runs, cohort, name, spoilt):
    listed = [*LIST, SILENT]
    table = score_protocol(runs["log1p"], cohort, PROTOCOLS[name], listed)
    assert table["value"].notna().all()  # the gene varies on other slides of each pool
    table = score_protocol(runs["log1p"], SilentCohort(cohort), PROTOCOLS[name], listed)
    assert table["value"].isna().any() == spoilt
    assert table["genes_undefined"].max() > 0


def test_another_scale_and_unknown_genes_are_refused(runs, cohort):
    with pytest.raises(InputError, match="trained on --target log2, but the protocol stpath"):
        score_protocol(runs["log2"], cohort, PROTOCOLS["stpath"], LIST)
    with pytest.raises(InputError, match="does not predict 1 of the 2 genes"):
        score_protocol(runs["log1p"], cohort, PROTOCOLS["stpath"], [GENES[0], "NOPE"])
    with pytest.raises(InputError, match="scores log1p; train a run"):
        run_eval.main(run_eval.Options(run=[str(runs["log2"].folder)], protocol="hest-bench"))
    assert not (runs["log2"].folder / "eval").exists()


def test_hest_genes_follow_the_recipe(cohort):
    names = list(SLIDES)
    chosen = hest_genes(cohort, names, 7)
    slides = [cohort.load(s).counts.toarray() for s in names]
    keep = np.all([(c > 0).sum(0) >= np.ceil(0.1 * len(c)) for c in slides], axis=0)
    assert not keep[GENES.index(SILENT)]
    data = anndata.AnnData(np.log1p(np.concatenate(slides)[:, keep]))
    data.var_names = np.array(GENES)[keep]
    scanpy.pp.highly_variable_genes(data, n_top_genes=7)
    assert chosen == list(data.var_names[data.var.highly_variable])[:7]  # ties make more than 7


def test_stem_genes_are_high_in_mean_and_deviation(cohort):
    names = list(SLIDES)
    counts = np.concatenate([cohort.load(s).counts.toarray() for s in names])
    chosen = stem_genes(cohort, names, num_hvgs=2000, top=9)
    by_mean, by_std = (set(np.argsort(-f(0))[:9]) for f in (counts.mean, counts.std))
    assert set(chosen) == {GENES[i] for i in by_mean & by_std}
    assert 0 < len(chosen) < 9


def test_stem_genes_are_chosen_among_those_that_all_slides_measured(tmp_path):
    """A gene of one slide alone, however high, changes neither totals nor ranks of the others."""
    slides = {name: ("IDC", name, 60) for name in ("A1", "B1")}
    genes = {"A1": GENES[:22], "B1": GENES[2:]}
    folder = write_cohort(tmp_path, slides, dim=8, genes=genes)
    path = folder / "expression" / "A1.h5ad"
    slide = anndata.read_h5ad(path)
    counts = slide.X.toarray()
    counts[::2, :2] += 3000  # the two genes that B1 lacks
    slide.X = type(slide.X)(counts)
    slide.write_h5ad(path)
    cohort, common = Cohort(folder, "tiny"), GENES[2:22]
    union = []
    for name in slides:
        data = anndata.AnnData(cohort.load(name, common).counts.toarray())
        data.var_names = common
        scanpy.pp.normalize_total(data)
        scanpy.pp.log1p(data)
        scanpy.pp.highly_variable_genes(data, n_top_genes=6)
        union += [g for g in data.var_names[data.var.highly_variable] if g not in union]
    counts = np.concatenate([cohort.load(name, union).counts.toarray() for name in slides])
    by_mean, by_std = (set(np.argsort(-f(0))[:7]) for f in (counts.mean, counts.std))
    expected = {union[i] for i in by_mean & by_std}
    assert set(stem_genes(cohort, list(slides), num_hvgs=6, top=7)) == expected


def test_the_report_and_the_tables_hold_every_choice(runs, tmp_path):
    (tmp_path / "genes.json").write_text('{"genes": ["GENE3", "GENE4", "GENE5"]}')
    assert read_gene_list(tmp_path / "genes.json") == ["GENE3", "GENE4", "GENE5"]
    folder = runs["log1p"].folder
    options = {"pictures": False, "predictions": False, "published": "IDC"}
    options |= {"hvg_file": str(tmp_path / "genes.json"), "protocol": "hest-bench"}
    run_eval.main(run_eval.Options(run=[str(folder)], **options))
    table = pd.read_csv(folder / "eval" / "protocol.csv")
    assert set(table["gene_rule"]) == {"a list of 3 genes"}
    for column in ("pooling", "nan", "averaging", "target", "regressor", "protocol_regressor"):
        assert table[column].notna().all()
    summary = pd.read_csv(folder / "eval" / "summary.csv")
    assert set(summary["average"]) == {"mean", "macro"}
    assert set(summary["protocol"]) == {"histokit"}
    assert (summary["target"] == "log1p").all()
    assert set(summary["averaging"]) == {
        "mean over genes, then over the slides of a patient, then over patients"
    }
    html = (folder / "eval" / "report.html").read_text()
    assert "Under the protocol hest-bench" in html
    assert "Genes were chosen with the test slides" in html
    assert "other test slides (A1, A2, B1, ...)" in html
    whole = table[table["group"] == "all"].set_index("figure")["value"]
    cells = [f"<td>{whole[name]:.4f}</td>" for name in ("mse", "target_variance")]
    shown = dict(
        re.findall(r"<td[^>]*>(MSE|target variance)</td>\s*<td[^>]*>all</td>\s*(<td>.*)", html)
    )
    assert shown == dict(zip(("MSE", "target variance"), cells, strict=True))
    assert f"have a variance of {whole['target_variance']:.4f}" in html
    assert "pcc-" not in html.split("What the numbers mean")[0]


def test_every_figure_has_a_name_for_people(runs, cohort):
    figures = set(read_published()["metric"])
    for name, protocol in PROTOCOLS.items():
        if name != "histokit":
            run = runs[protocol.target]
            figures |= set(score_protocol(run, cohort, protocol, GENES)["figure"])
    names = {figure: figure_name(figure) for figure in figures}
    assert not any(name == figure or "_" in name for figure, name in names.items())
    assert len(set(names.values())) == len(names)
    assert names["pcc-top50-macro"] == "PCC of the top genes, mean of cancers (macro)"


def test_published_figures_are_whole_and_marked(runs):
    table = read_published()
    for protocol in set(table["protocol"]) - set(PROTOCOLS):
        assert " " in protocol  # in words: nothing here is scored so
        assert (table.loc[table["protocol"] == protocol, "note"] != "").all()
    assert table["value"].between(0, 5).all()
    assert not table.duplicated(["task", "model", "encoder", "metric", "source"]).any()
    for encoder, rows in table[table["source"] == "HEST README 2024-08-30"].groupby("encoder"):
        average = rows.set_index("task")["value"]
        assert average.drop("average").mean() == pytest.approx(average["average"], abs=2e-3), (
            encoder
        )
    with pytest.raises(InputError, match="no published figure of the task 'HEART'"):
        read_published("HEART")
    figures = pd.DataFrame({"figure": ["pcc"], "group": ["all"], "value": [0.5]})
    rows = beside_published(runs["log1p"], "IDC", "hest-bench", figures, listed=True)
    assert not rows["comparable"].any()
    assert rows["reason"].str.contains("other test slides|are not among the run's").all()
    assert rows.loc[rows["metric"] == "pcc", "run"].eq(0.5).all()


def test_a_run_on_the_same_slides_folds_and_genes_is_comparable(tmp_path, data):
    class Fold:
        def __init__(self, test):
            self.split = pd.DataFrame({"slide_id": [test], "split": ["test"], "cancer": ["X"]})

    class SameSlides:
        folds = tuple(Fold(name) for name in sorted(TASKS["SKCM"][0]))

    figures = pd.DataFrame({"figure": ["pcc"], "group": ["all"], "value": [0.5]})
    rows = beside_published(SameSlides(), "SKCM", "hest-bench", figures, listed=True)
    hest = rows["source"] == "HEST README 2024-08-30"
    assert rows.loc[hest, "comparable"].all()
    assert not rows.loc[rows["protocol"] == "histoprism", "comparable"].any()
    rows = beside_published(SameSlides(), "SKCM", "hest-bench", figures, listed=False)
    assert rows["reason"].str.contains("genes chosen anew").all()


@pytest.mark.real
@pytest.mark.parametrize("task", ["IDC", "LUNG", "PRAD", "SKCM"])
def test_tasks_are_those_of_the_published_folds(shared, task):
    folds = read_splits(shared / "hest" / "bench" / task)
    slides = {slide for _, roles in folds for slide in roles["test"]}
    assert TASKS[task] == (slides, len(folds))
    assert len(read_gene_list(shared / "hest" / "bench" / task / "var_50genes.json")) == 50


@pytest.mark.real
def test_histoprism_slides_are_those_of_the_published_splits(shared):
    parts = [
        pd.read_csv(shared / "hest" / f"histoprism_split_{k}" / "test_split.csv") for k in (0, 1)
    ]
    found = pd.concat(parts).groupby("oncotree_code")["sample_id"].agg(frozenset)
    assert found.to_dict() == HISTOPRISM


def test_a_cancer_of_histoprism_is_comparable_on_its_slides_alone():
    class Fold:
        def __init__(self, test):
            self.split = pd.DataFrame({"slide_id": [test], "split": "test", "cancer": "SKCM"})

    class Splits:
        folds = tuple(Fold(name) for name in sorted(HISTOPRISM["SKCM"]))

    figures = pd.DataFrame(
        [("pcc-top50-macro", "all", 0.1), ("pcc-top50-cancer", "SKCM", 0.4)],
        columns=["figure", "group", "value"],
    )
    rows = beside_published(Splits(), "SKCM", "histoprism", figures, listed=True)
    own = rows[rows["metric"] == "pcc-top50-cancer"]
    assert (own["run"].tolist(), own["reason"].tolist()) == ([0.4], ["unverified"])
    rows = beside_published(Splits(), "average", "histoprism", figures, listed=True)
    macro = rows[rows["metric"] == "pcc-top50-macro"].iloc[0]
    assert macro["run"] == 0.1
    assert "of its 51 test slides are not among the run's" in macro["reason"]
