"""An evaluation reads each thing as seldom as it can, counted on a run with every topic."""

import collections

import pytest
from cohorts import GENES, write_cohort

import run_eval
import run_train
from histokit import ops
from histokit.data import cohort as cohort_module
from histokit.evaluate.runs import Run
from histokit.evaluate.topics import pathways
from histokit.models import files as model_files
from histokit.ops import dispatch


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one-pass")
    data = write_cohort(folder / "data")
    run_train.main(
        run_train.Options(
            data=str(data), run=str(folder / "run"), encoder="tiny", model="bpbooster",
            target="log1p", preset="small", epochs=1, num_prototypes=4, latent_dim=8, num_hvgs=10,
            folds="leave-one-patient-out", controls=True,
        )
    )  # fmt: skip
    (folder / "sets.gmt").write_text("A\tna\t" + "\t".join(GENES[:12]) + "\n")
    (folder / "sig.txt").write_text("\n".join(GENES[3:8]))
    return folder


def test_slides_and_models_are_read_as_seldom_as_can_be(run, monkeypatch):
    reads, models, sets = collections.Counter(), collections.Counter(), collections.Counter()

    def counted(module, name, counter, key):
        original = getattr(module, name)

        def wrapped(first, *rest, **named):
            counter[key(first, *rest)] += 1
            return original(first, *rest, **named)

        monkeypatch.setattr(module, name, wrapped)

    counted(cohort_module, "_read_features", reads, lambda path: ("features", path.stem))
    counted(cohort_module, "read_matrix", reads, lambda _, shape, path: ("counts", path.stem))
    counted(model_files, "load", models, lambda folder: folder)
    counted(pathways, "load_gene_sets", sets, lambda source: source)
    run_eval.main(
        run_eval.Options(
            run=[str(run / "run")], gene_sets=[str(run / "sets.gmt")], curate=False, clusters=True,
            signature=[str(run / "sig.txt")], protocol="histoprism", max_pictures=1,
            predictions=False,
        )
    )  # fmt: skip
    trained = [Run(run / "run"), *map(Run, (run / "run" / "controls").iterdir())]
    tested = {s for f in trained[0].folds for s in f.split.query("split == 'test'")["slide_id"]}
    assert tested
    assert max(count for (_, slide), count in reads.items() if slide in tested) <= 5
    folds = sum(len(one.folds) for one in trained)
    assert folds == 4 + 4 + 4 * 5
    assert len(models) == folds
    assert set(models.values()) == {1}
    assert list(sets.values()) == [1]


def test_what_is_not_wanted_of_a_slide_is_not_read(run, monkeypatch):
    cohort = cohort_module.Cohort(run / "data", "tiny")
    whole = cohort.load("A1")
    monkeypatch.setattr(cohort_module, "read_matrix", None)
    slide = cohort.load("A1", counts=False)
    assert (slide.features == whole.features).all()
    assert slide.counts.shape == (len(whole.barcodes), 0)
    monkeypatch.undo()
    monkeypatch.setattr(cohort_module, "_read_features", None)
    slide = cohort.load("A1", GENES[:3], features=False)
    rows = [slide.barcodes.index(barcode) for barcode in whole.barcodes]
    assert (slide.counts[rows] != whole.counts[:, :3]).nnz == 0
    assert slide.features.shape == (len(whole.barcodes), 0)


def test_a_training_leaves_the_backend_of_ops_as_it_was(run):
    with ops.use("kernels") if dispatch.HAS_KERNELS else ops.use("auto"):
        before = dispatch._backend.get()
        run_train.main(
            run_train.Options(
                data=str(run / "data"), run=str(run / "other"), encoder="tiny", model="mean",
                kernels="reference",
            )
        )  # fmt: skip
        assert dispatch._backend.get() == before
