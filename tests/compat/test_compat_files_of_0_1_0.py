"""States that 0.1.0's objects wrote load, and the training goes on with the bits that 0.1.0 went on with.

``data/trainings-0.1.0.pt``, by library: the states of model, optimizer and masking object after 13 steps, and what 12 more made
of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dstee
from dstee.compat import checkpoints
from dstee.compat.rigl_torch import RigLScheduler
from dstee.compat.sparselearning import CosineDecay, LinearDecay, Masking
from dstee.compat.torch_ao import DSTEESparsifier

DATA = Path(__file__).parent / "data" / "trainings-0.1.0.pt"


class Training:
    """A model of two layers, its optimizer and an object of a library, which makes or allows the optimizer's steps."""

    def __init__(self, library: str, state: Any = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(12, 20, bias=False), nn.ReLU(), nn.Linear(20, 5, bias=False))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.125, momentum=0.5)  # products with both are exact
        self.step: Callable[[], object] = self.optimizer.step
        self.object = getattr(self, library)(state)

    def masking(self, state: Any) -> Masking:
        args = argparse.Namespace(fix=False, update_frequency=3)
        masking = Masking(
            self.optimizer, 0.4, 1.0, CosineDecay(0.4, 40), "magnitude", "dst_ee", "none", args=args, c=1e-2, seed=1
        )
        masking.add_module(self.model, density=0.3)
        self.step = masking.step
        return masking

    def masking_at_random(self, state: Any) -> Masking:
        args = argparse.Namespace(fix=False, update_frequency=3)
        decay = LinearDecay(0.4, 0.9, 4)
        masking = Masking(self.optimizer, 0.4, 1.0, decay, "SET", "random_unfired", "none", args=args, seed=1)
        masking.add_module(self.model, density=0.3)
        self.step = masking.step
        return masking

    def scheduler(self, state: Any, **options: Any) -> RigLScheduler:
        scheduler = RigLScheduler(
            self.model, self.optimizer, 0.3, 40, delta=3, ignore_linear_layers=False, grad_accumulation_n=2, state_dict=state,
            **options,
        )  # fmt: skip
        self.step = lambda: scheduler() and self.optimizer.step()
        return scheduler

    def scheduler_dst_ee(self, state: Any) -> RigLScheduler:
        return self.scheduler(state, method="dst_ee", sparsity_distribution="erk", c=1e-2)

    def sparsifier(self, state: Any) -> DSTEESparsifier:
        schedule = dstee.UpdateSchedule(every=3, stop=40, drop=dstee.CosineDrop(0.4))
        method = dstee.DSTEE(c=1e-2, reset_regrown=True)
        sparsifier = DSTEESparsifier(0.7, method, schedule, seed=1, optimizer=self.optimizer)
        sparsifier.prepare(self.model, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}])

        def step() -> None:
            self.optimizer.step()
            sparsifier.step()

        self.step = step
        return sparsifier

    def go(self, first: int, last: int) -> None:
        for t in range(first, last):
            self.optimizer.zero_grad()
            for layer in (self.model[0], self.model[2]):
                assert isinstance(layer.weight, Tensor)
                numbers = (torch.arange(layer.weight.numel()) * 7919 + t * 104729) % 1009  # on every machine the same floats
                gradient = numbers.float().view(layer.weight.shape) / 1009 - 0.5
                (layer.weight * gradient).sum().backward()
            self.step()

    def states(self) -> dict[str, Any]:
        found = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "object": self.object.state_dict()}
        return {name: copied(state) for name, state in found.items()}


LIBRARIES = ("masking", "masking_at_random", "scheduler", "scheduler_dst_ee", "sparsifier")


def copied(state: Any) -> Any:
    """A state apart from the objects that it is of."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: copied(value) for key, value in state.items()}
    return type(state)(map(copied, state)) if isinstance(state, (list, tuple)) else state


def assert_same(a: Any, b: Any, where: str) -> None:
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert a.dtype is b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def write() -> None:
    """Makes the file; run by 0.1.0."""
    trainings = {}
    for library in LIBRARIES:
        training = Training(library)
        training.go(0, 13)
        trainings[library] = training.states()
        training.go(13, 25)
        trainings[library]["after"] = training.states()
    torch.save(trainings, DATA)


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    return torch.load(DATA, weights_only=True)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_training_goes_on(library: str, saved: dict[str, Any]) -> None:
    states = saved[library]
    training = Training(library, copied(states["object"]))
    training.model.load_state_dict(states["model"])
    training.optimizer.load_state_dict(states["optimizer"])
    if not isinstance(training.object, RigLScheduler):  # which takes its state in the constructor
        training.object.load_state_dict(states["object"])
    assert_same(training.states(), {key: states[key] for key in ("model", "optimizer", "object")}, "loaded")
    training.go(13, 25)
    assert_same(training.states(), states["after"], "after")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_sparse_model_takes_the_masks(library: str, saved: dict[str, Any]) -> None:
    states = saved[library]
    state = states["object"]["masks"] if library.startswith("masking") else states["object"]
    sparse = checkpoints.load(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5)), state)
    if library == "sparsifier":
        assert (sparse.t, sparse.round, sparse.method) == (13, 4, dstee.DSTEE(c=1e-2, reset_regrown=True))
        masks = {name: entry["mask"] for name, entry in state["state"].items()}
    elif library.startswith("masking"):
        masks = state
    else:
        assert (sparse.t, sparse.round, sparse.method) == (13, 4, dstee.RigL())
        masks = {f"{2 * i}.weight": mask for i, mask in enumerate(state["backward_masks"]) if mask is not None}
    assert sparse.layers.keys() == masks.keys()
    for name, mask in masks.items():
        assert torch.equal(sparse.mask(name), mask != 0)
