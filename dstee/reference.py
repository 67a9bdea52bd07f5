"""The specification: every op in plain PyTorch, on any device, without a host sync.

Read it beside the paper (Huang et al., Dynamic Sparse Training via More Exploration). Each function takes the arguments of
the op's schema in ``dstee.ops``; lists have one tensor per layer, an absent list is empty. Every other backend returns the same
bits. Arguments have been checked by the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dstee._float_mode import with_gradual_underflow
from dstee.encoding import flat, flip_counts, pack_active, pack_bits, unpack_active, unpack_bits
from dstee.rules import (
    MAX_RANK,
    clip_growth,
    clip_swaps,
    drop_key,
    first_k,
    global_index,
    growth_score,
    random24,
    random_signal,
    rank,
    sample_positions,
    sgd,
    signed_rank,
)
from dstee.sgd_rule import SGDRule, unpack

__all__ = [
    "count_active",
    "count_below",
    "count_explored",
    "count_outside",
    "decode_counts",
    "drop_grow_",
    "encode_counts",
    "global_keep_",
    "growth_scale",
    "hashed_noise_",
    "key_histogram",
    "masked_sgd_",
    "pack_mask",
    "unpack_mask",
]


def _step(w: Tensor, g: Tensor, m: Tensor | None, active: Tensor, rule: SGDRule, grad_scale: Tensor | None = None) -> None:
    """masked SGD of one flat layer: positions outside ``active`` keep their bits."""
    w_new, m_new = sgd(w.float(), g.float(), None if m is None else m.float(), rule, grad_scale)
    w.copy_(torch.where(active, w_new.to(w.dtype), w))
    if m is not None and m_new is not None:
        m.copy_(torch.where(active, m_new.to(m.dtype), m))


def _momentum(momenta: list[Tensor], i: int, mask: Tensor, packed: bool) -> Tensor | None:
    """The flat momentum of a layer: itself, or, where the active weights' alone are stored, a copy at all positions."""
    if not momenta:
        return None
    return unpack_active(momenta[i], mask) if packed else flat(momenta[i])


@with_gradual_underflow
def masked_sgd_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    mask_bits: list[Tensor],
    sgd: list[float],
    lr: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    packed_momenta: bool = False,
) -> None:
    rule = unpack(sgd, lr)
    assert rule is not None
    for i, p in enumerate(params):
        mask = active = unpack_bits(mask_bits[i], p.numel())
        if found_inf is not None:
            active = active & (found_inf == 0).view(())
        m = _momentum(momenta, i, mask, packed_momenta)
        _step(flat(p), flat(grads[i]), m, active, rule, grad_scale)
        if m is not None and packed_momenta:
            momenta[i].copy_(pack_active(m, mask, momenta[i].numel()))


@with_gradual_underflow
def drop_grow_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    mask_bits: list[Tensor],
    counts: list[Tensor],
    k: list[int],
    k_tensor: Tensor | None,
    k_grow: list[int],
    k_grow_tensor: Tensor | None,
    bonus: Tensor | None,
    bonus_scale: Tensor | None,
    round: int,
    round_tensor: Tensor | None,
    drop_scores: list[Tensor],
    grow_signal: list[Tensor],
    grow_seeds: list[int],
    where: list[int],
    regrow: bool,
    reset_regrown: bool,
    sgd: list[float],
    lr: Tensor | None,
    found_inf: Tensor | None,
    packed_momenta: bool = False,
) -> None:
    rule = unpack(sgd, lr)
    q = round if round_tensor is None else round_tensor.view(())
    for i, p in enumerate(params):
        n, device = p.numel(), p.device
        w = flat(p)
        mask = unpack_bits(mask_bits[i], n)
        m = _momentum(momenta, i, mask, packed_momenta)
        go = torch.ones((), dtype=torch.bool, device=device) if found_inf is None else (found_inf == 0).view(())
        if rule is not None:  # order "after": the step first, then drop by the new weights
            _step(w, flat(grads[i]), m if rule.momentum != 0 else None, mask & go, rule)

        nnz = mask.sum()
        k_i = k_tensor[i] if k_tensor is not None else nnz.new_tensor(k[i])
        if k_grow or k_grow_tensor is not None:
            k_i = torch.minimum(k_i.clamp(min=0), nnz)
            grow_i = k_grow_tensor[i] if k_grow_tensor is not None else nnz.new_tensor(k_grow[i])
            grow_i = clip_growth(grow_i, k_i, nnz, n, regrow) * go
            k_i = k_i * go
        else:
            k_i = grow_i = clip_swaps(k_i, nnz, n, regrow) * go

        # Drop (Algorithm 1, ArgDrop): the k active weights closest to zero.
        key = drop_key(flat(drop_scores[i]) if drop_scores else w)
        dropped = first_k(torch.where(mask, key, -1), k_i)

        # Grow (Algorithm 1, ArgGrow): the best scores, ties by |g|, then by index.
        if grow_seeds:
            g = random_signal(grow_seeds[i], n, device, where[3 * i : 3 * i + 3])
        else:
            g = flat(grow_signal[i] if grow_signal else grads[i]).float().abs()
        scale = None if bonus_scale is None else bonus_scale[i]
        score = growth_score(g, counts[i] if counts else None, mask, bonus, scale, q)
        candidates = ~mask | dropped if regrow else ~mask
        grown = first_k(torch.where(candidates, (rank(score) << 32) | rank(g), -1), grow_i)

        # Commit: M = (M minus D) plus G; N += M only moves the stored form of weights that changed state.
        changed = dropped ^ grown
        gone = dropped if reset_regrown else dropped & ~grown
        mask_bits[i].copy_(pack_bits(mask ^ changed))
        if counts:
            counts[i].copy_(flip_counts(counts[i], changed, q))
        w.masked_fill_(gone, 0)
        if m is not None:
            m.masked_fill_(gone, 0)
            if packed_momenta:
                momenta[i].copy_(pack_active(m, mask ^ changed, momenta[i].numel()))


def _reaches(words: list[Tensor], threshold: Tensor) -> Tensor:
    """Where a key, word by word, is at least the threshold [3]."""
    reached = torch.ones_like(words[0], dtype=torch.bool)
    for value, least in zip(reversed(words), reversed(threshold.unbind()), strict=True):
        reached = (value > least) | ((value == least) & reached)
    return reached


@with_gradual_underflow
def key_histogram(
    params: list[Tensor],
    grads: list[Tensor],
    mask_bits: list[Tensor],
    counts: list[Tensor],
    bonus: Tensor | None,
    bonus_scale: Tensor | None,
    round: int,
    round_tensor: Tensor | None,
    drop_scores: list[Tensor],
    grow_signal: list[Tensor],
    grow_seeds: list[int],
    where: list[int],
    total: list[int],
    growth: bool,
    word: int,
    shift: int,
    prefix: Tensor,
    drop_from: Tensor | None,
) -> Tensor:
    q = round if round_tensor is None else round_tensor.view(())
    found = []
    for i, p in enumerate(params):
        n, device, place = p.numel(), p.device, where[3 * i : 3 * i + 3]
        mask = unpack_bits(mask_bits[i], n)
        key = drop_key(flat(drop_scores[i] if drop_scores else p))
        candidates = mask
        words = [key, torch.zeros_like(key), total[i] - 1 - global_index(n, place, device)]
        if growth:
            candidates = ~mask if drop_from is None else ~mask | _reaches(words, drop_from[i])
            if grow_seeds:
                g = random_signal(grow_seeds[i], n, device, place)
            else:
                g = flat(grow_signal[i] if grow_signal else grads[i]).float().abs()
            scale = None if bonus_scale is None else bonus_scale[i]
            words[0] = rank(growth_score(g, counts[i] if counts else None, mask, bonus, scale, q))
            if bonus is not None:
                words[1] = rank(g)
        for known, value in enumerate(words[:word]):
            candidates = candidates & (value == prefix[i, known])
        rest = words[word] >> shift
        candidates = candidates & (rest >> 8 == prefix[i, word] >> shift >> 8)
        digits = torch.where(candidates, rest & 255, 256)
        found.append(torch.zeros(257, dtype=torch.int32, device=device).scatter_add_(0, digits, digits.new_ones(n).int())[:256])
    return torch.stack(found)


@with_gradual_underflow
def global_keep_(
    params: list[Tensor],
    momenta: list[Tensor],
    mask_bits: list[Tensor],
    counts: list[Tensor],
    scores: list[Tensor],
    total: int,
    total_tensor: Tensor | None,
    round: int,
    round_tensor: Tensor | None,
) -> None:
    q = round if round_tensor is None else round_tensor.view(())
    masks = [unpack_bits(b, p.numel()) for b, p in zip(mask_bits, params, strict=True)]
    ranks = [signed_rank(flat(s).float()) for s in scores] if scores else [rank(flat(p)) for p in params]
    mask = torch.cat(masks)
    wanted = mask.sum().new_tensor(total) if total_tensor is None else total_tensor.view(())
    kept = first_k(torch.where(mask, torch.cat(ranks), -MAX_RANK - 1), torch.minimum(wanted, mask.sum()))
    for i, stays in enumerate(kept.split([p.numel() for p in params])):
        gone = masks[i] & ~stays
        mask_bits[i].copy_(pack_bits(stays))
        flat(params[i]).masked_fill_(gone, 0)
        if momenta:
            flat(momenta[i]).masked_fill_(gone, 0)
        if counts:
            counts[i].copy_(flip_counts(counts[i], gone, q))


@with_gradual_underflow
def growth_scale(
    signals: list[Tensor],
    mask_bits: list[Tensor],
    k: list[int],
    k_tensor: Tensor | None,
    round: int,
    round_tensor: Tensor | None,
) -> Tensor:
    q = round if round_tensor is None else round_tensor.view(())
    found = []
    for i, signal in enumerate(signals):
        n, device = signal.numel(), signal.device
        at = sample_positions(n, q, device)
        active = (mask_bits[i][at >> 3] >> (at & 7) & 1).bool()
        ranks = torch.where(active, -1, rank(flat(signal)[at])).sort(descending=True).values
        count = (ranks >= 0).sum()
        k_i = k_tensor[i].clamp(0, n) if k_tensor is not None else count.new_tensor(k[i])
        place = torch.minimum((k_i * len(at) + n - 1) // max(n, 1), count).clamp(min=1) - 1
        bits = torch.cat([ranks, count.new_tensor([-1])])[place] - 1  # of the value, negative where there is none
        found.append(torch.where(bits <= 0, 0x0080_0000, bits).to(torch.int32))
    return torch.stack(found).view(torch.float32)


@with_gradual_underflow
def hashed_noise_(out: list[Tensor], seeds: list[int], where: list[int]) -> None:
    for i, x in enumerate(out):
        index = global_index(x.numel(), where[3 * i : 3 * i + 3], x.device)
        numbers = torch.stack([random24(seed, index) for seed in seeds[4 * i : 4 * i + 4]]).sum(0)
        flat(x).copy_((numbers - (2**25 - 2)).float() * 2.0**-24)


def pack_mask(mask: Tensor) -> Tensor:
    return pack_bits(flat(mask))


def unpack_mask(mask_bits: Tensor, shape: list[int]) -> Tensor:
    return unpack_bits(mask_bits, torch.Size(shape).numel()).view(shape)


def encode_counts(N: Tensor, mask: Tensor, round: int) -> Tensor:
    return flip_counts(flat(N), flat(mask), round).to(torch.int16)


def decode_counts(counts: Tensor, mask_bits: Tensor, round: int, shape: list[int]) -> Tensor:
    mask = unpack_bits(mask_bits, counts.numel())
    return flip_counts(counts.int(), mask, round).view(shape)


def count_active(mask_bits: list[Tensor]) -> Tensor:
    return torch.stack([unpack_bits(b, 8 * b.numel()).sum() for b in mask_bits])


def count_explored(counts: list[Tensor], mask_bits: list[Tensor]) -> Tensor:
    """An inactive weight was ever active when its stored N is not 0; an active one always was."""
    return torch.stack([((c != 0) | unpack_bits(b, c.numel())).sum() for c, b in zip(counts, mask_bits, strict=True)])


@with_gradual_underflow
def count_below(tensors: list[Tensor], mask_bits: list[Tensor], thresholds: Tensor) -> Tensor:
    layers = zip(tensors, mask_bits, thresholds, strict=True)
    return torch.stack([((flat(x).float().abs() < limit) & unpack_bits(b, x.numel())).sum() for x, b, limit in layers])


def count_outside(params: list[Tensor], mask_bits: list[Tensor]) -> Tensor:
    """NaN is not 0."""
    layers = zip(params, mask_bits, strict=True)
    return torch.stack([(flat(p).ne(0) & ~unpack_bits(b, p.numel())).sum() for p, b in layers])
