import hashlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histokit.data.counts import read_counts
from histokit.data.join import join_spots
from histokit.data.layouts import read_source
from histokit.data.synthetic import PATIENTS, make_cohort
from histokit.data.synthetic_genes import MARKERS, PROGRAMS
from histokit.extract.encoders import make_encoder
from histokit.extract.patches import image_batches

SIZE = 1400


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"), seed=3, size=SIZE, num_genes=250)


def joined(slide):
    return join_spots(slide, SIZE, SIZE)[0]


def test_cohort_follows_the_contract(cohort):
    table = pd.read_csv(cohort)
    assert table.groupby("cancer")["patient"].nunique().to_dict() == PATIENTS
    slides = read_source(cohort.parent)
    assert len(slides) == 8
    for slide in slides:
        spots, row = join_spots(slide, SIZE, SIZE)
        assert row["joined"] > 20
        assert row["without_counts"] > 0
        assert row["counts_without_spot"] > 0
        assert slide.mpp == 0.5
        assert spots.n_vars == (210 if slide.slide_id == "SKCM-2" else 250)
    assert join_spots(slides[0], SIZE, SIZE)[1]["control_probes"] == 2


def test_the_seed_decides_every_byte(tmp_path):
    def digest(folder, seed):
        make_cohort(folder, seed=seed, size=500, num_genes=200)
        sums = {}
        for path in sorted(folder.rglob("*.*")):
            if path.suffix == ".h5ad":
                content = read_counts(path, "s").X.toarray().tobytes()
            else:
                content = path.read_bytes()
            sums[path.relative_to(folder)] = hashlib.sha256(content).hexdigest()
        return sums

    first = digest(tmp_path / "a", 0)
    assert first == digest(tmp_path / "b", 0)
    other = digest(tmp_path / "c", 1)
    assert all(first[path] != other[path] for path in first if path.name != "cohort.csv")


def test_the_picture_looks_stained(cohort):
    pixels = np.asarray(Image.open(cohort.parent / "images" / "IDC-1.jpg")).reshape(-1, 3)
    glass = (pixels.min(axis=1) > 225).mean()
    assert 0.05 < glass < 0.6
    red, green, blue = pixels[pixels.min(axis=1) < 200].mean(axis=0)
    assert red > green
    assert blue > green


def test_library_size_does_not_follow_the_picture_but_programs_do(cohort):
    """Stain statistics explain the planted programs on another slide, and less of library size."""
    encoder, slides = make_encoder("hed"), read_source(cohort.parent)[:6]
    features, targets = [], []
    for slide in slides:
        spots = joined(slide)
        batches = image_batches(slide.image, spots.obsm["spatial"], [224], 224, 64)
        matrix = np.concatenate([encoder.encode(batch[0]) for batch in batches])
        features.append((matrix - matrix.mean(0)) / (matrix.std(0) + 1e-6))
        total = np.asarray(spots.X.sum(axis=1)).ravel()
        scaled = spots.X.toarray() / total[:, None] * 1e4
        columns = [np.log1p(scaled[:, spots.var_names.isin(g)]).mean(1) for g in PROGRAMS.values()]
        columns = np.stack([*columns, np.log(total)], axis=1)
        targets.append((columns - columns.mean(0)) / columns.std(0))
    scores = []
    for held_out in range(len(slides)):
        x = np.concatenate(features[:held_out] + features[held_out + 1 :])
        y = np.concatenate(targets[:held_out] + targets[held_out + 1 :])
        weight = np.linalg.solve(x.T @ x + 50 * np.eye(x.shape[1]), x.T @ y)
        predicted = features[held_out] @ weight
        scores.append(
            [np.corrcoef(predicted[:, i], targets[held_out][:, i])[0, 1] for i in range(y.shape[1])]
        )
    *programs, library = np.mean(scores, axis=0)
    assert min(programs) > 0.35, programs
    assert library < min(programs)


def test_markers_tell_cancers_apart(cohort):
    levels = {}
    for slide in read_source(cohort.parent):
        spots = joined(slide)
        for cancer, genes in MARKERS.items():
            mean = spots[:, spots.var_names.isin(genes)].X.mean()
            levels.setdefault((cancer, slide.cancer == cancer), []).append(mean)
    for cancer in MARKERS:
        assert min(levels[cancer, True]) > 3 * max(levels[cancer, False])
