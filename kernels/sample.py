"""First launch of an update, two programs a layer: from a sample, who is behind the bound and almost surely does not win.

Reads about 50 KB a layer. Small layers need no sample.
"""

import triton
import triton.language as tl

from ._rules import HAS_MOMENTUM, NO_STEP, drop_key, mix, to_float
from ._select import BINS, bisect
from ._state import DROP_SIDE, FINALISTS, LOW_INDEX, LOW_KEY, USED, side_of, state_of
from ._table import BITS, GRADIENT, TILE, M, N, W
from ._tiles import (
    EVERYBODY,
    LAST_INDEX,
    NOBODY,
    asked,
    call_of,
    drop_keys_at,
    growth_keys_at,
    load,
    reaches,
    round_of,
    row_of,
    stepped,
    value_of,
)  # fmt: skip

GROUPS = tl.constexpr(512)  # groups of 8 neighbours, at most
FEW_GROUPS = tl.constexpr(128)  # at least: in the smallest layer that is sampled, every second one


@triton.jit
def _sort_splitters(splitter_key, splitter_index, scratch_key, scratch_index, count):
    """The last first; behind them as many that nobody reaches as make BINS."""
    r = tl.arange(0, BINS)
    inside = r < count
    key = tl.load(scratch_key + r, mask=inside, other=0)
    index = tl.load(scratch_index + r, mask=inside, other=0)
    place = tl.zeros([BINS], tl.int32)
    for part in range(0, BINS, 16):
        other = part + tl.arange(0, 16)
        other_key = tl.load(scratch_key + other, mask=other < count, other=0)[None, :]
        other_index = tl.load(scratch_index + other, mask=other < count, other=0)[None, :]
        later = (other_key < key[:, None]) | ((other_key == key[:, None]) & (other_index > index[:, None]))
        place += tl.sum((later & (other < count)[None, :]).to(tl.int32), 1)
    tl.store(splitter_key + place, key, mask=inside)
    tl.store(splitter_index + place, index, mask=inside)
    tl.store(splitter_key + r, tl.full([BINS], NOBODY, tl.int64), mask=r >= count)
    tl.store(splitter_index + r, tl.full([BINS], -1, tl.int32), mask=r >= count)


@triton.jit(do_not_specialize=["k_pointer", "bonus", "bonus_size", "round", "round_pointer", "lr_pointer", "shy"])
def prepare_kernel(
    rows, calls, state, bins, splitter_key, splitter_index, scratch_key, scratch_index,
    k_pointer, bonus, bonus_size, round, round_pointer, lr, lr_pointer, momentum, damped, weight_decay, shy,
    RULE: tl.constexpr, GROWTH: tl.constexpr, OTHER_DROP: tl.constexpr,
    W_TYPE: tl.constexpr, DROP_TYPE: tl.constexpr, GROW_TYPE: tl.constexpr,
):  # fmt: skip
    """shy: the bounds are to be too tight, for tests."""
    layer, side = tl.program_id(0), tl.program_id(1)
    row, call = row_of(rows, layer), call_of(calls, layer)
    n = tl.load(row + N).to(tl.int32)
    if n > TILE:
        own = state_of(state, layer)
        tl.store(own + (USED + side), 0)  # USED, NNZ: one for each program
        tl.store(own + (FINALISTS + side), 0)
        r = tl.arange(0, BINS)
        tl.store(side_of(bins, layer, side) + r, tl.zeros([BINS], tl.int32))
        k = asked(row, call, k_pointer)
        if k > 0:
            q = round_of(round, round_pointer)
            # One group of neighbours per stratum, at a hashed place in it: regular steps would alias with the rows of a
            # matrix whose gradients are scaled by row or column.
            groups = tl.minimum(tl.maximum(n // 512, FEW_GROUPS), GROUPS)
            stratum = n // groups
            group = tl.arange(0, GROUPS)
            sampled = group < groups
            salt = mix((q * 977 + layer).to(tl.uint32))
            jitter = mix(group.to(tl.uint32) ^ salt) % tl.maximum(stratum - 15, 1).to(tl.uint32)
            first = tl.where(sampled, (group * stratum + jitter.to(tl.int32) + 7) & -8, 0)
            lanes = tl.arange(0, 8)[None, :]
            i = first[:, None] + lanes
            byte = load(tl.load(row + BITS), first >> 3, sampled, tl.uint8, False).to(tl.int32)
            active = ((byte[:, None] >> lanes) & 1) != 0
            here = tl.broadcast_to(sampled[:, None], active.shape)
            mine = here & (active == (side == DROP_SIDE))
            if side == DROP_SIDE:
                if OTHER_DROP or RULE == NO_STEP:
                    key = drop_keys_at(row, i, mine, W_TYPE, DROP_TYPE, OTHER_DROP, False)
                else:  # as they will be after the step
                    w = load(tl.load(row + W), i, mine, W_TYPE, False)
                    g = load(tl.load(call + GRADIENT), i, mine, W_TYPE, False)
                    m = w
                    if HAS_MOMENTUM & RULE:
                        m = load(tl.load(row + M), i, mine, W_TYPE, False)
                    lr = value_of(lr, lr_pointer)
                    w, m = stepped(w, m, g, lr, momentum, damped, weight_decay, 1.0, RULE, W_TYPE)
                    key = drop_key(to_float(w)).to(tl.int64)
            else:
                key = growth_keys_at(
                    row, call, i, active, mine, bonus, bonus_size, q, W_TYPE, GROW_TYPE, GROWTH, False
                )  # fmt: skip
            key = tl.where(mine, key, -1)
            count = tl.sum(mine.to(tl.int32))
            # A loose bound costs some room in a list, a missed one a second look at the layer.
            expected = k.to(tl.float32) * (groups * 8).to(tl.float32) / n.to(tl.float32)
            rank = (1.25 * expected + 10 * tl.sqrt(expected) + 16).to(tl.int32)
            if shy != 0:
                rank = rank * 0 + 1
            low_key, low_index = tl.full([], EVERYBODY, tl.int64), tl.full([], LAST_INDEX, tl.int32)
            if rank < count:
                low_key, low_index = bisect(key, i, rank, rank >> 3)
            tl.store(own + (LOW_KEY + side), low_key)
            tl.store(own + (LOW_INDEX + side), low_index.to(tl.int64))

            # Up to BINS - 1 of the sampled weights that would be listed part the bins.
            chosen = (mine & reaches(key, i, low_key, low_index)).to(tl.int32)
            in_group = tl.sum(chosen, 1)
            number = (tl.cumsum(in_group, 0) - in_group)[:, None] + tl.cumsum(chosen, 1) - chosen
            total = tl.sum(in_group, 0)
            stride = tl.maximum((total + BINS - 2) // (BINS - 1), 1)
            take = (chosen != 0) & (number % stride == 0)
            scratch_key, scratch_index = side_of(scratch_key, layer, side), side_of(scratch_index, layer, side)
            tl.store(scratch_key + number // stride, key, mask=take)
            tl.store(scratch_index + number // stride, i, mask=take)
            tl.debug_barrier()
            _sort_splitters(
                side_of(splitter_key, layer, side), side_of(splitter_index, layer, side), scratch_key, scratch_index,
                (total + stride - 1) // stride,
            )  # fmt: skip
