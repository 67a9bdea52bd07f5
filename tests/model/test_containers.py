"""Optimizers that hold SparseSGD, such as containers of several, SAM and lookahead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small_models import EVERY_STEP, mlp, set_gradients

import dstee


class Outer(torch.optim.Optimizer):
    """Keeps the optimizer that does the work, under any name, alone or in a list."""

    def __init__(self, params: Any, name: str, inner: torch.optim.Optimizer) -> None:
        super().__init__(params, {"lr": 0.1})
        setattr(self, name, [inner] if name == "optimizers" else inner)
        self.step = inner.step


@pytest.mark.parametrize("name", ["base_optimizer", "optim", "optimizers"])
def test_our_optimizer_inside_another_is_refused(name: str) -> None:
    """Its step would not carry the update that is due, and its own would come a second time."""
    model = mlp()
    sparse = dstee.sparsify(model, 0.7, schedule=EVERY_STEP)
    inner = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
    outer = Outer(model.parameters(), name, inner)
    set_gradients(model, 0)
    before = [p.clone() for p in model.parameters()]
    for call in (sparse.step, sparse.update):
        with pytest.raises(TypeError, match=r"Outer has SparseSGD inside, .* sparse\.step\(\*container\.optimizers\)"):
            call(outer)
    assert (sparse.t, sparse.round) == (0, 0) and all(map(torch.equal, before, model.parameters()))
    assert sparse.step(inner)
