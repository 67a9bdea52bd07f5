"""``RigLScheduler(exact="legacy")``: the original's behaviour, each quirk described where it happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dstee.compat.rigl_torch.fixed import Fixed
from dstee.compat.rigl_torch.layers import weights
from dstee.compat.rigl_torch.update import DenseGrad, Scheduler
from dstee.distributed import ranks

__all__ = ["Legacy", "legacy_rigl_update"]


class Legacy(Fixed):
    """The original in all that ``exact="fixed"`` does otherwise."""

    methods = ("rigl",)
    distributions = ("uniform",)
    records_static = True

    def check(self, sparse_weights: Mapping[str, Tensor]) -> None:
        """The original's update takes any weight."""

    def layers(self, model: nn.Module) -> list[tuple[nn.Parameter, bool]]:
        """Quirk: norms other than BatchNorm2d and embeddings are made sparse, and a shared weight counts each time."""
        found = []
        for _, w, owner in weights(model):
            if w is None:
                raise AttributeError(
                    f"{type(owner).__name__} has weight=None: the original fails here; exact='fixed' leaves it out"
                )
            found.append((w, isinstance(owner, nn.Linear)))
        return found

    def masked(self, grad: Tensor, mask: Tensor) -> Tensor:
        """Quirk: NaN and Inf outside the mask become NaN."""
        return grad * mask

    def after_step(self, optimizer: torch.optim.Optimizer, apply_masks: Callable[[], None]) -> None:
        """Quirk: ``optimizer.step`` takes no closure any more, and has no result."""
        inner = optimizer.step

        def step() -> None:
            inner()
            apply_masks()

        optimizer.step = step  # type: ignore[method-assign,assignment]

    def update(
        self, scheduler: Scheduler, fraction: float, counts: Sequence[Tensor] | None, bonus: Tensor | None, round: int
    ) -> None:
        """The original's update; it has no counters."""
        legacy_rigl_update(scheduler, fraction)
        scheduler.reset_momentum()
        scheduler.apply_mask_to_weights()
        scheduler.apply_mask_to_gradients()


@torch.no_grad()
def legacy_rigl_update(scheduler: Scheduler, fraction: float) -> None:
    """The original's update, layer by layer: two full sorts, with whatever order torch gives ties.

    Quirks: all positions compete to be kept, so where active weights are exactly 0 an inactive one may be kept in the place of
    one of them; of the optimizer's state only SGD's momentum is masked; ranks average abs(gradient).
    """
    for w, s, mask, hook in zip(
        scheduler.W, scheduler.S, scheduler.backward_masks, scheduler.backward_hook_objects, strict=True
    ):
        if s <= 0:
            continue
        mask, gradient = cast(Tensor, mask), cast(DenseGrad, hook).dense_grad
        grow = cast(Tensor, gradient).abs().flatten()  # quirk: without a gradient the original fails here
        ranks.mean_([grow])
        active = int(mask.sum())
        k = int(active * fraction)
        kept = torch.zeros_like(grow, dtype=torch.bool)
        kept[torch.topk(w.abs().flatten(), k=w.numel()).indices[: active - k]] = True
        lifted = torch.where(kept, grow.min() - 1, grow)
        new = kept.index_fill(0, torch.topk(lifted, k=w.numel()).indices[:k], True).view(w.shape)
        w.masked_fill_((new & ~kept.view(w.shape)) & ~mask, 0)
        mask.copy_(new)
