"""The initial masks of ``Masking``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["MODES", "draw"]

MODES = ("ERK", "uniform", "GMP", "lottery_ticket")


def draw(
    mode: str,
    params: Mapping[str, Tensor],
    density: float,
    random_masks: Callable[[], dict[str, Tensor]],
    keep_largest: Callable[[Tensor, int], Tensor],
) -> dict[str, Tensor]:
    """Bool or float masks by name: ``random_masks`` for "ERK" and "uniform", all weights for "GMP", and for "lottery_ticket"
    the largest weights of all layers by ``keep_largest(scores, number)``.

    Raises:
        ValueError: the mode is unknown or the density is outside (0, 1].
    """
    if mode not in MODES:
        hint = ", which in the original leaves all masks 0" if mode == "ER" else ""
        raise ValueError(f"sparse_init {mode!r} is not supported{hint}; choose from {', '.join(MODES)}")
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], the share of active weights, got {density}")
    if mode == "GMP":
        return {name: torch.ones_like(p, dtype=torch.bool) for name, p in params.items()}
    if mode != "lottery_ticket":
        return random_masks()
    device = next(iter(params.values())).device
    scores = torch.cat([p.detach().abs().float().flatten().to(device) for p in params.values()])
    k = int(scores.numel() * density)
    if k == 0:
        raise ValueError(f"density {density} leaves none of the {scores.numel()} weights")
    parts = keep_largest(scores, k).split([p.numel() for p in params.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(params.items(), parts, strict=True)}
