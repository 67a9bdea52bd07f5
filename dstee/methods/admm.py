"""Pruning by ADMM (Zhang et al., A Systematic DNN Weight Pruning Framework using ADMM, 2018; StructADMM, 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dstee.methods.actions import Action, KeepGlobal, Project
from dstee.methods.context import Start, Step, Update
from dstee.methods.gradual import DenseToSparse, check_phase, update_at
from dstee.methods.registry import register
from dstee.schedule import UpdateSchedule

__all__ = ["ADMM"]


@register
@dataclass(frozen=True, kw_only=True)
class ADMM(DenseToSparse):
    """ADMM: dense, then dense and pulled towards the sparse ``Z``, then cut to the budget and retrained.

    The first update after ``begin`` sets Z to the weights cut to the budget, and U = 0. From the next step on gradients get
    ``rho * (W - Z + U)``; at each update Z becomes W + U cut to the budget, then U grows by W - Z. The update at ``end`` cuts
    the weights themselves.

    Args:
        scope: the largest of each layer stay, by its budget ("layer"), or of all layers together ("global").
        rho: weight of the pull (ours).
        begin, end: as shares of the schedule's last update; thirds, as in the paper's 20 + 20 + 20 epochs.
    """

    scope: Literal["layer", "global"] = "layer"
    rho: float = 1e-2
    begin: float = 1 / 3
    end: float = 2 / 3

    name = "ADMM"
    key = "admm"
    keeps = ("Z", "U")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in ("layer", "global"):
            raise ValueError(f"scope must be 'layer' or 'global', got {self.scope!r}")
        if not (math.isfinite(self.rho) and self.rho > 0):
            raise ValueError(f"rho must be a finite number > 0, got {self.rho}")
        check_phase(self.begin, self.end)
        if self.order != "after":
            raise ValueError(f"ADMM's updates follow the step: order must be 'after', got {self.order!r}")

    def start(self, s: Start) -> Mapping[str, Tensor]:
        first, last = self._phase(s.schedule)
        if first == last:
            raise ValueError(
                f"ADMM has no step between begin={self.begin} and end={self.end}, both update {first} of {s.schedule}: update "
                "more often, or move them apart"
            )
        return super().start(s)

    def due(self, t: int, schedule: UpdateSchedule) -> bool:
        first, last = self._phase(schedule)
        return schedule.is_due(t) and first <= t <= last

    def before_step(self, c: Step) -> None:
        first, last = self._phase(c.schedule)
        if first < c.t <= last:
            for g, w, z, dual in zip(c.grads, c.weights, c.state("Z"), c.state("U"), strict=True):
                g.add_((self.rho * (w.float() - z + dual)).to(g.dtype))

    def plan(self, u: Update) -> Sequence[Action]:
        if u.t < self._phase(u.schedule)[1]:
            return [Project(u.sizes, to=self._follow)]  # all stay, unchanged: Z and U move
        return [KeepGlobal(self.total) if self.scope == "global" else Project({name: u.budget[name] for name in u.names})]

    def total(self, u: Update) -> int:
        return u.total if u.t < self._phase(u.schedule)[1] else min(u.total, u.target)

    def _phase(self, schedule: UpdateSchedule) -> tuple[int, int]:
        return update_at(self.begin, schedule), update_at(self.end, schedule)

    def _follow(self, u: Update) -> list[Tensor]:
        weights, zs, duals = [w.float() for w in u.weights], u.state("Z"), u.state("U")
        sums = [w + dual for w, dual in zip(weights, duals, strict=True)]
        k = [u.budget[name] for name in u.names] if self.scope == "layer" else None
        masks = u.largest(sums, k, u.target if k is None else None)
        first = u.t == self._phase(u.schedule)[0]
        for mask, both, w, z, dual in zip(masks, sums, weights, zs, duals, strict=True):
            z.copy_(torch.where(mask, both, 0))
            if not first:
                dual.add_(w - z)
        return u.weights
