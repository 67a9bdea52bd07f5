"""The table that ``SparseModel.summary`` returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from dstee import ops
from dstee.layer_batch import count_each
from dstee.sparse_layer import SparseLayer

__all__ = ["LayerSummary", "Summary", "summarize"]


@dataclass(frozen=True)
class LayerSummary:
    """One line of :meth:`SparseModel.summary`; ``explored`` (weights ever active) is None without counters."""

    name: str
    shape: tuple[int, ...]
    numel: int
    nnz: int
    explored: int | None


@dataclass(frozen=True)
class Summary:
    """Per layer and in all: shape, density, active weights, exploration degree R. ``str()`` is an aligned table."""

    layers: tuple[LayerSummary, ...]

    @property
    def total(self) -> LayerSummary:
        explored = [row.explored for row in self.layers]
        return LayerSummary(
            "total", (), sum(row.numel for row in self.layers), sum(row.nnz for row in self.layers),
            None if None in explored else sum(explored),  # type: ignore[arg-type]
        )  # fmt: skip

    def __str__(self) -> str:
        counted = self.total.explored is not None
        table = [["layer", "shape", "density", "nnz", *(["R"] if counted else [])]]
        for row in (*self.layers, self.total):
            r = [f"{row.explored / row.numel:.4f}"] if counted and row.explored is not None else []
            shape = "x".join(map(str, row.shape)) if row.shape else f"{row.numel:,} weights"
            table.append([row.name, shape, f"{row.nnz / row.numel:.4f}", f"{row.nnz:,}", *r])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
            for line in table
        )


def summarize(layers: Iterable[SparseLayer]) -> Summary:
    """One host sync per device."""
    rows = list(layers)
    for layer in rows:
        layer.follow()
    counted = [layer for layer in rows if layer.counts is not None]

    def count(group: list[SparseLayer]) -> Tensor:
        counts = [layer.counts for layer in group if layer.counts is not None]
        return ops.count_explored(counts, [layer.mask_bits for layer in group])

    numbers = count_each(counted, lambda layer: layer.mask_bits.device, count)
    explored = dict(zip([layer.name for layer in counted], numbers, strict=True))
    return Summary(tuple(LayerSummary(r.name, tuple(r.shape), r.numel, r.nnz, explored.get(r.name)) for r in rows))
