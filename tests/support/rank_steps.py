"""A model on one of several ranks, and its training step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from support import layouts
from support.layouts import LAYOUTS, Odd
from support.rank_training import OPTIMIZERS, Run
from torch import Tensor, nn

import dstee

__all__ = ["Trained", "build", "steps"]


@dataclass
class Trained:
    """``where``: of :func:`support.layouts.places`."""

    model: nn.Module
    sparse: dstee.SparseModel
    optimizer: torch.optim.Optimizer
    where: dict[str, Tensor]


def build(name: str, n: int, run: Run) -> Trained:
    """A fresh model, laid over ``n`` ranks and made sparse."""
    layout = LAYOUTS[name]
    where = layouts.places(layout, n)
    model = layout.lay(Odd(), n)
    sparse = run.sparsify(model)
    return Trained(model, sparse, OPTIMIZERS[run.optimizer](model, sparse), where)


def steps(of: Trained, first: int, last: int, forward: bool = False) -> None:
    """The steps ``first`` to ``last`` with replayed gradients, or also a real forward and backward before, whose collectives
    ranks make together."""
    for step in range(first, last + 1):
        if forward:
            of.model(layouts.inputs()).sum().backward()
        layouts.replay(of.model, of.where, step)
        of.sparse.step(of.optimizer)
        of.optimizer.zero_grad()
