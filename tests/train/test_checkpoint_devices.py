"""Checkpoints hold the generator of the model's device, and are read wherever they were written."""

import types

import torch

from histokit.core.distributed import ALONE
from histokit.train.checkpoints import Parts, Progress, restore, save


class OnCuda(torch.nn.Linear):
    """A layer that says it lies on a GPU, which no machine of the tests has."""

    def parameters(self, recurse=True):
        return iter([types.SimpleNamespace(device=torch.device("cuda", 0))])


def parts(cls):
    layer = cls(3, 2)
    return Parts(layer, torch.optim.AdamW([layer.weight, layer.bias], lr=0.1))


def begun():
    return Progress({"steps": 0, "loss": 0.0, "weight": 0.0, "lr": 0.1})


def test_the_generator_of_the_gpu_is_kept(tmp_path, monkeypatch):
    state, found = torch.arange(16, dtype=torch.uint8), {}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, device: found.update({device: s}))
    path = tmp_path / "last.ckpt"
    save(path, parts(OnCuda), begun(), ALONE, "stop")
    restore(path, parts(OnCuda), begun(), ALONE)
    assert torch.equal(found[torch.device("cuda", 0)], state)
    restore(path, parts(torch.nn.Linear), begun(), ALONE)  # goes on without a GPU
    save(path, parts(torch.nn.Linear), begun(), ALONE, "stop")
    found.clear()
    restore(path, parts(OnCuda), begun(), ALONE)  # was begun without one
    assert not found


def test_checkpoints_are_read_into_the_memory_of_the_machine(tmp_path, monkeypatch):
    """Tensors of a GPU that this machine lacks could not be read, and would fill one it has."""
    path, places, load = tmp_path / "last.ckpt", [], torch.load
    save(path, parts(torch.nn.Linear), begun(), ALONE, "stop")

    def spy(file, map_location=None, **more):
        places.append(map_location)
        return load(file, map_location=map_location, **more)

    monkeypatch.setattr(torch, "load", spy)
    restore(path, parts(torch.nn.Linear), begun(), ALONE)
    assert places == ["cpu"]
