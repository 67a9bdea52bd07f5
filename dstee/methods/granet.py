"""GraNet (Liu et al., Sparse Training via Boosting Pruning Plasticity with Neuroregeneration, 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from dstee.methods.actions import Action, KeepGlobal, Swap
from dstee.methods.context import Start, Update
from dstee.methods.gradual import DenseToSparse, check_share, cubic_total
from dstee.methods.registry import register

__all__ = ["GraNet"]


@register
@dataclass(frozen=True, kw_only=True)
class GraNet(DenseToSparse):
    """GraNet: each update prunes over all layers by a cubic curve, then swaps the schedule's share of each layer as RigL does.

    Args:
        start_density: of the first, random masks, by the model's distribution; the authors' 0.5, or 1.
        end: where the curve reaches the target, as a share of the schedule's last update (ours: 1); swaps go on after it.

    Raises:
        ValueError: from ``sparsify``, where ``start_density`` is below the density to end with.
    """

    start_density: float = 0.5
    end: float = 1.0

    name = "GraNet"
    key = "granet"
    needs_gradients = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("end", self.end)
        if not 0 < self.start_density <= 1:
            raise ValueError(f"start_density must be in (0, 1], got {self.start_density}")

    def start(self, s: Start) -> Mapping[str, Tensor]:
        first = s.nnz_at(self.start_density)
        if sum(first.values()) < s.total:
            raise ValueError(
                f"GraNet would start with {sum(first.values())} active weights (start_density={self.start_density}), fewer "
                f"than the {s.total} it is to end with: raise start_density"
            )
        return s.random_masks(first)

    def plan(self, u: Update) -> Sequence[Action]:
        return [KeepGlobal(self.total), Swap()]

    def total(self, u: Update) -> int:
        return cubic_total(u, self.start_density, 0.0, self.end)
