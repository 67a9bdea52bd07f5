"""The death and growth modes of ``Masking`` as arguments of one fused update, with exact numbers and defined ties."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from dstee.encoding import bonus_table, flat, unflat
from dstee.rules import random_signal

__all__ = [
    "DEATH_MODES",
    "GROWTH_MODES",
    "Rule",
    "UpdateArguments",
    "check_gradients",
    "momentum_signal",
    "two_sided",
    "unfired_first",
    "update_arguments",
]

DEATH_MODES = ("magnitude", "SET", "Taylor_FO", "threshold")
GROWTH_MODES = ("random", "random_unfired", "momentum", "gradient", "dst_ee")


@dataclass(frozen=True)
class Rule:
    """One mask update: ``rate`` of the active weights die by ``death``, as many grow by ``growth``."""

    death: str
    growth: str
    rate: float
    threshold: float = 0.001
    c: float = 1e-3
    eps: float = 1.0

    def needs_gradients(self) -> bool:
        return self.growth in ("gradient", "dst_ee") or self.death == "Taylor_FO"


class UpdateArguments(TypedDict, total=False):
    """Keyword arguments of :func:`dstee.compat.plain_masks.drop_grow`: what the drop and the growth rank."""

    round: int
    grads: Sequence[Tensor]
    drop_scores: Sequence[Tensor]
    grow_signal: Sequence[Tensor]
    grow_seeds: Sequence[int]
    bonus: Tensor


def check_gradients(rule: Rule, params: Mapping[str, Tensor]) -> None:
    """Raises RuntimeError naming the weights without the gradient that ``rule`` ranks."""
    missing = [name for name, p in params.items() if p.grad is None]
    if missing and rule.needs_gradients():
        raise RuntimeError(
            f"a mask update (death {rule.death!r}, growth {rule.growth!r}) is due, but these weights have no gradient: "
            f"{', '.join(missing)}. Call it between backward and zero_grad; remove_weight() those that the loss does not reach"
        )


def momentum_signal(optimizer: torch.optim.Optimizer, p: Tensor, name: str = "a weight") -> Tensor:
    """Momentum of ``p``: SGD's buffer, or Adam's ``m / (sqrt(v) + 1e-8)``.

    Raises:
        RuntimeError: the optimizer keeps neither for it (yet).
    """
    state = optimizer.state.get(p, {})
    if "exp_avg" in state:
        return state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)
    if state.get("momentum_buffer") is not None:
        return state["momentum_buffer"]
    raise RuntimeError(
        f"growth by momentum needs it, but the optimizer has none for {name}: use SGD with momentum or Adam, and step before"
    )


def update_arguments(
    rule: Rule,
    params: Mapping[str, Tensor],
    nnz: Sequence[int],
    mask: Callable[[str], Tensor],
    fired: Callable[[str], Tensor],
    optimizer: torch.optim.Optimizer,
    seeds: Sequence[int],
    t: int,
    round: int,
) -> tuple[list[int] | Tensor, UpdateArguments]:
    """How many weights each layer swaps (k), and the other arguments; :func:`check_gradients` before."""
    k: list[int] | Tensor = [
        0 if n == p.numel() else min(max(math.ceil(rule.rate * n), 0), n) for n, p in zip(nnz, params.values(), strict=True)
    ]
    found: UpdateArguments = {"round": round if rule.growth == "dst_ee" else 0}  # only counters have a last round
    grads = [grad for p in params.values() if (grad := p.grad) is not None] if rule.needs_gradients() else None
    if grads is not None:
        found["grads"] = grads
    if rule.death == "Taylor_FO":
        assert grads is not None
        found["drop_scores"] = [p.detach() * grad for p, grad in zip(params.values(), grads, strict=True)]
    elif rule.death == "SET":
        found["drop_scores"] = [two_sided(p.detach(), mask(name)) for name, p in params.items()]
    elif rule.death == "threshold":
        below = [((p.detach().abs() <= rule.threshold) & mask(name)).sum() for name, p in params.items()]
        k = torch.stack([n.to(below[0].device) for n in below])
    if rule.growth == "random":
        found["grow_seeds"] = seeds
    elif rule.growth == "random_unfired":
        found["grow_signal"] = [
            unfired_first(p, fired(name), seed) for (name, p), seed in zip(params.items(), seeds, strict=True)
        ]
    elif rule.growth == "momentum":
        found["grow_signal"] = [momentum_signal(optimizer, p, name) for name, p in params.items()]
    elif rule.growth == "dst_ee":
        found["bonus"] = bonus_table(rule.c, rule.eps, max(t, 1), round)
    return k, found


def two_sided(w: Tensor, mask: Tensor) -> Tensor:
    """SET's order of death: 1 for the active weight closest to zero on either side, 2 for the next; 0 for zeros. float32."""
    active = flat(mask)
    values, order = torch.sort(torch.where(active, flat(w).float().abs(), math.inf), stable=True)
    signed = flat(w)[order]
    positive, negative = (signed > 0) & (values < math.inf), (signed < 0) & (values < math.inf)
    ranks = torch.where(positive, positive.cumsum(0), torch.where(negative, negative.cumsum(0), 0)).float()
    return unflat(torch.empty_like(ranks).scatter_(0, order, ranks), mask)


def unfired_first(p: Tensor, fired: Tensor, seed: int) -> Tensor:
    """Uniform random scores, with every weight that was never active above all others. float32."""
    return unflat(random_signal(seed, p.numel(), p.device) + (flat(fired) == 0), fired)
