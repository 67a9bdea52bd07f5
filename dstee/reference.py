"""The specification: every op in plain PyTorch, on any device, without a host sync.

Read it beside the paper (Huang et al., Dynamic Sparse Training via More Exploration). Each function takes the arguments of
the op's schema in ``dstee.ops``; lists have one tensor per layer, an absent list is empty. Every other backend returns the same
bits. Arguments have been checked by the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dstee._float_mode import with_gradual_underflow
from dstee.encoding import flat, flip_counts, pack_bits, unpack_bits
from dstee.sgd_rule import SGDRule, unpack

__all__ = [
    "MAX_RANK",
    "clip_swaps",
    "count_active",
    "count_explored",
    "count_outside",
    "counter_of",
    "decode_counts",
    "drop_grow_",
    "drop_key",
    "encode_counts",
    "first_k",
    "masked_sgd_",
    "pack_mask",
    "random_signal",
    "rank",
    "sgd",
    "unpack_mask",
]

MAX_RANK = 0x7F80_0001  # rank(+Inf)


def rank(x: Tensor) -> Tensor:
    """abs(x) as an int64 that orders like the float32 it is: NaN -> 0 (after everything), 0.0 -> 1, ... +Inf -> 0x7F800001."""
    bits = x.float().abs().view(torch.int32).to(torch.int64)
    return torch.where(x.isnan(), 0, bits + 1)


def drop_key(x: Tensor) -> Tensor:
    """What the drop ranks by: the smaller abs(x), the larger the key, NaN above all."""
    return MAX_RANK - rank(x)


def first_k(key: Tensor, k: Tensor) -> Tensor:
    """True at the k positions that come first in the order (key descending, index ascending); k is a 0-dim tensor."""
    order = torch.sort(key, descending=True, stable=True).indices
    taken = torch.arange(key.numel(), device=key.device) < k
    return torch.zeros_like(key, dtype=torch.bool).scatter_(0, order, taken)


def clip_swaps(k: Tensor, nnz: Tensor, n: int, regrow: bool) -> Tensor:
    """How many of the k wanted swaps a layer of n weights with nnz active ones has room for."""
    k = torch.minimum(nnz, k)
    return k if regrow else torch.minimum(k, n - nnz)


def counter_of(stored: Tensor, active: Tensor, round: int | Tensor, table_size: int) -> Tensor:
    """The counters N, as places in a table: one that the table does not have, a negative one too, takes the last."""
    counter = flip_counts(stored.int(), active, round)
    return torch.where((counter < 0) | (counter >= table_size), table_size - 1, counter)


def random_signal(seed: int, n: int, device: torch.device) -> Tensor:
    """n float32 numbers in [0, 1), each a hash of (seed, index) alone: the growth signal of SET. seed is 64 bits."""

    def mix(x: Tensor) -> Tensor:  # a 32-bit finaliser; products wrap, so keep the low half
        x = x ^ (x >> 16)
        x = (x * 0x7FEB352D) & 0xFFFF_FFFF
        x = x ^ (x >> 15)
        x = (x * 0x846CA68B) & 0xFFFF_FFFF
        return x ^ (x >> 16)

    index = torch.arange(n, dtype=torch.int64, device=device)
    low = ((index & 0xFFFF_FFFF) + (seed & 0xFFFF_FFFF)) & 0xFFFF_FFFF
    high = ((index >> 32) + ((seed >> 32) & 0xFFFF_FFFF)) & 0xFFFF_FFFF
    return (mix(mix(low) ^ high) >> 8).float() * 2.0**-24


def sgd(
    w: Tensor, g: Tensor, m: Tensor | None, rule: SGDRule, grad_scale: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """One SGD step in float32, every operation rounded once (torch.optim.SGD's definitions). Returns the new (w, m)."""
    lr = rule.lr.float().view(()) if isinstance(rule.lr, Tensor) else rule.lr
    d = g if grad_scale is None else g / grad_scale.float().view(())
    d = -d if rule.maximize else d
    if rule.weight_decay != 0:
        d = d + w * rule.weight_decay
    u = d
    if rule.momentum != 0:
        assert m is not None
        m = d if rule.first_step else m * rule.momentum + d * (1 - rule.dampening)
        u = d + m * rule.momentum if rule.nesterov else m
    return w - u * lr, m


def _step(w: Tensor, g: Tensor, m: Tensor | None, active: Tensor, rule: SGDRule, grad_scale: Tensor | None = None) -> None:
    """masked SGD of one flat layer: positions outside ``active`` keep their bits."""
    w_new, m_new = sgd(w.float(), g.float(), None if m is None else m.float(), rule, grad_scale)
    w.copy_(torch.where(active, w_new.to(w.dtype), w))
    if m is not None and m_new is not None:
        m.copy_(torch.where(active, m_new.to(m.dtype), m))


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
) -> None:
    rule = unpack(sgd, lr)
    assert rule is not None
    for i, p in enumerate(params):
        active = unpack_bits(mask_bits[i], p.numel())
        if found_inf is not None:
            active = active & (found_inf == 0).view(())
        _step(flat(p), flat(grads[i]), flat(momenta[i]) if momenta else None, active, rule, grad_scale)


@with_gradual_underflow
def drop_grow_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    mask_bits: list[Tensor],
    counts: list[Tensor],
    k: list[int],
    k_tensor: Tensor | None,
    bonus: Tensor | None,
    round: int,
    round_tensor: Tensor | None,
    drop_scores: list[Tensor],
    grow_signal: list[Tensor],
    grow_seeds: list[int],
    regrow: bool,
    reset_regrown: bool,
    sgd: list[float],
    lr: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    rule = unpack(sgd, lr)
    q = round if round_tensor is None else round_tensor.view(())
    for i, p in enumerate(params):
        n, device = p.numel(), p.device
        w = flat(p)
        m = flat(momenta[i]) if momenta else None
        mask = unpack_bits(mask_bits[i], n)
        go = torch.ones((), dtype=torch.bool, device=device) if found_inf is None else (found_inf == 0).view(())
        if rule is not None:  # order "after": the step first, then drop by the new weights
            _step(w, flat(grads[i]), m if rule.momentum != 0 else None, mask & go, rule)

        nnz = mask.sum()
        k_i = clip_swaps(k_tensor[i] if k_tensor is not None else nnz.new_tensor(k[i]), nnz, n, regrow) * go

        # Drop (Algorithm 1, ArgDrop): the k active weights closest to zero.
        key = drop_key(flat(drop_scores[i]) if drop_scores else w)
        dropped = first_k(torch.where(mask, key, -1), k_i)

        # Grow (Eq. 1): S = |g| + c ln(t) / (N + eps), the bonus from its table; ties by |g|, then by index.
        if grow_seeds:
            g = random_signal(grow_seeds[i], n, device)
        else:
            g = flat(grow_signal[i] if grow_signal else grads[i]).float().abs()
        score = g
        if counts and bonus is not None:
            score = g + bonus[counter_of(counts[i], mask, q, bonus.numel())]
        candidates = ~mask | dropped if regrow else ~mask
        grown = first_k(torch.where(candidates, (rank(score) << 32) | rank(g), -1), k_i)

        # Commit: M = (M minus D) plus G; N += M only moves the stored form of weights that changed state.
        changed = dropped ^ grown
        gone = dropped if reset_regrown else dropped & ~grown
        mask_bits[i].copy_(pack_bits(mask ^ changed))
        if counts:
            counts[i].copy_(flip_counts(counts[i], changed, q))
        w.masked_fill_(gone, 0)
        if m is not None:
            m.masked_fill_(gone, 0)


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


def count_outside(params: list[Tensor], mask_bits: list[Tensor]) -> Tensor:
    """NaN is not 0."""
    layers = zip(params, mask_bits, strict=True)
    return torch.stack([(flat(p).ne(0) & ~unpack_bits(b, p.numel())).sum() for p, b in layers])
