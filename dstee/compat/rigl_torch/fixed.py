"""``RigLScheduler(exact="fixed")``: exact numbers, defined ties, nothing is left outside the masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dstee.compat.rigl_torch.layers import weights
from dstee.compat.rigl_torch.update import Scheduler, rigl_update
from dstee.sparse_layer import check_parameter

__all__ = ["Fixed"]


class Fixed:
    """What a scheduler does where ``exact="legacy"`` differs, which overrides these methods."""

    methods: tuple[str, ...] = ("rigl", "dst_ee")
    distributions: tuple[str, ...] = ("uniform", "erk")
    records_static = False  # whether dense gradients are kept with static_topo, for no use

    def layers(self, model: nn.Module) -> list[tuple[nn.Parameter, bool]]:
        """Each weight to make sparse, and whether it is a Linear's: no vectors, no embeddings, shared weights once."""
        found: dict[int, tuple[nn.Parameter, bool]] = {}
        for _, w, owner in weights(model):
            if w is not None and w.dim() >= 2 and not isinstance(owner, nn.Embedding | nn.EmbeddingBag):
                found.setdefault(id(w), (w, isinstance(owner, nn.Linear)))
        return list(found.values())

    def check(self, sparse_weights: Mapping[str, Tensor]) -> None:
        """Raises TypeError or ValueError for a weight that the kernels could not update, before anything is masked."""
        for name, w in sparse_weights.items():
            check_parameter(name, w)

    def masked(self, grad: Tensor, mask: Tensor) -> Tensor:
        """A gradient on its way to the optimizer; NaN and Inf outside the mask go, too."""
        return torch.where(mask, grad, 0)

    def after_step(self, optimizer: torch.optim.Optimizer, apply_masks: Callable[[], None]) -> None:
        """Has ``apply_masks`` called after each ``optimizer.step()``."""

        def after(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
            apply_masks()

        optimizer.register_step_post_hook(after)

    def update(
        self, scheduler: Scheduler, fraction: float, counts: Sequence[Tensor] | None, bonus: Tensor | None, round: int
    ) -> None:
        """One update of the masks; see :func:`dstee.compat.rigl_torch.update.rigl_update`."""
        rigl_update(scheduler, fraction, counts=counts, bonus=bonus, round=round)
