"""Random cases over everything an update can be asked to do; one seed, one case, the same on every machine."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dstee.encoding import bonus_table
from dstee.ops import SGDRule
from dstee.testing import DTYPES, FAMILIES, LARGE_SIZES, ROUNDS, SIZES, Case, make_case, place, values


def _flag(rng: np.random.Generator, value: float) -> torch.Tensor:
    """A one-element tensor of any shape."""
    return torch.full([(), (1,), (1, 1)][int(rng.integers(0, 3))], value)


def _rule(rng: np.random.Generator) -> SGDRule:
    momentum = float(rng.choice([0.0, 0.9, 0.9, 0.99]))
    nesterov = momentum > 0 and bool(rng.random() < 0.4)
    lr = float(rng.choice([0.1, 0.01, 1.0, 0.0]))
    lr_tensor = _flag(rng, lr).to(torch.float64 if rng.random() < 0.3 else torch.float32) if rng.random() < 0.3 else None
    return SGDRule(
        lr=lr if lr_tensor is None else lr_tensor,
        momentum=momentum,
        dampening=0.0 if nesterov else float(rng.choice([0.0, 0.1])),
        weight_decay=float(rng.choice([0.0, 5e-4, 0.1])),
        nesterov=nesterov,
        maximize=bool(rng.random() < 0.2),
        first_step=bool(rng.random() < 0.2),
    )


def _sizes(rng: np.random.Generator, seed: int) -> list[int]:
    if seed % 18 == 0:
        return [int(rng.choice(LARGE_SIZES)), int(rng.choice(SIZES))]
    count = int(rng.choice([1, 2, 3, 9]))
    return [int(n) for n in rng.choice(SIZES, count)]


def _signal(case: Case, rng: np.random.Generator, family: str, dtype: torch.dtype) -> list[torch.Tensor]:
    odd = int(rng.integers(0, 2))
    return [place(values(family, p.numel(), rng).to(dtype), p, odd) for p in case.params]


def _with_signals(case: Case, rng: np.random.Generator, family: str) -> Case:
    """Other things to rank: tensors of their own, or ones the call has anyway (momentum: SNFS; gradient)."""
    options: dict[str, Any] = dict(case.options)
    dtypes = (torch.float32, case.params[0].dtype)
    drop, grow = rng.random(2)
    if drop < 0.15:
        options["drop_scores"] = _signal(case, rng, family, dtypes[int(rng.integers(0, 2))])
    elif drop < 0.3:
        options["drop_scores"] = [case.grads, case.params, case.momenta or case.params][int(rng.integers(0, 3))]
    if grow < 0.15:
        options["grow_signal"] = _signal(case, rng, family, dtypes[int(rng.integers(0, 2))])
    elif grow < 0.3 and case.momenta:
        options["grow_signal"] = case.momenta
    elif grow < 0.45:
        options["grow_seeds"] = [int(s) for s in rng.integers(-(2**63), 2**63 - 1, len(case.params))]
    replaced = "grow_signal" in options or "grow_seeds" in options
    aliased = options.get("drop_scores") is case.grads
    drop_grads = replaced and case.sgd is None and not aliased and rng.random() < 0.5
    return replace(case, options=options, grads=None if drop_grads else case.grads)


def _swap_counts(case: Case, rng: np.random.Generator) -> list[int] | torch.Tensor:
    active = [int(m.sum()) for m in case.masks()]
    kind = rng.random()
    if kind < 0.15:
        return active
    if kind < 0.3:
        return [min(int(rng.integers(0, 2)), a) for a in active]
    if kind < 0.5:
        return [int(rng.integers(0, a + 1)) for a in active]
    if kind < 0.65:  # a tensor is clipped where it lies
        return torch.tensor([int(rng.choice([a // 2, a, a + 3, 2**40, -1])) for a in active])
    return case.k


@functools.cache
def update(seed: int) -> Case:
    """One mask update, with or without a fused step. Clone before use."""
    rng = np.random.default_rng([seed, 1])
    family = FAMILIES[seed % len(FAMILIES)]
    options: dict[str, Any] = dict(regrow=bool(rng.random() < 0.7), reset_regrown=bool(rng.random() < 0.3))
    if rng.random() < 0.15:
        options["found_inf"] = _flag(rng, float(rng.choice([0.0, 0.0, 1.0])))
    case = make_case(
        seed,
        _sizes(rng, seed),
        family=family,
        dtype=DTYPES[seed // len(FAMILIES) % 3],
        density=float(rng.choice([0.0, 1e-9, 0.02, 0.1, 0.5, 0.9, 1.0], p=[0.05, 0.05, 0.2, 0.4, 0.15, 0.1, 0.05])),
        round=int(rng.choice(ROUNDS)),
        layout=str(rng.choice(["flat", "matrix", "transposed", "channels_last"])),
        odd=bool(rng.random() < 0.4),
        counted=bool(rng.random() < 0.8),
        sgd=_rule(rng) if rng.random() < 0.5 else None,
        **options,
    )
    if (case.sgd is None or case.sgd.momentum == 0) and rng.random() < 0.3:
        case = replace(case, momenta=None)
    if case.bonus is not None and rng.random() < 0.1:
        case = replace(case, bonus=None)
    case = _with_signals(case, rng, family)
    return replace(case, k=_swap_counts(case, rng))


@functools.cache
def uneven(seed: int) -> Case:
    """As :func:`update`, with a k_grow of its own; parts of larger layers, scaled bonuses. Clone before use."""
    rng = np.random.default_rng([seed, 3])
    case = update(seed)
    options = dict(case.options)
    drop, grow = [], []
    for mask in case.masks():
        active, inactive = int(mask.sum()), int((~mask).sum())
        drop.append(int(rng.choice([0, min(1, active), active // 3, active, rng.integers(0, active + 1)])))
        room = inactive + (drop[-1] if options["regrow"] else 0)
        grow.append(int(rng.choice([0, min(1, room), room // 3, room, rng.integers(0, room + 1)])))
    k: list[int] | torch.Tensor = drop
    options["k_grow"] = grow
    kind = rng.random()
    if kind < 0.3:  # tensors are clipped where they lie
        options["k_grow"] = torch.tensor([x + int(rng.choice([0, 0, 2**40, -(2**40)])) for x in grow])
        if kind < 0.2:
            k = torch.tensor([x + int(rng.choice([0, 0, 2**40, -(2**40)])) for x in drop])
    if rng.random() < 0.5:
        runs = [int(rng.integers(1, p.numel() + 2)) for p in case.params]
        options["where"] = [(int(rng.integers(0, 2**34)), run, run + int(rng.integers(0, 2**20))) for run in runs]
    bonus = case.bonus
    if bonus is not None and rng.random() < 0.5:
        bonus = bonus_table(0.1, 1.0, 1000, case.round, dtype=torch.float64)
        scales = rng.choice([0.0, 2.0**-126, 1e-6, 1e-3, 0.037, 1.0, np.inf], len(case.params))
        options["bonus_scale"] = torch.from_numpy(scales.astype(np.float32))
    return replace(case, k=k, options=options, bonus=bonus)


@functools.cache
def step(seed: int) -> Case:
    """One masked SGD step. Clone before use."""
    rng = np.random.default_rng([seed, 2])
    rule = _rule(rng)
    case = make_case(
        seed,
        _sizes(rng, seed),
        family=FAMILIES[seed % len(FAMILIES)],
        dtype=DTYPES[seed // len(FAMILIES) % 3],
        density=float(rng.choice([0.0, 1e-9, 0.02, 0.1, 0.5, 0.9, 1.0], p=[0.05, 0.05, 0.2, 0.4, 0.15, 0.1, 0.05])),
        layout=str(rng.choice(["flat", "matrix", "transposed", "channels_last"])),
        odd=bool(rng.random() < 0.4),
        counted=False,
        sgd=rule,
    )
    if rule.momentum == 0 and rng.random() < 0.5:
        case = replace(case, momenta=None)
    if rng.random() < 0.2:
        case.options["found_inf"] = _flag(rng, float(rng.choice([0.0, 1.0, float("nan")])))
    return replace(case, grad_scale=_flag(rng, float(rng.choice([65536.0, 3.0]))) if rng.random() < 0.3 else None)
