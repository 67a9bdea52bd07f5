"""From lists of tensors to what the kernels read: a row of pointers and numbers per layer, and which layer owns which tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._sample_size import expected_entries
from ._upload import on_device, owners

TILE = tl.constexpr(2048)  # weights of a program; a layer of no more than that needs no lists
CHUNK = tl.constexpr(1024)  # list entries of a program

# Columns of a row, which stays as long as the tensors stay where they are. Addresses come first.
W, M, BITS, COUNTS, DROP, GROW = (tl.constexpr(c) for c in range(6))
N, FIRST_TILE, FIRST_ENTRY, ENTRIES, FIRST_CHUNK, INDEX = (tl.constexpr(c) for c in range(6, 12))
COLUMNS = tl.constexpr(12)
# Columns of what comes with a call. SEED: of a part of a layer the address of its seed, base, run and pitch.
GRADIENT, K, SEED = (tl.constexpr(c) for c in range(3))
CALL_COLUMNS = tl.constexpr(3)

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
LARGEST = (1 << 31) - 4096  # weights of a layer stay below: indices of a tile behind the last one must not wrap


class Table(NamedTuple):
    """What the kernels read.

    rows: int64 [layers, COLUMNS]; calls: int64 [layers, CALL_COLUMNS]; tile_layer, chunk_layer: int32, the layer that owns a
    tile or a chunk of the lists.
    """

    rows: Tensor
    calls: Tensor
    tile_layer: Tensor
    chunk_layer: Tensor


@dataclass(frozen=True)
class DtypeGroup:
    """Layers whose tensors have the same dtypes: one launch of a kernel serves them. entries: of all lists of one side."""

    table: Table
    layers: int
    entries: int
    w_type: tl.dtype
    drop_type: tl.dtype
    grow_type: tl.dtype


def group_by_dtype(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    mask_bits: Sequence[Tensor],
    counts: Sequence[Tensor] = (),
    drop_scores: Sequence[Tensor] = (),
    grow_signal: Sequence[Tensor] = (),
    seeds: Sequence[int] = (),
    k: Sequence[int] = (),
    *,
    most: Sequence[int] = (),
    list_share: float = 0.0,
) -> list[DtypeGroup]:
    """The non-empty layers by dtype. ``list_share``: 0 when every layer gets tiles (masked SGD); else the share of their
    expected entries that the lists of large layers hold, and only these get tiles. ``most``: of dropped or grown weights, for
    which there must be room in a list.

    Raises:
        ValueError: a layer has 2^31 - 4096 weights or more.
    """
    found: dict[tuple[torch.dtype, ...], list[int]] = {}
    for i, p in enumerate(params):
        if p.numel() >= LARGEST:
            raise ValueError(f"params[{i}] has {p.numel()} weights, the Triton kernels take fewer than {LARGEST}: split it")
        if p.numel():
            drop = drop_scores[i].dtype if drop_scores else p.dtype
            grow = grow_signal[i].dtype if grow_signal else p.dtype
            found.setdefault((p.dtype, drop, grow), []).append(i)
    result: list[DtypeGroup] = []
    for dtypes, index in found.items():
        rows: list[int] = []
        calls: list[int] = []
        tiles: list[int] = []
        chunks: list[int] = []
        entries = 0
        for i in index:
            p, n = params[i], params[i].numel()
            large = not list_share or n > TILE.value
            capacity = 0
            if list_share and large:
                # What is in a tensor is known on the device only: room for one in sixteen.
                capacity = max(int(expected_entries(n, most[i] if most else n // 16) * list_share), 1)
            rows += [
                p.data_ptr(),
                momenta[i].data_ptr() if momenta else 0,
                mask_bits[i].data_ptr(),
                counts[i].data_ptr() if counts else 0,
                drop_scores[i].data_ptr() if drop_scores else 0,
                grow_signal[i].data_ptr() if grow_signal else 0,
                n, sum(tiles), entries, capacity, sum(chunks), i,
            ]  # fmt: skip
            calls += [grads[i].data_ptr() if grads else 0, k[i] if k else 0, seeds[i] if seeds else 0]
            tiles.append(triton.cdiv(n, TILE.value) if large else 0)
            chunks.append(triton.cdiv(capacity, CHUNK.value))
            entries += capacity
        device = params[0].device
        table = Table(
            on_device(rows, torch.int64, device).view(-1, COLUMNS.value),
            on_device(calls, torch.int64, device).view(-1, CALL_COLUMNS.value),
            owners(tiles, device),
            owners(chunks, device),
        )
        w_type, drop_type, grow_type = (TYPES[dtype] for dtype in dtypes)
        result.append(DtypeGroup(table, len(index), entries, w_type, drop_type, grow_type))
    return result


@triton.jit
def row_of(table, layer):
    return table.rows + layer.to(tl.int64) * COLUMNS


@triton.jit
def call_of(table, layer):
    return table.calls + layer.to(tl.int64) * CALL_COLUMNS
