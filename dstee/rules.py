"""The scalar maths of the update in PyTorch, as csrc/rules.h and kernels/_rules.py have it in their languages."""

from __future__ import annotations

import torch
from torch import Tensor

from dstee.encoding import flip_counts
from dstee.sgd_rule import SGDRule

__all__ = [
    "MAX_RANK",
    "MOST_SAMPLED",
    "clip_growth",
    "clip_swaps",
    "counter_of",
    "drop_key",
    "first_k",
    "global_index",
    "growth_score",
    "mix",
    "random24",
    "random_signal",
    "random_unit",
    "rank",
    "sample_positions",
    "sgd",
    "signed_rank",
]

MAX_RANK = 0x7F80_0001  # rank(+Inf)
MOST_SAMPLED = 8192  # positions of a layer that growth_scale looks at


def rank(x: Tensor) -> Tensor:
    """abs(x) as an int64 that orders like the float32 it is: NaN -> 0 (after everything), 0.0 -> 1, ... +Inf -> 0x7F800001."""
    bits = x.float().abs().view(torch.int32).to(torch.int64)
    return torch.where(x.isnan(), 0, bits + 1)


def drop_key(x: Tensor) -> Tensor:
    """What the drop ranks by: the smaller abs(x), the larger the key, NaN above all."""
    return MAX_RANK - rank(x)


def signed_rank(x: Tensor) -> Tensor:
    """x as an int64 that orders like the float32 it is, -0.0 as 0.0, NaN before all."""
    r = rank(x)
    return torch.where(r == 0, -MAX_RANK, torch.where(x.signbit(), 1 - r, r - 1))


def first_k(key: Tensor, k: Tensor) -> Tensor:
    """True at the k positions that come first in the order (key descending, index ascending); k is a 0-dim tensor."""
    order = torch.sort(key, descending=True, stable=True).indices
    taken = torch.arange(key.numel(), device=key.device) < k
    return torch.zeros_like(key, dtype=torch.bool).scatter_(0, order, taken)


def clip_swaps(k: Tensor, nnz: Tensor, n: int, regrow: bool) -> Tensor:
    """How many of the k wanted swaps a layer of n weights with nnz active ones has room for."""
    k = torch.minimum(nnz, k)
    return k if regrow else torch.minimum(k, n - nnz)


def clip_growth(k_grow: Tensor, dropped: Tensor, nnz: Tensor, n: int, regrow: bool) -> Tensor:
    """How many of the k_grow wanted weights there are candidates for, where ``dropped`` of the nnz active ones go."""
    inactive = n - nnz
    return torch.minimum(k_grow.clamp(min=0), inactive + dropped if regrow else inactive)


def counter_of(stored: Tensor, active: Tensor, round: int | Tensor, table_size: int) -> Tensor:
    """The counters N, as places in a table: one that the table does not have, a negative one too, takes the last."""
    counter = flip_counts(stored.int(), active, round)
    return torch.where((counter < 0) | (counter >= table_size), table_size - 1, counter)


def mix(x: Tensor) -> Tensor:
    """A 32-bit finaliser with full avalanche; products wrap, so keep the low half."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & 0xFFFF_FFFF
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & 0xFFFF_FFFF
    return x ^ (x >> 16)


def random24(seed: int, index: Tensor) -> Tensor:
    """The top 24 bits of a hash of (seed, index): int64. seed is 64 bits."""
    low = ((index & 0xFFFF_FFFF) + (seed & 0xFFFF_FFFF)) & 0xFFFF_FFFF
    high = ((index >> 32) + ((seed >> 32) & 0xFFFF_FFFF)) & 0xFFFF_FFFF
    return mix(mix(low) ^ high) >> 8


def global_index(n: int, where: list[int], device: torch.device) -> Tensor:
    """The place of each of n weights in the whole layer: int64 [n]. ``where`` is (base, run, pitch), or empty for a whole."""
    i = torch.arange(n, dtype=torch.int64, device=device)
    if not where:
        return i
    base, run, pitch = where
    return base + i // run * pitch + i % run


def random_signal(seed: int, n: int, device: torch.device, where: list[int] | None = None) -> Tensor:
    """n float32 numbers in [0, 1), each a hash of (seed, index) alone: the growth signal of SET."""
    return random_unit(seed, global_index(n, where or [], device))


def random_unit(seed: int, index: Tensor) -> Tensor:
    """:func:`random24` as float32 in [0, 1)."""
    return random24(seed, index).float() * 2.0**-24


def growth_score(
    g: Tensor, stored: Tensor | None, mask: Tensor, bonus: Tensor | None, scale: Tensor | None, round: int | Tensor
) -> Tensor:
    """S = |g| + c ln(t) / (N + eps) (Eq. 1): g is abs(g); the bonus comes from its table, or from units times the scale."""
    if stored is None or bonus is None:
        return g
    B = bonus[counter_of(stored, mask, round, bonus.numel())]
    return g + (B if scale is None else (scale.double() * B).float())


def sample_positions(n: int, round: int | Tensor, device: torch.device) -> Tensor:
    """One flat index in each stratum of a layer of n weights, by a hash of (round, stratum): int64 [min(n, MOST_SAMPLED)]."""
    strata = min(n, MOST_SAMPLED)
    edges = torch.arange(strata + 1, dtype=torch.int64, device=device) * n // max(strata, 1)
    start, length = edges[:-1], edges.diff()
    hashed = mix(mix(torch.arange(strata, dtype=torch.int64, device=device)) ^ (round & 0xFFFF_FFFF))
    return start + (hashed * length >> 32)


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
