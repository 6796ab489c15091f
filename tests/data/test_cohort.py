import h5py
import numpy as np
import pandas as pd
import pytest
from cohorts import GENES, write_cohort

from histokit.core.errors import InputError
from histokit.data.cohort import Cohort


@pytest.fixture
def folder(tmp_path):
    return write_cohort(tmp_path / "data", {"A1": ("IDC", "A", 12), "B1": ("IDC", "B", 9)})


def test_rows_are_joined_by_barcode(folder):
    import anndata

    slide = Cohort(folder, "tiny").load("A1")
    data = anndata.read_h5ad(folder / "expression/A1.h5ad")
    assert slide.barcodes != list(data.obs_names)  # the feature file is in another order
    expected = data[slide.barcodes]
    assert (slide.counts != expected.X).nnz == 0
    np.testing.assert_array_equal(slide.centers, expected.obsm["spatial"])
    np.testing.assert_array_equal(slide.library_size, np.asarray(expected.X.sum(axis=1)).ravel())
    assert slide.measured.all()
    assert slide.features.shape == (12, 16)


def test_genes_by_name_with_unmeasured_ones(folder):
    cohort = Cohort(folder, "tiny")
    everything = cohort.load("A1")
    some = cohort.load("A1", ["GENE7", "ABSENT", "GENE2"])
    assert list(some.measured) == [True, False, True]
    dense = some.counts.toarray()
    np.testing.assert_array_equal(dense[:, 0], everything.counts.toarray()[:, 7])
    np.testing.assert_array_equal(dense[:, 2], everything.counts.toarray()[:, 2])
    assert not dense[:, 1].any()
    np.testing.assert_array_equal(some.library_size, everything.library_size)


def test_genes_by_ensembl_id(folder):
    with h5py.File(folder / "expression/A1.h5ad", "a") as file:
        del file["var/gene_id"]
        ids = [f"ENSG{i:011d}" for i in range(len(GENES))]
        file["var/gene_id"] = ids
        file["var/gene_id"].attrs.update({"encoding-type": "string-array"})
        file["var/gene_id"].attrs.update({"encoding-version": "0.2.0"})
    cohort = Cohort(folder, "tiny")
    slide = cohort.load("A1", ["ENSG00000000003", "GENE1"])
    assert slide.measured.all()
    expected = cohort.load("A1").counts.toarray()[:, [3, 1]]
    np.testing.assert_array_equal(slide.counts.toarray(), expected)


def test_damage_is_named(folder):
    cohort = Cohort(folder, "tiny")
    feature = folder / "features/tiny/A1.h5"
    whole = feature.read_bytes()
    feature.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"A1\.h5 is not a whole feature file"):
        cohort.load("A1")
    feature.write_bytes(whole)
    with h5py.File(feature, "a") as file:
        file["features"][3, 2] = np.nan
    with pytest.raises(InputError, match="not finite"):
        cohort.load("A1")
    (folder / "expression/B1.h5ad").unlink()
    with pytest.raises(InputError, match=r"B1\.h5ad does not exist"):
        cohort.load("B1")
    with pytest.raises(InputError, match="Z9 is not in"):
        cohort.load("Z9")


def test_foreign_barcode_is_refused(folder):
    with h5py.File(folder / "features/tiny/A1.h5", "a") as file:
        file["barcodes"][0] = "stranger"
    with pytest.raises(InputError, match=r"stranger of .* has no expression"):
        Cohort(folder, "tiny").load("A1")


def test_folder_errors(folder, tmp_path):
    with pytest.raises(InputError, match=r"holds no slides\.csv"):
        Cohort(tmp_path, "tiny")
    with pytest.raises(InputError, match=r"no features of uni \(there: tiny\)"):
        Cohort(folder, "uni")
    table = pd.read_csv(folder / "slides.csv")
    table.drop(columns="patient").to_csv(folder / "slides.csv", index=False)
    with pytest.raises(InputError, match="has no column 'patient'"):
        Cohort(folder, "tiny")


def test_what_was_not_measured_can_count_as_measured_zero(tmp_path):
    cohort = Cohort(write_cohort(tmp_path, genes={"C1": GENES[:-1]}), "tiny")
    skipped, filled = cohort.load("C1", GENES), cohort.zero_filled().load("C1", GENES)
    assert skipped.measured.tolist() == [True] * 29 + [False]
    assert filled.measured.all()
    assert (skipped.counts != filled.counts).nnz == 0
    assert filled.counts[:, -1].nnz == 0
    np.testing.assert_array_equal(skipped.library_size, filled.library_size)
    assert not cohort.fills
