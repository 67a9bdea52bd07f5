"""The rules of ITOP's ``Masking`` as they are, layer by layer, with their quirks; each is described where it happens.

Masks are float tensors of the weight's shape. Random numbers come from torch's global CPU generator, in the original's order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def density_init(shapes: dict[str, torch.Size], density: float, power: float) -> dict[str, float]:
    """ERK densities in float64; layers that would exceed 1 become dense, all tied maxima at once."""
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    raw = {name: (sum(shape) / sizes[name]) ** power for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        budget = sum(-n * (1 - density) if name in dense else n * density for name, n in sizes.items())
        scale = budget / sum(raw[name] * n for name, n in sizes.items() if name not in dense)
        largest = max(score for name, score in raw.items() if name not in dense)
        if scale * largest <= 1:
            return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
        dense |= {name for name, score in raw.items() if score == largest}


def bernoulli(shape: torch.Size, density: float) -> Tensor:
    """Quirk: every weight is active with this probability, so the number of active weights is random."""
    return (torch.rand(shape) < density).float()


def death(mode: str, rate: float, mask: Tensor, w: Tensor, grad: Tensor | None) -> Tensor:
    """The mask after the drop: bool or float."""
    nonzeros = mask.sum().item()
    remove = math.ceil(rate * nonzeros)
    k = mask.numel() - int(nonzeros) + remove
    if mode == "Taylor_FO":
        # Quirk: inactive weights (score 0) take part; an active weight with score 0 may survive in the place of one of them.
        assert grad is not None
        order = torch.sort((w * grad).pow(2).flatten()).indices
        return mask.flatten().index_fill(0, order[:k], 0.0).view(mask.shape)
    if mode == "SET":
        # Quirk: the negative side's threshold is its half-th smallest value: all negative weights die except the half - 1
        # farthest from zero, instead of the half closest to it. Zeros die always.
        half = math.ceil(remove / 2.0)
        lowest = torch.sort(w[w > 0.0].flatten()).values
        positive = (w > lowest[min(half, lowest.numel()) - 1]) & (w > 0.0)
        lowest = torch.sort(w[w < 0.0].flatten()).values
        return positive | ((w < lowest[min(half, lowest.numel()) - 1]) & (w < 0.0))
    if mode == "threshold":
        raise AttributeError("'Masking' object has no attribute 'threshold': the original's threshold death fails like this")
    if remove == 0:
        return w != 0.0  # quirk: active weights that are exactly 0 die although none should
    # Quirk: whatever ties with the k-th smallest dies with it; where that is 0, all active zeros do.
    return w.abs() > torch.sort(w.abs().flatten()).values[k - 1]


def random_growth(mask: Tensor, regrow: int) -> Tensor:
    """Quirk: every inactive weight grows with the same probability, so the number grown is random."""
    n = int((mask == 0).sum())
    if n == 0:
        return mask
    grown = (mask != 0) | (torch.rand(mask.shape) < regrow / n).to(mask.device)
    return grown if bool(grown.any()) else mask


def random_unfired_growth(mask: Tensor, fired: Tensor, regrow: int) -> Tensor:
    """An exact sample of weights that were never active; when they are too few, all of them and Bernoulli growth."""
    if not bool((mask == 0).any()):
        return mask
    unfired = (fired.flatten() == 0).nonzero()
    if regrow <= unfired.shape[0]:
        chosen = unfired[torch.randperm(unfired.shape[0])[:regrow].to(mask.device)]
        return mask.flatten().index_fill(0, chosen.flatten(), 1).view(mask.shape)
    grown = (mask != 0) | (fired == 0)
    n = int((~grown).sum())
    # Quirk: with no inactive weight left the probability is a division by zero.
    return grown | (torch.rand(mask.shape) < (regrow - unfired.shape[0]) / n).to(mask.device)


def ranked_growth(mask: Tensor, signal: Tensor, regrow: int) -> Tensor:
    """Quirk: with fewer than ``regrow`` inactive weights of non-zero signal, the rest of the quota falls on weights that may
    be active already, and the density shrinks."""
    order = torch.sort((signal * (mask == 0)).abs().flatten(), descending=True).indices
    return mask.flatten().index_fill(0, order[:regrow], 1).view(mask.shape)
