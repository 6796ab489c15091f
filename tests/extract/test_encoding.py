"""Batches that do not fit the memory, features that no tissue has, what is read ahead."""

import threading

import numpy as np
import pytest
import torch

from histokit.core.errors import InputError
from histokit.extract.base import Encoder
from histokit.extract.encoding import Encoding, duration
from histokit.extract.patches import read_ahead


class Small(Encoder):
    """Fits a number of patches; its features are the mean and the corner of a patch."""

    name, dim, size = "small", 2, 4

    def __init__(self, most=3, error=None):
        self.most, self.calls = most, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def encode(self, patches):
        self.calls.append(len(patches))
        if len(patches) > self.most:
            raise self.error
        return np.stack([patches.mean((1, 2, 3)), patches[:, 0, 0, 0]], 1).astype(np.float32)


def patches(count):
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_fewer_at_a_time_where_memory_runs_out(error, capsys):
    encoding, given = Encoding(Small(3, error)), patches(16)
    np.testing.assert_array_equal(encoding.encode(given), Small(16).encode(given))
    assert encoding.encoder.calls == [16, 8, 4, 2, *[2] * 7]
    assert "2 patches at a time from here on" in capsys.readouterr().out
    encoding.encode(given[:5])
    assert encoding.encoder.calls[-3:] == [2, 2, 1]  # it is remembered


def test_not_even_one_fits():
    with pytest.raises(InputError, match="small does not fit the memory with a single patch; use"):
        Encoding(Small(0)).encode(patches(2))


def test_other_errors_are_not_hidden():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Encoding(Small(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))).encode(
            patches(2)
        )


def test_batch_sizes():
    assert Encoding(Small()).batch_size == 16
    assert Encoding(Small(), device="cuda:1").batch_size == 256
    assert Encoding(Small(), "5", "cuda").batch_size == 5


def test_features_that_no_tissue_has():
    encoding = Encoding(Small(99))
    good = encoding.encode(patches(40))
    assert encoding.faults(good, 1) == []
    assert encoding.faults(good[:1], 1) == []
    two_scales = np.concatenate([good, good], 1)
    assert encoding.faults(two_scales, 2) == []
    same = np.repeat(good[:1], 40, 0)
    assert encoding.faults(same, 1) == ["small gave the same features for all patches"]
    assert encoding.faults(same + good * 1e-6, 1)  # collapsed, not equal
    glass = np.full_like(good, 255)
    glass[:3] = good[:3]
    assert "empty glass for 92% of the patches" in encoding.faults(glass, 1)[0]
    glass[:8] = good[:8]
    assert encoding.faults(glass, 1) == []


def test_scales_lie_side_by_side_and_time_is_kept():
    given = np.stack([patches(3), patches(3)[::-1]])
    encoding = Encoding(Small(9))
    ((batch, features),) = encoding.scales(iter([given]))
    assert batch is given
    expected = [Small(9).encode(part) for part in given]
    np.testing.assert_array_equal(features, np.concatenate(expected, 1))
    assert encoding.worked > 0
    assert encoding.waited > 0


def test_reading_ahead_keeps_order_and_errors():
    assert list(read_ahead(iter(range(100)))) == list(range(100))

    def broken():
        yield 1
        raise InputError("the file ends")

    found = []
    with pytest.raises(InputError, match="the file ends"):
        found.extend(read_ahead(broken()))
    assert found == [1]


def test_a_reader_ends_with_its_caller():
    before = threading.active_count()
    batches = read_ahead(iter(range(1000)))
    assert next(batches) == 0
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(("seconds", "said"), [(40, "40 s"), (200, "3 min"), (9000, "2.5 h")])
def test_duration(seconds, said):
    assert duration(seconds) == said
