"""Weights under learned soft thresholds (STR): putting the thresholds on, counting what is beyond them, taking them off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dstee import ops
from dstee.methods.soft_threshold import LearnedThreshold, soft_threshold
from dstee.score_masks import masks_from_scores
from dstee.selection import Candidate
from dstee.sparse_layer import check_parameter

__all__ = [
    "SoftLayer",
    "SoftRow",
    "SoftSummary",
    "count_beyond",
    "find_shift",
    "largest_margins",
    "soft_layers",
    "summarize",
]

_HALVINGS = 60
"""Steps of the search for a shift: more than float32 has values between its bounds."""


@dataclass(eq=False)
class SoftLayer:
    """The weight ``attribute`` of ``module``, computed through ``threshold`` while that is on."""

    name: str
    module: nn.Module
    attribute: str
    threshold: LearnedThreshold
    order: tuple[str, ...]
    """The names of the module's parameters before, in their order."""
    _all: Tensor | None = None

    @property
    def weight(self) -> nn.Parameter:
        """The parameter that trains: what the threshold is applied to, or, once that is off, what the module uses."""
        if parametrize.is_parametrized(self.module, self.attribute):
            return self.module.parametrizations[self.attribute].original  # type: ignore[union-attr, index]
        return self.module._parameters[self.attribute]  # type: ignore[return-value]

    @property
    def logit(self) -> nn.Parameter:
        return self.threshold.logit

    def put_on(self) -> None:
        parametrize.register_parametrization(self.module, self.attribute, self.threshold)

    def take_off(self) -> None:
        """The parameter is the module's own again, the same object with its values, in its old place among the others."""
        parametrize.remove_parametrizations(self.module, self.attribute, leave_parametrized=False)
        for key in self.order:
            self.module._parameters[key] = self.module._parameters.pop(key)

    @torch.no_grad()
    def level(self, shift: float = 0.0) -> Tensor:
        """The threshold with its logit shifted, as the weight's dtype has it: one element, shape []."""
        return torch.sigmoid(self.logit + shift).to(self.weight.dtype)

    @torch.no_grad()
    def values(self, shift: float = 0.0) -> Tensor:
        """What the module computes with under the shifted threshold."""
        return soft_threshold(self.weight, self.logit + shift)

    @torch.no_grad()
    def active(self) -> Tensor:
        """The weights that are not 0 for the module: bool, shape and strides of the weight."""
        return (self.weight.abs() <= self.level()).logical_not_()

    def all_bits(self) -> Tensor:
        """A packed mask with every weight in it."""
        if self._all is None or self._all.device != self.weight.device:
            self._all = ops.pack_mask(torch.ones_like(self.weight, dtype=torch.bool))
        return self._all


def soft_layers(chosen: Sequence[Candidate], init: float) -> list[SoftLayer]:
    """Layers for these parameters; no threshold is on yet.

    Raises:
        TypeError, ValueError: a parameter cannot be sparse, or several modules share it.
    """
    layers = []
    for c in chosen:
        check_parameter(c.name, c.param)
        _, module, attribute = c.owners[0]
        if any(other is not module or name != attribute for _, other, name in c.owners):
            raise ValueError(
                f"{c.name} is tied: {', '.join(c.names())} share it, and a threshold would hold in one of them only; "
                "leave it out with exclude="
            )
        layers.append(SoftLayer(c.name, module, attribute, LearnedThreshold(init, c.param.device), tuple(module._parameters)))
    return layers


def count_beyond(layers: Sequence[SoftLayer], shift: float = 0.0) -> Tensor:
    """Weights beyond the shifted threshold, per layer: int64 [L] on their device, no host sync."""
    levels = torch.stack([layer.level(shift).float() for layer in layers])
    first_beyond = torch.nextafter(levels, torch.full_like(levels, float("inf")))  # below it is within the threshold
    weights = [layer.weight.detach() for layer in layers]
    within = ops.count_below(weights, [layer.all_bits() for layer in layers], first_beyond)
    return torch.tensor([w.numel() for w in weights], device=within.device) - within


def find_shift(layers: Sequence[SoftLayer], total: int) -> float:
    """The largest shift of all logits, to the precision of float32, under which at least ``total`` weights are beyond.

    0 if exactly ``total`` are without one. Between the bounds of the search every threshold goes from 0 to 1.
    """
    if int(count_beyond(layers).sum()) == total:
        return 0.0
    logits = [layer.logit.item() for layer in layers]
    low, high = -200.0 - max(logits), 200.0 - min(logits)
    for _ in range(_HALVINGS):
        middle = low + (high - low) / 2
        if int(count_beyond(layers, middle).sum()) >= total:
            low = middle
        else:
            high = middle
    return low


@torch.no_grad()
def largest_margins(layers: Sequence[SoftLayer], shift: float, total: int) -> list[Tensor]:
    """The masks of the ``total`` weights that are furthest beyond the shifted thresholds, in the order of
    :func:`dstee.masks_from_scores`."""
    margins = [layer.weight.detach().abs().float() - layer.level(shift).float() for layer in layers]
    return masks_from_scores(margins, total=total)


@dataclass(frozen=True)
class SoftRow:
    """One line of :meth:`SoftThreshold.summary`: ``nnz`` weights are beyond ``threshold``."""

    name: str
    shape: tuple[int, ...]
    numel: int
    nnz: int
    threshold: float


@dataclass(frozen=True)
class SoftSummary:
    """Per layer and in all; ``str()`` is an aligned table."""

    layers: tuple[SoftRow, ...]

    def __str__(self) -> str:
        n, nnz = sum(row.numel for row in self.layers), sum(row.nnz for row in self.layers)
        table = [["layer", "shape", "density", "nnz", "threshold"]]
        for row in self.layers:
            shape = "x".join(map(str, row.shape))
            table.append([row.name, shape, f"{row.nnz / row.numel:.4f}", f"{row.nnz:,}", f"{row.threshold:.3g}"])
        table.append(["total", f"{n:,} weights", f"{nnz / n:.4f}", f"{nnz:,}", ""])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [[f"{c:<{w}}" if i < 2 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(r, widths, strict=True))] for r in table]
        return "\n".join("  ".join(line).rstrip() for line in lines)


def summarize(layers: Sequence[SoftLayer]) -> SoftSummary:
    """One host sync for all counts, one for each threshold."""
    rows = zip(layers, count_beyond(layers).tolist(), strict=True)
    return SoftSummary(
        tuple(
            SoftRow(layer.name, tuple(layer.weight.shape), layer.weight.numel(), n, float(layer.level())) for layer, n in rows
        )
    )
