"""Presets: the schedules that they make, where their numbers come from, names that do not exist."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import dstee
from dstee.methods import DSTEE, MEST, PRESETS, SET, GraNet, Preset, RigL

OURS = {  # what the sources do not say
    "dst-ee-paper": {"c", "drop"},
    "dst-ee-paper-imagenet": {"c", "drop", "every"},
    "mest-imagenet": {"every", "stop", "halve_at", "exchange", "soft", "distribution"},
}


@pytest.mark.parametrize("one", PRESETS.values(), ids=PRESETS)
def test_every_number_says_where_it_comes_from(one: Preset) -> None:
    default = type(one.method)()
    settings = {f.name for f in dataclasses.fields(default) if getattr(default, f.name) != getattr(one.method, f.name)}
    settings -= {"c_rel"}  # c stands for it
    assert settings | {"every", "stop", "drop", "distribution", "training"} <= one.provenance.keys()
    assert {key for key, source in one.provenance.items() if source.startswith("ours")} == OURS.get(one.name, set())
    assert PRESETS[one.name] is dstee.preset(one.name) is one
    known = {*settings, "every", "stop", "drop", "distribution", "training", "order", "exchange", "halve_at", "soft"}
    assert one.provenance.keys() <= known, "nothing is explained that is not there"


@pytest.mark.parametrize("one", PRESETS.values(), ids=PRESETS)
def test_a_model_becomes_sparse_by_it(one: Preset) -> None:
    torch.manual_seed(0)
    sparse = dstee.sparsify(nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 5)), 0.5, **one.arguments(62_500, 390))
    assert sparse.method == one.method and sparse.nnz == 125


SCHEDULES = [  # name, steps, steps per epoch: every, stop, initial share, the share at the last update
    ("dst-ee-paper", 62_400, None, 1000, 62_400, 0.5, 0.005),
    ("itop-cifar", 97_500, None, 4000, 97_500, 0.5, 0.005),
    ("set-itop-cifar", 97_500, None, 1500, 97_500, 0.5, 0.005),
    ("rigl-imagenet", 32_000, None, 100, 25_001, 0.3, 0.0),
    ("rigl-cifar", 97_656, None, 100, 75_001, 0.3, 0.0),
    ("snfs-cifar", 45_000, 450, 450, 45_000, 0.5, 0.005),
    ("granet-cifar", 62_400, None, 1000, 62_400, 0.5, 0.005),
    ("mest-cifar", 160 * 781, 781, 5 * 781, 120 * 781 + 1, 0.0, 0.0),
]


@pytest.mark.parametrize(("name", "steps", "epoch", "every", "stop", "first", "last"), SCHEDULES)
def test_schedules(name: str, steps: int, epoch: int | None, every: int, stop: int, first: float, last: float) -> None:
    schedule = dstee.preset(name).schedule(steps, epoch)
    assert (schedule.every, schedule.stop) == (every, stop)
    assert schedule.fraction(0) == first and schedule.fraction(stop) == pytest.approx(last, abs=1e-12)


def test_mest_ends_its_exchange_at_epoch_120() -> None:
    schedule = dstee.preset("mest-em-cifar").schedule(160 * 10, 10)
    due = [t // 10 for t in range(1601) if schedule.is_due(t)]
    assert due == list(range(5, 121, 5)) and schedule.last_update == 1200


def test_methods() -> None:
    assert dstee.preset("itop-imagenet").method == dstee.preset("itop-cifar").method == RigL(order="after")
    assert dstee.preset("set-itop-cifar").method == SET() and dstee.preset("rigl-cifar").method == RigL()
    assert dstee.preset("dst-ee-paper").method == DSTEE.paper()
    assert dstee.preset("granet-cifar").method == GraNet(start_density=0.5, end=0.5)
    assert dstee.preset("mest-cifar").method == MEST(soft=True, exchange=0.5)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'itop-cifer' \(did you mean 'itop-cifar'\?\)"):
        dstee.preset("itop-cifer")
    with pytest.raises(ValueError, match="unknown preset 'zzz', expected one of dst-ee-paper, "):
        dstee.preset("zzz")
    with pytest.raises(ValueError, match="mest-cifar updates every 5 epochs: pass steps_per_epoch"):
        dstee.preset("mest-cifar").schedule(1000)
    with pytest.raises(ValueError, match="itop-cifar updates every 4000 steps, and of 4000 steps the first 3999 may"):
        dstee.preset("itop-cifar").schedule(4000)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dstee.preset("itop-cifar").every = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        PRESETS["mine"] = dstee.preset("itop-cifar")  # type: ignore[index]
