"""The table that ``SparseModel.summary`` returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dstee import ops
from dstee._console import column_blocks, terminal_width
from dstee.distributed.ranks import sum_each
from dstee.layer_batch import count_each
from dstee.methods import Method
from dstee.schedule import UpdateSchedule
from dstee.selection import LeftOut
from dstee.sparse_layer import SparseLayer
from dstee.units import alive_units

__all__ = ["LayerSummary", "Summary", "dead_units", "explorable", "summarize"]


@dataclass(frozen=True)
class LayerSummary:
    """One line of :meth:`SparseModel.summary`.

    ``explored``: weights ever active, None without counters. ``explorable``: how many the updates so far could make that
    (:func:`explorable`). ``dead``: of ``units`` output units those without an active weight.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    nnz: int
    explored: int | None
    explorable: int
    dead: int
    units: int


@dataclass(frozen=True)
class Summary:
    """Per layer and in all: shape, density, active weights, dead units, R, R / R_max; and what is dense for what reason.

    R is the exploration degree, the share of weights that were ever active; R_max the most that it can be after the updates so
    far (:func:`explorable`). Both need counters. ``str()`` is an aligned table; on a terminal that is too narrow for it columns
    stand below one another.
    """

    layers: tuple[LayerSummary, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def total(self) -> LayerSummary:
        explored = [row.explored for row in self.layers]
        return LayerSummary(
            "total",
            (),
            sum(row.numel for row in self.layers),
            sum(row.nnz for row in self.layers),
            None if None in explored else sum(explored),  # type: ignore[arg-type]
            sum(row.explorable for row in self.layers),
            sum(row.dead for row in self.layers),
            sum(row.units for row in self.layers),
        )

    def __str__(self) -> str:
        counted = self.total.explored is not None
        table = [["layer", "shape", "density", "nnz", "dead units", *(["R", "R/R_max"] if counted else [])]]
        for row in (*self.layers, self.total):
            r = []
            if counted and row.explored is not None:
                r = [f"{row.explored / row.numel:.4f}", f"{row.explored / max(row.explorable, 1):.4f}"]
            shape = "x".join(map(str, row.shape)) if row.shape else f"{row.numel:,} weights"
            dead = f"{row.dead:,} of {row.units:,}"
            table.append([row.name, shape, f"{row.nnz / row.numel:.4f}", f"{row.nnz:,}", dead, *r])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        blocks = [
            ["  ".join(line[i].ljust(widths[i]) if i < 2 else line[i].rjust(widths[i]) for i in block) for line in table]
            for block in column_blocks(widths, terminal_width())
        ]
        return "\n".join(["\n\n".join(map("\n".join, blocks)), *map(str, self.left_out)])


def explorable(layers: Sequence[SparseLayer], t: int, method: Method, schedule: UpdateSchedule) -> list[int]:
    """For each layer the most weights that can have been active until step ``t``: R_max times its size.

    R_max = min(1, density * (1 + the sum over the updates of the share of active weights that each swaps)): at best no weight
    that an update grows was ever active before. The shares are the schedule's at the steps t' <= t with an update, each
    rounded up to whole weights as the update does. Of several layers R_max is the mean by size. The schedule, the density and
    what is frozen are those of now. A method that starts denser, or whose updates do other things than to swap the schedule's
    share of each layer, follows its own numbers: 1, but for frozen layers.
    """
    if method.updates and not method.is_bounded:
        return [layer.numel if layer.param.requires_grad else layer.nnz for layer in layers]
    fractions = np.array([schedule.fraction(step) for step in method.update_steps(schedule, t)], dtype=np.float64)
    swapped = [int(np.ceil(fractions * layer.nnz).sum()) if layer.param.requires_grad else 0 for layer in layers]
    return [min(layer.numel, layer.nnz + k) for layer, k in zip(layers, swapped, strict=True)]


def dead_units(layers: Sequence[SparseLayer]) -> tuple[list[int], list[int]]:
    """For each layer how many output units have no active weight, and how many there are. One host sync per device."""
    alive = {layer.name: alive_units(layer) for layer in layers}
    cut = [layer for layer in layers if layer.holders is not None]
    for ranks in dict.fromkeys(layer.holders for layer in cut):  # each knows the units that its part makes alive
        assert ranks is not None
        mine = [layer.name for layer in cut if layer.holders == ranks]
        found = ranks.reduce(torch.cat([alive[name].int() for name in mine])).bool()
        alive |= dict(zip(mine, found.split([alive[name].numel() for name in mine]), strict=True))

    def count(group: list[SparseLayer]) -> Tensor:
        return torch.stack([(~alive[layer.name]).sum() for layer in group])

    return count_each(layers, lambda layer: alive[layer.name].device, count), [unit.numel() for unit in alive.values()]


def summarize(
    layers: Iterable[SparseLayer],
    t: int,
    method: Method,
    schedule: UpdateSchedule,
    left_out: tuple[LeftOut, ...] = (),
) -> Summary:
    """Two host syncs per device."""
    rows = list(layers)
    for layer in rows:
        layer.follow()
    counted = [layer for layer in rows if layer.counts is not None]

    def count(group: list[SparseLayer]) -> Tensor:
        counts = [layer.counts for layer in group if layer.counts is not None]
        return ops.count_explored(counts, [layer.mask_bits for layer in group])

    numbers = count_each(counted, lambda layer: layer.mask_bits.device, count)
    numbers = sum_each(numbers, [layer.holders for layer in counted])
    explored = dict(zip([layer.name for layer in counted], numbers, strict=True))
    limits = explorable(rows, t, method, schedule)
    table = zip(rows, limits, *dead_units(rows), strict=True)
    return Summary(
        tuple(LayerSummary(r.name, tuple(r.shape), r.numel, r.nnz, explored.get(r.name), most, *n) for r, most, *n in table),
        left_out,
    )
