"""SNFS (Dettmers & Zettlemoyer, Sparse Networks from Scratch, 2019): sparse momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dstee.allocation import allocate
from dstee.methods.actions import Action, Swap
from dstee.methods.base import Method
from dstee.methods.context import Step, Update
from dstee.methods.registry import register

__all__ = ["SNFS"]

_BITS = 30  # of the largest momentum: sums of integers are the same in any order, on every machine


@register
@dataclass(frozen=True)
class SNFS(Method):
    """SNFS: grow by an average of the dense gradient, layers in proportion to its mean size over their active weights.

    The average is ``m = beta * m + gradient`` at every step, of all weights; the optimizer's own momentum, which grown weights
    start without, and its weight decay are not in it. A layer drops the schedule's share of its weights, but at most its
    sparsity where it is more than 80 % dense and above the average of the layers, as in the authors' code. What all drop is
    shared out by :func:`dstee.allocate`, so the total is exact; the authors' drifts around it. A layer may become dense, where
    the authors' stops at 99 %. Without any momentum yet, layers grow evenly, lowest index first.

    Args:
        beta: of the average, in [0, 1).
    """

    beta: float = field(default=0.9, kw_only=True)

    name = "SNFS"
    key = "snfs"
    needs_every_gradient = True
    moves_budgets = True
    keeps = ("momentum",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must be in [0, 1), got {self.beta}")

    def after_step(self, c: Step) -> None:
        found = [(layer.fitted_state("momentum"), g) for layer in c.layers if (g := layer.grad) is not None]
        if found:  # two roundings on every machine: a fused multiply-add would have one
            torch._foreach_mul_([m for m, _ in found], self.beta)
            torch._foreach_add_([m for m, _ in found], [g.to(m.dtype) for m, g in found])

    def plan(self, u: Update) -> Sequence[Action]:
        return [Swap(drop=self._drop, grow=self._grow, grow_by=lambda u: u.state("momentum"))]

    def _drop(self, u: Update) -> Tensor:
        nnz, inactive, shares = u.nnz, u.inactive, _shares(u)
        rate = torch.full_like(nnz, u.schedule.fraction(u.t), dtype=torch.float64)
        sparsity = inactive.double() / (nnz + inactive).clamp(min=1)
        favoured = shares * len(shares) > shares.sum()
        rate = torch.where((5 * inactive < nnz + inactive) & favoured, torch.minimum(rate, sparsity), rate)
        drop = (nnz * rate).ceil().long()
        return drop if self.regrow else allocate(inactive.sum(), drop, drop)

    def _grow(self, u: Update) -> Tensor:
        return allocate(u.dropping.sum(), _shares(u), u.inactive + u.dropping if self.regrow else u.inactive)


def _shares(u: Update) -> Tensor:
    """Mean abs(momentum) over the active weights of each layer, in units that make the largest 2**30: int64 [L]."""
    momenta = [
        torch.where(active, m, 0).abs().nan_to_num(0.0).double()
        for active, m in zip(u.masks(), u.state("momentum"), strict=True)
    ]
    largest = torch.stack([x.max() if x.numel() else x.new_zeros(()) for x in momenta])
    scaled = _scaled(momenta, u.over_ranks(largest, largest=True))
    means = u.over_ranks(torch.stack([x.long().sum() for x in scaled])).double() / u.nnz.clamp(min=1)
    return _scaled([means], means)[0].long()


def _scaled(tensors: Sequence[Tensor], largest: Tensor) -> list[Tensor]:
    """So that the largest of ``largest`` becomes 2**30."""
    unit = largest.max().clamp(min=2.0**-1022)
    return [x / unit * 2**_BITS for x in tensors]
