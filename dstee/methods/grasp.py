"""GraSP (Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow, 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dstee.methods.context import Start
from dstee.methods.registry import register
from dstee.methods.scoring_copy import AtInitialisation, scoring_copy
from dstee.score_masks import masks_from_scores

__all__ = ["GraSP"]


@register
@dataclass(frozen=True, kw_only=True)
class GraSP(AtInitialisation):
    """The weights whose removal would reduce the gradient's norm most, for good: of ``-w * (H g)`` the largest go.

    g and H are the gradient and the Hessian of the loss by the dense weights, each summed over the batches that
    :func:`dstee.sparsify` got, which are all held in memory, and seen twice. The model is copied and runs in the modes that
    it is in, training as a rule, with the weights that it has: the authors' repository draws those of linear layers anew,
    and the batches with as many samples of each class. The highest of all layers together stay; a warning names layers that
    are left empty. Ranks of a distributed training need the same batches.

    Args:
        temperature: what the model's output is divided by before the loss.
    """

    temperature: float = 200.0

    name = "GraSP"
    key = "grasp"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be a finite number > 0, got {self.temperature}")

    def start(self, s: Start) -> Mapping[str, Tensor]:
        with scoring_copy(self.name, s) as copy:
            batches = list(s.samples())
            g = copy.gradients(batches, self.temperature)
            scores = copy.scores(copy.gradients(batches, self.temperature, along=g))
        masks = masks_from_scores(scores, total=s.total)
        return masks
