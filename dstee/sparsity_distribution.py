"""How many weights each layer keeps, and which ones at the start.

``shapes`` maps layer names to weight shapes; every function returns the number of active weights (nnz) per name. The counts
are exact: their total is ``round((1 - sparsity) * total)``, each within one weight of the layer's real-valued share, and no
non-empty layer is left without a weight unless the budget has fewer weights than there are layers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Shapes", "erk", "explicit", "mask_hashes", "random_mask", "seed64", "uniform"]

Shapes = Mapping[str, Sequence[int]]


def uniform(shapes: Shapes, sparsity: float, *, dense_first: bool = False) -> dict[str, int]:
    """The same density in every layer.

    With ``dense_first`` the first layer stays dense and the others are made sparser, so that the total budget still holds.

    Raises:
        ValueError: ``sparsity`` is outside [0, 1), no weight would be left, or the dense layer uses up the whole budget.
    """
    sizes = _sizes(shapes)
    density, budget = _budget(sizes, sparsity)
    if not dense_first or not sizes:
        return _round({name: density * n for name, n in sizes.items()}, sizes, budget)
    (first, n), *others = sizes.items()
    rest = sum(m for _, m in others)
    if n > budget or (n == budget and rest):
        raise ValueError(
            f"the dense first layer {first!r} has {n} weights and the whole budget is {budget}: nothing is left for the "
            "other layers; use a lower sparsity or distribution='uniform'"
        )
    left = density * (n + rest) - n
    return {first: n} | _round({name: left * m / (rest or 1) for name, m in others}, sizes, budget - n)


def erk(shapes: Shapes, sparsity: float, *, power: float = 1.0) -> dict[str, int]:
    """Erdos-Renyi-Kernel densities: proportional to ``(sum(shape) / prod(shape)) ** power``, never above 1.

    Layers that would exceed density 1 become dense (all tied maxima at once) and the rest is solved again for what remains of
    the budget. Exact rational arithmetic, so ties and counts are the same on every machine.

    Raises:
        ValueError: ``sparsity`` is outside [0, 1), no weight would be left, or ``power`` is outside 0..10.
    """
    if not 0 <= power <= 10:
        raise ValueError(f"power must be in 0..10 (1 is ERK, 0 is uniform), got {power}")
    sizes = _sizes(shapes)
    density, budget = _budget(sizes, sparsity)
    score = {name: _erk_score(shapes[name], power) for name, n in sizes.items() if n}
    left = density * sum(sizes.values())
    shares = {name: Fraction(0) for name in sizes}
    open_layers = set(score)
    while open_layers:
        scale = left / sum(score[name] * sizes[name] for name in open_layers)
        largest = max(score[name] for name in open_layers)
        if scale * largest <= 1:
            shares |= {name: scale * score[name] * sizes[name] for name in open_layers}
            break
        dense = {name for name in open_layers if score[name] == largest}
        shares |= {name: Fraction(sizes[name]) for name in dense}
        left -= sum(sizes[name] for name in dense)
        open_layers -= dense
    return _round(shares, sizes, budget)


def _erk_score(shape: Sequence[int], power: float) -> Fraction:
    raw = Fraction(sum(shape) or 1, math.prod(shape))
    return raw if power == 1 else Fraction(float(raw) ** power)


def explicit(shapes: Shapes, sparsities: Mapping[str, float]) -> dict[str, int]:
    """One sparsity per layer: ``round((1 - sparsity) * n)`` weights each, at least one in a non-empty layer.

    Raises:
        ValueError: a layer is missing, a name is unknown (all are listed), or a sparsity is outside [0, 1).
    """
    missing = [name for name in shapes if name not in sparsities]
    unknown = [name for name in sparsities if name not in shapes]
    if missing or unknown:
        found = [f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
        raise ValueError(f"the sparsity map must name every sparse layer exactly once; {'; '.join(found)}")
    for name in shapes:
        _check_sparsity(sparsities[name], f"sparsity of {name!r}")
    return {name: max(round((1 - sparsities[name]) * n), min(n, 1)) for name, n in _sizes(shapes).items()}


def _sizes(shapes: Shapes) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in shapes.items()}


def _check_sparsity(sparsity: float, what: str = "sparsity") -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(f"{what} must be in [0, 1), the share of weights that are zero, got {sparsity}")


def _budget(sizes: Mapping[str, int], sparsity: float) -> tuple[Fraction, int]:
    """The density, exactly, and the weights it leaves."""
    _check_sparsity(sparsity)
    sparsity, total = float(sparsity), sum(sizes.values())
    budget = round((1 - sparsity) * total)
    if total and not budget:
        raise ValueError(f"sparsity {sparsity} leaves none of the {total} weights: use at most {1 - 1 / total:.6g}")
    return 1 - Fraction(sparsity), budget


def _round(shares: Mapping[str, Fraction], sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """Largest remainder: every share rounded down, the weights still missing go to the largest fractions (first on ties)."""
    counts = {name: math.floor(share) for name, share in shares.items()}
    by_fraction = sorted(shares, key=lambda name: counts[name] - shares[name])
    for name in by_fraction[: budget - sum(counts.values())]:
        counts[name] += 1
    # A layer without a weight cuts the network: it gets one from whoever is furthest above (or least below) its share.
    empty = sorted((name for name in counts if sizes[name] and not counts[name]), key=lambda name: -shares[name])
    for name in empty:
        donors = [donor for donor in counts if counts[donor] > 1]
        if not donors:
            break
        counts[max(donors, key=lambda donor: counts[donor] - shares[donor])] -= 1
        counts[name] = 1
    return counts


def seed64(purpose: str, seed: int, name: str, round: int = 0) -> int:
    """A signed 64-bit seed that depends on all its arguments and on nothing else (blake2b)."""
    text = f"{purpose}\0{int(seed)}\0{int(round)}\0{name}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def random_mask(n: int, nnz: int, seed: int, name: str) -> Tensor:
    """A random mask: bool [n] on the CPU with exactly ``nnz`` True, the same on every machine.

    Active are the ``nnz`` indices with the smallest 64-bit hash. The hash is a bijection of the index, so nothing ever ties.

    Raises:
        ValueError: ``nnz`` is outside 0..n.
    """
    if not 0 <= nnz <= n:
        raise ValueError(f"nnz of {name!r} must be in 0..{n}, got {nnz}")
    if nnz in (0, n):
        return torch.full((n,), nnz > 0)
    key = mask_hashes(np.arange(n, dtype=np.uint64), seed, name)
    return torch.from_numpy(key <= np.partition(key, nnz - 1)[nnz - 1])


def mask_hashes(index: npt.NDArray[np.uint64], seed: int, name: str) -> npt.NDArray[np.uint64]:
    """The 64-bit hash of each ``index``, written over it."""
    index += np.uint64(1)  # splitmix64: uint64 arrays wrap, everywhere the same
    index *= np.uint64(0x9E3779B97F4A7C15)
    index += np.uint64(seed64("mask", seed, name) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        index ^= index >> np.uint64(shift)
        index *= np.uint64(factor)
    return index
