"""Weights and gradients that may make an update slow: ties, orders, values that are not finite, dead units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dstee import ops

from .layers import Layers

__all__ = ["KINDS", "ORDINARY"]

ORDINARY = "ordinary"


def _fill(value: float) -> Callable[[Layers], None]:
    def fill(layers: Layers) -> None:
        for g in layers.grads:
            g.fill_(value)

    return fill


def _eight_levels(layers: Layers) -> None:
    for g in layers.grads:
        random = torch.Generator(g.device).manual_seed(1)
        g.copy_((torch.randint(8, g.shape, generator=random, device=g.device) - 3.5) * 1e-3)


def _dead_units(layers: Layers) -> None:
    """Every second row: no gradient, weights that have died, momentum too."""
    for i in range(len(layers.params)):
        for t in (layers.params[i], layers.grads[i], layers.momenta[i]):
            t[::2] = 0


def _sorted(layers: Layers) -> None:
    for g in layers.grads:
        g.copy_(g.view(-1).sort().values.view(g.shape))


def _one_huge(layers: Layers) -> None:
    for g in layers.grads:
        g.view(-1)[g.numel() // 2] = 1e30


def _equal_weights(layers: Layers) -> None:
    for w, mask in zip(layers.params, layers.masks, strict=True):
        w.copy_(mask * 0.05)


def _scale(factor: float) -> Callable[[Layers], None]:
    def scale(layers: Layers) -> None:
        for g in layers.grads:
            g.mul_(factor)

    return scale


def _clustered(layers: Layers) -> None:
    """The active weights are the first ones of their layer."""

    def in_front(t: Tensor, first: Tensor) -> None:
        flat = t.view(-1)
        flat.copy_(torch.cat([flat[first], flat[~first]]))

    for i, mask in enumerate(layers.masks):
        first = mask.view(-1).clone()
        for t in (layers.params[i], layers.momenta[i], layers.masks[i], layers.counts[i]):
            in_front(t, first)
        layers.mask_bits[i] = ops.pack_mask(layers.masks[i])


KINDS: dict[str, Callable[[Layers], None]] = {
    ORDINARY: lambda layers: None,
    "gradients equal": _fill(1e-3),
    "gradients 0": _fill(0.0),
    "gradients NaN": _fill(float("nan")),
    "gradients Inf": _fill(float("inf")),
    "gradients of 8 values": _eight_levels,
    "gradients sorted": _sorted,
    "one gradient huge": _one_huge,
    "gradients subnormal": _scale(1e-37),
    "bonus dominates": _scale(1e-6),
    "half the units dead": _dead_units,
    "weights equal": _equal_weights,
    "active weights in front": _clustered,
}
"""By name, what each changes in place. Weights and momenta outside the masks stay 0."""
