"""global_keep_: the best of the active weights of all layers stay; exact, over layers of all dtypes together.

A count for each dtype and a small launch for each byte of the key: four of the score, then as many as the index over all layers
has. When the threshold is known, those that are left do nothing. The last launch for each dtype commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._digits import LEFT, count_digits, nothing_known, reaches, take_digits
from ._launch import OPTIONS, launching
from ._rules import rank, signed_key, to_float
from ._select import DIGITS
from ._table import DROP, FIRST_TILE, TILE, K, N, W, call_of, group_by_dtype, row_of
from ._tiles import DropBy, load, read_tile, round_of
from .commit import Outcome, commit_tile
from .counts import count_active

__all__ = ["global_keep_"]


@triton.jit
def _read(table, last, SCORES: tl.constexpr):
    """The tile of a program, and the words of its keys; ``last``: the index over all layers of the last weight."""
    layer = tl.load(table.tile_layer + tl.program_id(0))
    row, call = row_of(table, layer), call_of(table, layer)
    n = tl.load(row + N).to(tl.int32)
    start = (tl.program_id(0) - tl.load(row + FIRST_TILE).to(tl.int32)) * TILE
    i, _inside, active = read_tile(row, start, n)
    if SCORES.OTHER:
        key = signed_key(to_float(load(tl.load(row + DROP), i, active, SCORES.TYPE, False)))
    else:
        key = rank(to_float(load(tl.load(row + W), i, active, SCORES.W_TYPE, False))).to(tl.int64)
    return row, n, start, i, active, key, last - tl.load(call + K) - i


@triton.jit(do_not_specialize=["last", "shift"])
def count_scores_kernel(table, known, digits, last, shift, SECOND_WORD: tl.constexpr, SCORES: tl.constexpr):
    if tl.load(known + LEFT) > 0:
        _row, _n, _start, _i, active, key, inverse = _read(table, last, SCORES)
        count_digits(known, digits, key, inverse, active, shift, SECOND_WORD)


@triton.jit(do_not_specialize=["last", "round", "round_pointer"])
def keep_kernel(table, known, last, round, round_pointer, SCORES: tl.constexpr, OUTCOME: tl.constexpr):
    row, n, start, i, active, key, inverse = _read(table, last, SCORES)
    dropped = active & ~reaches(known, key, inverse)
    tl.debug_barrier()  # the scores may be what is cleared now
    commit_tile(row, i, start, n, active, dropped, i < 0, round_of(round, round_pointer), OUTCOME)


def global_keep_(
    params: Sequence[Tensor],
    momenta: Sequence[Tensor],
    mask_bits: Sequence[Tensor],
    counts: Sequence[Tensor],
    scores: Sequence[Tensor],
    total: int,
    total_tensor: Tensor | None,
    round: int,
    round_tensor: Tensor | None,
) -> None:
    """As dstee.reference.global_keep_."""
    device = params[0].device
    *firsts, size = accumulate((p.numel() for p in params), initial=0)
    active = count_active(mask_bits).sum().view(1)
    wanted = torch.full_like(active, total) if total_tensor is None else total_tensor.view(1)
    known = nothing_known(torch.minimum(wanted, active).clamp(min=0))
    digits = torch.zeros(DIGITS.value, dtype=torch.int64, device=device)
    bytes_of_index = range((max(size - 1, 0).bit_length() + 7) // 8)
    with launching(device):
        # The index over all layers of a layer's first weight comes in the place of k.
        groups = group_by_dtype(params, (), momenta, mask_bits, counts, scores, k=firsts)
        ranked = [DropBy(bool(scores), group.w_type, group.drop_type) for group in groups]
        for second, of_word in ((False, range(4)), (True, bytes_of_index)):
            for shift in (8 * byte for byte in reversed(of_word)):
                for group, by in zip(groups, ranked, strict=True):
                    grid = (len(group.table.tile_layer),)
                    count_scores_kernel[grid](group.table, known, digits, size - 1, shift, second, by, **OPTIONS)
                take_digits(known, digits, shift, second)
        for group, by in zip(groups, ranked, strict=True):
            outcome = Outcome(False, bool(momenta), bool(counts), group.w_type)
            grid = (len(group.table.tile_layer),)
            keep_kernel[grid](group.table, known, size - 1, int(round), round_tensor, by, outcome, **OPTIONS)
