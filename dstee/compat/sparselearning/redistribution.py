"""SNFS (sparse momentum): how many weights each layer drops and how many it grows, the total unchanged.

Dettmers and Zettlemoyer, "Sparse Networks from Scratch" (2019). The numbers are the original's where those are well defined:
layers grow in proportion to their shares, none more than 99 % of its zeros, and what does not fit is spread over the others
evenly. The original rounds every number up, then down, lets the total drift and steers against it later; here largest
remainders make the total exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dstee.allocation import allocate
from dstee.compat.plain_masks import count_kept, drop_grow
from dstee.compat.sparselearning.modes import momentum_signal, two_sided
from dstee.layer_batch import by_device, count_active
from dstee.memory_order import like, unpack_like
from dstee.ops import pack_mask, unpack_mask

__all__ = ["Numbers", "SNFSRule", "check_modes", "plan", "spread", "update"]

PRUNE_MODES = ("magnitude", "SET", "threshold", "global_magnitude")
GROWTH_MODES = ("momentum", "random", "gradient", "global_momentum_growth")
REDISTRIBUTION_MODES = ("momentum", "magnitude", "nonzero", "none")


@dataclass(frozen=True)
class SNFSRule:
    """One update: ``rate`` of the weights die by ``prune``, as many grow by ``growth``, shared out by ``redistribution``."""

    prune: str
    growth: str
    redistribution: str
    rate: float
    threshold: float = 0.001


@dataclass(frozen=True)
class Numbers:
    """Per layer, in order: the share of the growth (they sum to 1 unless all are 0), the rate, weights to drop and to grow."""

    shares: list[float]
    rates: list[float]
    drop: list[int]
    grow: list[int]


def check_modes(prune: object, growth: object, redistribution: object) -> None:
    """Raises ValueError unless the three modes can be had with exact totals."""
    for what, mode, known in (
        ("prune_mode", prune, PRUNE_MODES),
        ("growth_mode", growth, GROWTH_MODES),
        ("redistribution_mode", redistribution, REDISTRIBUTION_MODES),
    ):
        if callable(mode):
            raise ValueError(
                f"{what} is a function, which would work on masks of the original's kind: choose from {', '.join(known)}, or "
                "write a method (dstee.methods.register)"
            )
        if mode == "momentum_neuron" and what == "growth_mode":
            raise ValueError(
                "growth_mode 'momentum_neuron' is not supported: it leaves out neurons with a part below 10 weights, so that "
                "weights are lost at every update; 'momentum' grows the same signal and keeps the total"
            )
        if mode == "nonzeros" and what == "redistribution_mode":
            raise ValueError("redistribution_mode 'nonzeros' is called 'nonzero' in the original's functions: write that")
        if mode not in known:
            raise ValueError(f"{what} {mode!r} is not supported, choose from {', '.join(known)}")


def _raw_shares(
    rule: SNFSRule, params: Mapping[str, Tensor], bits: Sequence[Tensor], optimizer: torch.optim.Optimizer
) -> Tensor:
    """What the mode measures in each layer, float64 [L] on the CPU: one host sync for each device."""
    sums = []
    for (name, p), b in zip(params.items(), bits, strict=True):
        active = unpack_like(b, p)
        if rule.redistribution == "none":
            sums.append(torch.tensor(float(p.numel()), dtype=torch.float64, device=p.device))
        elif rule.redistribution == "nonzero":
            sums.append(((p.detach() != 0) & active).sum().double())
        else:
            of = momentum_signal(optimizer, p, name) if rule.redistribution == "momentum" else p.detach()
            total = torch.where(active, of.to(p.device).abs(), 0).sum(dtype=torch.float64)
            sums.append(total / active.sum().clamp(min=1))
    found = torch.zeros(len(sums), dtype=torch.float64)
    for indices in by_device(sums, lambda t: t.device).values():
        found[indices] = torch.stack([sums[i] for i in indices]).cpu()
    return found.nan_to_num(0.0, posinf=torch.finfo(torch.float64).max / max(len(sums), 1))


def spread(budget: int, shares: Tensor, room: Tensor) -> list[int]:
    """Shares ``budget`` weights out in proportion to ``shares`` [L]; beyond 99 % of its ``room`` a layer gets none, and the
    others the rest in equal parts; where all of them are that full, the last percent fills up, too.

    Args:
        budget: at most the sum of ``room``.
        shares: float64 [L], >= 0; all 0 are taken as equal.
        room: int64 [L], the weights that are inactive after the drop.

    Returns:
        The parts, their sum the budget.
    """
    most = room * 99 // 100
    parts = torch.minimum(allocate(budget, shares, torch.full_like(room, budget)), most)
    for limit in (most, room):
        parts = parts + allocate(budget - int(parts.sum()), torch.ones_like(room), limit - parts)
    return parts.tolist()


def plan(
    rule: SNFSRule, params: Mapping[str, Tensor], bits: Sequence[Tensor], nnz: Sequence[int], optimizer: torch.optim.Optimizer
) -> Numbers:
    """The numbers of an update; nothing changes.

    A layer more than 80 % dense whose share is above the average drops no larger part than it has zeros, as in the original.

    Raises:
        RuntimeError: a momentum or gradient that a mode ranks is missing.
    """
    if rule.growth != "random":
        _signals(rule, params, optimizer)  # all of them exist
    weights = list(params.values())
    raw = _raw_shares(rule, params, bits, optimizer)
    total = float(raw.sum())
    shares = (raw / total).tolist() if total > 0 else [0.0] * len(weights)
    rates = []
    for p, n, share in zip(weights, nnz, shares, strict=True):
        sparsity = (p.numel() - n) / p.numel()
        rates.append(min(sparsity, rule.rate) if sparsity < 0.2 and share > 1 / len(weights) else rule.rate)
    if rule.prune == "global_magnitude":  # one rate for all, over all
        rates = [rule.rate] * len(weights)
        kept = count_kept([p.detach() for p in weights], bits, sum(nnz) - math.ceil(rule.rate * sum(nnz)))
        drop = [n - k for n, k in zip(nnz, kept, strict=True)]
    elif rule.prune == "threshold":
        small = [
            pack_mask((p.detach().abs() <= rule.threshold) & unpack_like(b, p)) for p, b in zip(weights, bits, strict=True)
        ]
        drop = count_active(small)
    else:
        drop = [min(math.ceil(rate * n), n) for rate, n in zip(rates, nnz, strict=True)]
    room = [p.numel() - n + d for p, n, d in zip(weights, nnz, drop, strict=True)]
    if rule.growth == "global_momentum_growth":
        grow = _largest_candidates(rule, params, bits, drop, optimizer)
    else:
        grow = spread(sum(drop), raw, torch.tensor(room))
    return Numbers(shares, rates, drop, grow)


def _drop_scores(rule: SNFSRule, params: Mapping[str, Tensor], bits: Sequence[Tensor]) -> list[Tensor] | None:
    if rule.prune != "SET":
        return None
    return [two_sided(p.detach(), unpack_like(b, p)) for p, b in zip(params.values(), bits, strict=True)]


def _signals(rule: SNFSRule, params: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What the growth ranks."""
    if rule.growth == "gradient":
        missing = [name for name, p in params.items() if p.grad is None]
        if missing:
            raise RuntimeError(f"growth 'gradient' is due, but these weights have no gradient: {', '.join(missing)}")
        return [like(grad, p, (torch.float32,)) for p in params.values() if (grad := p.grad) is not None]
    return [like(momentum_signal(optimizer, p, name), p, (torch.float32,)) for name, p in params.items()]


def _largest_candidates(
    rule: SNFSRule, params: Mapping[str, Tensor], bits: Sequence[Tensor], drop: Sequence[int], optimizer: torch.optim.Optimizer
) -> list[int]:
    """How many of the largest momenta off the masks, over all layers, lie in each."""
    weights, after = [p.detach().clone() for p in params.values()], [b.clone() for b in bits]
    zeros = [0] * len(weights)
    drop_grow(weights, after, drop, k_grow=zeros, grow_seeds=zeros, drop_scores=_drop_scores(rule, params, bits))
    free = [pack_mask(~unpack_mask(b, (p.numel(),))) for b, p in zip(after, weights, strict=True)]
    return count_kept(_signals(rule, params, optimizer), free, sum(drop))


@torch.no_grad()
def update(
    rule: SNFSRule,
    params: Mapping[str, Tensor],
    bits: Sequence[Tensor],
    nnz: Sequence[int],
    optimizer: torch.optim.Optimizer,
    seed: Callable[[str], int],
) -> Numbers:
    """Drops and grows in all layers, in place; momenta stay, and layer i has ``nnz[i] - drop[i] + grow[i]`` weights afterwards.

    Args:
        seed: of a layer's random growth, by name.

    Raises:
        RuntimeError: as :func:`plan`, before anything has changed.
    """
    numbers = plan(rule, params, bits, nnz, optimizer)
    random = rule.growth == "random"
    drop_grow(
        list(params.values()),
        bits,
        numbers.drop,
        k_grow=numbers.grow,
        drop_scores=_drop_scores(rule, params, bits),
        grow_signal=None if random else _signals(rule, params, optimizer),
        grow_seeds=[seed(name) for name in params] if random else None,
    )
    return numbers
