"""SNIP (Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dstee.methods.context import Start
from dstee.methods.registry import register
from dstee.methods.scoring_copy import AtInitialisation, scoring_copy
from dstee.score_masks import masks_from_scores

__all__ = ["SNIP"]


@register
@dataclass(frozen=True, kw_only=True)
class SNIP(AtInitialisation):
    """The weights to which the loss is most sensitive at the start, ``abs(g * w)``, for good.

    g is the gradient by the dense weights, summed over the batches that :func:`dstee.sparsify` got: one is the paper's
    mini-batch; several of one size are a larger one, as the Synaptic-Flow repository accumulates them. The model is copied
    and runs in the modes that it is in, training as a rule, with the weights that it has: the authors' repository scores
    newly drawn ones instead. Ranks of a distributed training need the same batches.

    Args:
        scope: "global": the highest scores of all layers together, as in the paper; a warning names layers that are left
            empty. "layer": the highest scores of each layer, as many as the distribution gives it.
    """

    scope: Literal["global", "layer"] = "global"

    name = "SNIP"
    key = "snip"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in ("global", "layer"):
            raise ValueError(f"scope must be 'global' or 'layer', got {self.scope!r}")

    def start(self, s: Start) -> Mapping[str, Tensor]:
        with scoring_copy(self.name, s) as copy:
            scores = {name: x.abs() for name, x in copy.scores(copy.gradients(s.samples())).items()}
        masks = masks_from_scores(scores, total=s.total) if self.scope == "global" else masks_from_scores(scores, s.nnz)
        return masks
