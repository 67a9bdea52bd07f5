"""key_histogram: candidates by a byte of their keys; a launch for each dtype, after those that find the drop's threshold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._digits import KNOWN_COLUMNS, LEFT, add_digits, count_digits, nothing_known, reaches, take_digits
from ._launch import OPTIONS, launching
from ._rules import global_index
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
    read_tile,
    round_of,
)
from ._upload import on_device
from .counts import count_active

__all__ = ["key_histogram"]


@triton.jit
def _read(table, DROP_BY: tl.constexpr):
    layer = tl.load(table.tile_layer + tl.program_id(0))
    row = row_of(table, layer)
    n = tl.load(row + N).to(tl.int32)
    i, inside, active = read_tile(row, (tl.program_id(0) - tl.load(row + FIRST_TILE).to(tl.int32)) * TILE, n)
    drop = drop_keys_at(row, i, active, DROP_BY, False)
    return row, call_of(table, layer), i, inside, active, drop, n.to(tl.int64) - 1 - i


@triton.jit(do_not_specialize=["shift"])
def count_drop_keys_kernel(table, known, digits, shift, SECOND_WORD: tl.constexpr, DROP_BY: tl.constexpr):
    """The threshold of the drop, of each layer; a program for a tile."""
    row, _call, _i, _inside, active, drop, inverse = _read(table, DROP_BY)
    place = tl.load(row + INDEX)
    known += place * KNOWN_COLUMNS
    if tl.load(known + LEFT) > 0:
        count_digits(known, digits + place * DIGITS, drop, inverse, active, shift, SECOND_WORD)


@triton.jit(do_not_specialize=["bonus", "bonus_size", "round", "round_pointer", "shift"])
def key_histogram_kernel(
    table, known, prefix, out, bonus, bonus_size, round, round_pointer, shift,
    WORD: tl.constexpr, DROP_BY: tl.constexpr, GROW_BY: tl.constexpr, GROWTH: tl.constexpr,
):  # fmt: skip
    """known: the drop's thresholds where it gives the growth candidates, else None. A program for a tile."""
    row, call, i, inside, active, drop, inverse = _read(table, DROP_BY)
    place = tl.load(row + INDEX)
    if GROWTH:
        candidates = inside & ~active
        if known is not None:
            candidates = candidates | (active & reaches(known + place * KNOWN_COLUMNS, drop, inverse))
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
        part = tl.load(call + SEED).to(tl.pointer_type(tl.int64))  # seed, base, run, pitch, weights of the whole
        index = global_index(i.to(tl.int64), tl.load(part + 1), tl.load(part + 2), tl.load(part + 3))
        word = tl.load(part + 4) - 1 - index
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
    k_drop: Sequence[int],
    k_drop_tensor: Tensor | None,
    regrow: bool,
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
        ranked = [DropBy(bool(drop_scores), group.w_type, group.drop_type) for group in groups]
        grids = [(len(group.table.tile_layer),) for group in groups]
        known = None
        if growth and regrow and (k_drop_tensor is not None or any(k_drop)):
            wanted = on_device(k_drop, torch.int64, device) if k_drop_tensor is None else k_drop_tensor
            known = nothing_known(torch.minimum(wanted, count_active(mask_bits)).clamp(min=0))
            digits = torch.zeros((L, DIGITS.value), dtype=torch.int64, device=device)
            for second in (False, True):
                for at in (24, 16, 8, 0):
                    for group, by, grid in zip(groups, ranked, grids, strict=True):
                        count_drop_keys_kernel[grid](group.table, known, digits, at, second, by, **OPTIONS)
                    take_digits(known, digits, at, second)
        for group, by, grid in zip(groups, ranked, grids, strict=True):
            grow_by = GrowBy(signal.value, group.w_type, group.grow_type)
            key_histogram_kernel[grid](
                group.table, known, prefix.contiguous(), out, bonus, size, int(round), round_tensor, shift,
                word, by, grow_by, bool(growth), **OPTIONS,
            )  # fmt: skip
    return out
