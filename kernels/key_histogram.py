"""key_histogram: candidates by a byte of their keys; a launch for each dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._digits import add_digits
from ._launch import OPTIONS, launching
from ._select import DIGITS
from ._table import FIRST_TILE, INDEX, SEED, TILE, N, call_of, group_by_dtype, row_of
from ._tiles import (
    AT_RANDOM_IN_PART,
    BY_GRADIENT,
    BY_TENSOR,
    DropBy,
    GrowBy,
    bonus_of,
    drop_keys_at,
    growth_keys_at,
    index_in_whole,
    read_tile,
    round_of,
)
from ._upload import on_device

__all__ = ["key_histogram"]


@triton.jit
def _reaches(least, first, second, place):
    """Whether a key, word by word, is at least ``least``."""
    least_first, least_second = tl.load(least), tl.load(least + 1)
    equal = (second > least_second) | ((second == least_second) & (place >= tl.load(least + 2)))
    return (first > least_first) | ((first == least_first) & equal)


@triton.jit(do_not_specialize=["bonus", "bonus_size", "round", "round_pointer", "shift"])
def key_histogram_kernel(
    table, drop_from, prefix, out, bonus, bonus_size, round, round_pointer, shift,
    WORD: tl.constexpr, DROP_BY: tl.constexpr, GROW_BY: tl.constexpr, GROWTH: tl.constexpr,
):  # fmt: skip
    """drop_from: from which keys of the drop on active weights may grow; None: none may. A program for a tile."""
    layer = tl.load(table.tile_layer + tl.program_id(0))
    row, call = row_of(table, layer), call_of(table, layer)
    n = tl.load(row + N).to(tl.int32)
    i, inside, active = read_tile(row, (tl.program_id(0) - tl.load(row + FIRST_TILE).to(tl.int32)) * TILE, n)
    drop = drop_keys_at(row, i, active, DROP_BY, False)
    part = tl.load(call + SEED).to(tl.pointer_type(tl.int64))  # seed, base, run, pitch, weights of the whole
    inverse = tl.load(part + 4) - 1 - index_in_whole(part, i)
    place = tl.load(row + INDEX)
    if GROWTH:
        candidates = inside & ~active
        if drop_from is not None:
            candidates = candidates | (active & _reaches(drop_from + place * 3, drop, drop * 0, inverse))
        scored = bonus_of(row, bonus, bonus_size, round_of(round, round_pointer))
        key = growth_keys_at(row, call, i, active, candidates, scored, GROW_BY, False)
        first, second = key >> 32, key & 0xFFFFFFFF
    else:
        candidates, first, second = active, drop, drop * 0
    prefix += place * 3
    if WORD >= 1:
        candidates = candidates & (first == tl.load(prefix))
    if WORD == 2:
        candidates = candidates & (second == tl.load(prefix + 1))
    word = first
    if WORD == 1:
        word = second
    if WORD == 2:
        word = inverse
    add_digits(out + place * DIGITS, word, tl.load(prefix + WORD), candidates, shift)


def key_histogram(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    mask_bits: Sequence[Tensor],
    counts: Sequence[Tensor],
    bonus: Tensor | None,
    bonus_scale: Tensor | None,
    round: int,
    round_tensor: Tensor | None,
    drop_scores: Sequence[Tensor],
    grow_signal: Sequence[Tensor],
    grow_seeds: Sequence[int],
    where: Sequence[int],
    total: Sequence[int],
    growth: bool,
    word: int,
    shift: int,
    prefix: Tensor,
    drop_from: Tensor | None,
) -> Tensor:
    """As dstee.reference.key_histogram."""
    device, L = params[0].device, len(params)
    out = torch.zeros((L, DIGITS.value), dtype=torch.int32, device=device)
    signal = AT_RANDOM_IN_PART if grow_seeds else BY_TENSOR if grow_signal else BY_GRADIENT
    numbers: list[int] = []
    for i, p in enumerate(params):
        n = max(p.numel(), 1)
        place = where[3 * i : 3 * i + 3] if where else (0, n, n)
        numbers += [grow_seeds[i] if grow_seeds else 0, *place, total[i]]
    parts = on_device(numbers, torch.int64, device)
    seeds = [parts.data_ptr() + 40 * i for i in range(L)]
    size = 0 if bonus is None else bonus.numel()
    if bonus is not None and bonus_scale is not None:
        bonus = torch.cat([bonus, bonus_scale.double()])
    with launching(device):
        groups = group_by_dtype(params, grads, (), mask_bits, counts, drop_scores, grow_signal, seeds)
        for group in groups:
            by = DropBy(bool(drop_scores), group.w_type, group.drop_type)
            grow_by = GrowBy(signal.value, group.w_type, group.grow_type)
            key_histogram_kernel[(len(group.table.tile_layer),)](
                group.table, drop_from, prefix, out, bonus, size, int(round), round_tensor, shift,
                word, by, grow_by, bool(growth), **OPTIONS,
            )  # fmt: skip
    return out
