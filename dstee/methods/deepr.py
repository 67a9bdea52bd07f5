"""DeepR (Bellec et al., Deep Rewiring: Training Very Sparse Deep Networks, 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dstee import ops
from dstee.methods.actions import Action, Random, Swap
from dstee.methods.base import Method
from dstee.methods.context import LayerView, Step, Update, growth_seeds
from dstee.methods.registry import register
from dstee.schedule import UpdateSchedule

__all__ = ["DeepR"]

_THETA = 1e-12  # of a connection that has just been made


@register
@dataclass(frozen=True, kw_only=True)
class DeepR(Method):
    """DeepR: at every step, connections whose weight has crossed 0 become dormant, and as many dormant ones take their place.

    A weight is ``sign * theta``, connected while theta > 0. Its sign never changes: that of the weight at first, random for
    connections that are dormant then. After the optimizer's step theta of the connected ones changes by
    ``lr * (noise * N(0, 1) - l1)``, the noise a hash. New connections, any that are dormant then, start with theta = 1e-12;
    their weight is 0 until that is added after their first step. Every step before ``schedule.stop`` is an update; from there
    on training is plain. The numbers of active weights never change.

    Args:
        l1: pull of theta towards 0, in units of the gradient.
        noise: standard deviation, in units of the gradient. Both defaults are the authors'.
    """

    l1: float = 1e-5
    noise: float = 1e-5
    reset_regrown: bool = field(default=True)

    name = "DeepR"
    key = "deepr"
    keeps = ("sign",)  # 1 or -1 of connections, 2 or -2 of dormant ones: what is active with a 2 is new, or has just crossed 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("l1", "noise"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        if self.order != "after":
            raise ValueError(
                f"every step of DeepR is an update, which cannot replace it: order must be 'after', got {self.order!r}"
            )
        for name in ("regrow", "reset_regrown"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be True: any dormant connection of DeepR may come back, and starts anew")

    def due(self, t: int, schedule: UpdateSchedule) -> bool:
        return t > 0 and (schedule.stop is None or t < schedule.stop)

    def after_step(self, c: Step) -> None:
        if not self.due(c.t, c.schedule):
            return
        for layer, lr, seed in zip(c.layers, c.lr, c.seeds("noise"), strict=True):
            if "sign" not in layer.state:
                _draw_signs(layer, growth_seeds(c.seed, [layer.name], 0, "sign")[0])
            w, active, sign = layer.local.detach(), layer.active(), layer.fitted_state("sign")
            unit, new = sign.sign(), active & (sign.abs() == 2)
            theta = _noise(layer, w, seed, c.t).mul_(self.noise * 3**0.5).sub_(self.l1).mul_(lr)
            theta += new * _THETA
            w.add_(torch.where(active, unit * theta, 0))
            sign.copy_(torch.where(active & (unit * w > 0), unit, 2 * unit))

    def plan(self, u: Update) -> Sequence[Action]:
        def connected(u: Update) -> list[Tensor]:
            return [(sign.abs() == 1).float() for sign in u.state("sign")]

        def crossed(u: Update) -> Tensor:
            return u.nnz - u.over_ranks(torch.stack([x.sum(dtype=torch.int64) for x in connected(u)]))

        return [Swap(drop=crossed, drop_by=connected, grow_by=Random())]


def _noise(layer: LayerView, w: Tensor, seed: int, step: int) -> Tensor:
    """For what this rank holds of the layer, ``w``."""
    return ops.hashed_noise(w.shape, seed, step, where=layer.where.place, device=w.device)


def _draw_signs(layer: LayerView, seed: int) -> None:
    w, active = layer.local.detach(), layer.active()
    random = torch.where(_noise(layer, w, seed, 0) < 0, -2.0, 2.0)
    layer.fitted_state("sign").copy_(torch.where(active, torch.where(w < 0, -1.0, 1.0), random))
