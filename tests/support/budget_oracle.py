"""The ops that move budgets, written a second time in Python numbers and sorted lists; as ``oracle``."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from support.oracle import F32, bits_of, bonuses, orderable, random_number, to_float32

from dstee.sparsity_distribution import seed64
from dstee.testing import Case

__all__ = ["global_keep", "growth_scale", "histogram", "noise", "some_drop_from"]

WORD = 2**32 - 1


def floats(t: torch.Tensor) -> F32:
    return to_float32(bits_of(t), t.dtype)


def global_keep(scores: list[F32], masks: list[NDArray[np.bool_]], total: int) -> list[NDArray[np.bool_]]:
    """The masks afterwards."""
    found = []
    for layer, (score, mask) in enumerate(zip(scores, masks, strict=True)):
        for i in np.flatnonzero(mask).tolist():
            value = float(score[i])
            found.append((math.isnan(value), 0.0 if math.isnan(value) else -value, layer, i))
    kept = [np.zeros_like(mask) for mask in masks]
    for _, _, layer, i in sorted(found)[:total]:
        kept[layer][i] = True
    return kept


def _mix(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & WORD
    x ^= x >> 15
    x = x * 0x846CA68B & WORD
    return x ^ x >> 16


def growth_scale(signal: torch.Tensor, mask: NDArray[np.bool_], k: int, round: int) -> float:
    size, n = np.abs(floats(signal)), len(mask)
    strata = min(n, 8192)
    values = []
    for s in range(strata):
        start, end = s * n // strata, (s + 1) * n // strata
        at = start + _mix(_mix(s) ^ round) * (end - start) // 2**32
        if not mask[at]:
            values.append(-1.0 if np.isnan(size[at]) else float(size[at]))
    rank = max(1, math.ceil(max(k, 0) * strata / n)) if n else 1
    value = sorted(values, reverse=True)[min(rank, len(values)) - 1] if values else 0.0
    return value if value > 0 else 2.0**-126


Key = tuple[int, int, int]


def _places(case: Case, i: int) -> list[int]:
    n = case.params[i].numel()
    base, run, pitch = case.options["where"][i] if case.options.get("where") else (0, max(n, 1), max(n, 1))
    return [base + j // run * pitch + j % run for j in range(n)]


def _drop_keys(case: Case, i: int, total: int) -> list[Key]:
    far = orderable(floats((case.options.get("drop_scores") or case.params)[i]))
    return [(0x7F80_0001 - x, 0, total - 1 - place) for x, place in zip(far, _places(case, i), strict=True)]


def some_drop_from(case: Case, totals: list[int], rng: np.random.Generator) -> torch.Tensor:
    """For each layer a key as ``drop_from`` has: beyond all, below all, that of a weight, or near one."""
    rows: list[Key] = []
    for i, mask in enumerate(case.masks()):
        row: Key = (2**62, 0, 0) if rng.random() < 0.2 else (0, 0, 0)
        active = np.flatnonzero(mask.numpy())
        if len(active) and rng.random() < 0.8:
            first, _, last = _drop_keys(case, i, totals[i])[int(rng.choice(active))]
            tails = [(0, last), (0, last), (0, last + 1), (0, last >> 8 << 8), (0, 0), (1, 0), (0, 2**62)]
            row = (first, *tails[int(rng.integers(0, len(tails)))])
            if rng.random() < 0.2:
                row = (first >> 16 << 16, 0, 0)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64)


def histogram(
    case: Case, i: int, total: int, *, growth: bool, word: int, shift: int, prefix: list[int], drop_from: Key | None = None
) -> list[int]:
    """The counts of one byte of the keys of layer i."""
    options, mask, places = case.options, case.masks()[i].numpy(), _places(case, i)
    words = _drop_keys(case, i, total)
    candidates = np.flatnonzero(mask).tolist()
    if growth:
        dropped = [j for j in candidates if drop_from is not None and words[j] >= drop_from]
        candidates = np.flatnonzero(~mask).tolist() + dropped
        if options.get("grow_seeds"):
            g = np.array([random_number(options["grow_seeds"][i], j) for j in places], dtype=np.float32)
        else:
            signals = options.get("grow_signal") or case.grads
            assert signals is not None
            g = np.abs(floats(signals[i]))
        with np.errstate(over="ignore", invalid="ignore"):
            score = g if case.bonus is None else g + bonuses(case, i)[case.N[i].numpy()]
        first, second = orderable(score), orderable(g)
        words = [(first[j], 0 if case.bonus is None else second[j], words[j][2]) for j in range(len(mask))]
    found = [0] * 256
    for j in candidates:
        key = words[j]
        if list(key[:word]) == prefix[:word] and key[word] // 256 // 2**shift == prefix[word] // 256 // 2**shift:
            found[key[word] // 2**shift % 256] += 1
    return found


def noise(places: list[int], seed: int, step: int) -> list[float]:
    """Each number is a float32."""
    seeds = [seed64("noise", seed, str(j), step) for j in range(4)]
    sums = [sum(int(random_number(s, place) * 2**24) for s in seeds) for place in places]
    return [float(np.float32(x - 2**25 + 2) / np.float32(2**24)) for x in sums]
