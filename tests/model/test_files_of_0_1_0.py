"""Files that 0.1.0 wrote load, and the training goes on with the bits that 0.1.0 went on with.

``data/training-0.1.0.pt``: model, sparse model and optimizer after 13 steps, and what 12 more made of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dstee
from dstee.export import from_export
from dstee.testing import Configuration, assert_same_bits

DATA = Path(__file__).parent / "data"


def fresh() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5))


@pytest.fixture
def saved() -> dict[str, Any]:
    return torch.load(DATA / "training-0.1.0.pt", weights_only=True)


def test_a_training_goes_on(backend: Configuration, saved: dict[str, Any]) -> None:
    model = fresh()
    model.load_state_dict(saved["model"])
    sparse = dstee.sparsify(model, 0.8)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    sparse.load_state_dict(saved["sparse"])
    assert (sparse.t, sparse.round, sparse.method) == (13, 4, dstee.DSTEE(c=1e-2))
    for _ in range(12):
        for p in model.parameters():  # integers and a division: the same floats on every machine
            numbers = (torch.arange(p.numel()) * 7919 + sparse.t * 104729) % 1009
            p.grad = numbers.float().view(p.shape) / 1009 - 0.5
        sparse.step(optimizer)
    for name, weight in saved["after"]["weights"].items():
        assert_same_bits(sparse.layers[name].param, weight, name)
    assert sparse.state_dict(full=True)["digest"] == saved["after"]["sparse"]["digest"]


def test_an_export_comes_back(saved: dict[str, Any]) -> None:
    pytest.importorskip("safetensors")
    with pytest.warns(UserWarning, match=r"export-0\.1\.0\.safetensors .*carries digests of its masks only"):
        sparse = from_export(fresh(), DATA / "export-0.1.0.safetensors")
    for name, values in saved["model"].items():
        assert_same_bits(sparse.model.state_dict()[name], values, name)
    assert sparse.state_dict(full=True)["layers"].keys() == saved["sparse"]["layers"].keys()
    for name, layer in saved["sparse"]["layers"].items():
        assert_same_bits(sparse.state_dict(full=True)["layers"][name]["mask"], layer["mask"], name)
