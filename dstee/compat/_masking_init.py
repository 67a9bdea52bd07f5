"""The initial masks of ``Masking``."""

from __future__ import annotations

import torch
from torch import Tensor

from dstee import sparsity_distribution as distributions
from dstee.compat import _masking_legacy as legacy
from dstee.compat._state import keep_largest

MODES = ("ERK", "uniform", "GMP", "lottery_ticket")


def draw(mode: str, params: dict[str, Tensor], density: float, power: float, seed: int, quirks: bool) -> dict[str, Tensor]:
    """Bool or float masks by name.

    Without ``quirks`` numbers are exact and depend on ``seed`` and the names alone; with them, weights are drawn one by one
    from torch's CPU generator, and ties with the smallest lottery ticket are all kept.

    Raises:
        ValueError: the mode is unknown or the density is outside (0, 1].
    """
    if mode not in MODES:
        hint = ", which in the original leaves all masks 0" if mode == "ER" else ""
        raise ValueError(f"sparse_init {mode!r} is not supported{hint}; choose from {', '.join(MODES)}")
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], the share of active weights, got {density}")
    shapes = {name: p.shape for name, p in params.items()}
    if mode == "GMP":
        return {name: torch.ones_like(p, dtype=torch.bool) for name, p in params.items()}
    if mode == "lottery_ticket":
        device = next(iter(params.values())).device
        scores = torch.cat([p.detach().abs().float().flatten().to(device) for p in params.values()])
        k = int(scores.numel() * density)
        if k == 0:
            raise ValueError(f"density {density} leaves none of the {scores.numel()} weights")
        kept = scores >= torch.topk(scores, k).values[-1] if quirks else keep_largest(scores, k)
        parts = kept.split([shape.numel() for shape in shapes.values()])
        return {name: part.view(shapes[name]) for name, part in zip(params, parts, strict=True)}
    if quirks:
        erk = mode == "ERK"
        densities = legacy.density_init(shapes, density, power) if erk else dict.fromkeys(params, density)
        return {name: legacy.bernoulli(shape, densities[name]) for name, shape in shapes.items()}
    nnz = distributions.erk(shapes, 1 - density, power=power) if mode == "ERK" else distributions.uniform(shapes, 1 - density)
    return {name: distributions.random_mask(shape.numel(), nnz[name], seed, name).view(shape) for name, shape in shapes.items()}
