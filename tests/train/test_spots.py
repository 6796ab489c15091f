import dataclasses

import numpy as np
import pytest
import torch
from cohorts import write_cohort

from histokit.data.cohort import Cohort
from histokit.data.genes import detected, normalize
from histokit.train.spots import TrainingMoments


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    cohort = Cohort(write_cohort(tmp_path_factory.mktemp("cohort")), "tiny")
    found = [cohort.load(s) for s in cohort.slides.index]
    measured = np.ones(found[0].counts.shape[1], bool)
    measured[3] = False
    empty = found[0].counts.tolil()
    empty[:, 3] = 0
    found[0] = dataclasses.replace(found[0], counts=empty.tocsr(), measured=measured)
    return found


def survey(slides, target="log1p"):
    found = TrainingMoments(slides[0].counts.shape[1], target)
    for slide in slides:
        found.add(slide)
    return found


@pytest.mark.parametrize("target", ["log1p", "counts10k-log1p"])
def test_it_equals_all_spots_stacked(slides, target):
    found = survey(slides, target)
    y = [normalize(s.counts, s.library_size, target).toarray().astype(float) for s in slides]
    seen = np.concatenate([np.tile(s.measured, (len(s.barcodes), 1)) for s in slides])
    y = np.ma.masked_array(np.concatenate(y), ~seen)
    for ours, theirs in zip(found.moments(), (y.mean(0), y.var(0)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    scaled = [normalize(s.counts, s.library_size, "counts10k-log1p").toarray() for s in slides]
    np.testing.assert_allclose(found.variability(), np.concatenate(scaled).var(0), rtol=1e-5)
    x = torch.cat([s.features for s in slides])
    mean, deviation = found.feature_moments()
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(deviation, x.std(0, correction=0))
    assert np.array_equal(found.detected, np.all([detected(s.counts) for s in slides], axis=0))


def test_two_halves_merge_to_the_whole(slides):
    whole, half = survey(slides), survey(slides[:2])
    half.merge(survey(slides[2:]))
    half.merge(TrainingMoments(slides[0].counts.shape[1], "log1p"))  # a rank that had no slide
    for name in ("moments", "feature_moments"):
        for a, b in zip(getattr(whole, name)(), getattr(half, name)(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(whole.variability(), half.variability())
    assert np.array_equal(whole.detected, half.detected)
