"""SynFlow (Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dstee.methods.context import Start, map_tensors
from dstee.methods.registry import register
from dstee.methods.scoring_copy import AtInitialisation, ScoringCopy, scoring_copy

__all__ = ["SynFlow"]


@register
@dataclass(frozen=True, kw_only=True)
class SynFlow(AtInitialisation):
    """The weights through which most of the network's flow goes, found in rounds of pruning without data, for good.

    The flow is the sum of the outputs for an input of ones, in eval mode and with absolute values in place of all parameters
    and buffers; a weight's score is its share of it, ``abs(w * gradient)``. Round r of n keeps of all layers together the
    ``size * (total / size) ** (r / n)`` highest, rounded up, the last one exactly ``total``; of equal scores the first in
    layer and index stays. It is computed in float64, because flows through many layers span hundreds of orders of magnitude:
    on a copy of the model, which must compute in the dtype of its weights.

    The input of ones is like one sample of the batches that :func:`dstee.sparsify` got: of the first one's inputs the shapes
    and dtypes are used, of values none.

    Args:
        rounds: how often weights are pruned.
        biases: False: biases and running means count as 0, as in the paper's flow, a product of weights. In a chain of layers
            each then carries the whole flow, and none is emptied, because a round in which the scores that go add up to
            all of it is split into several (the paper's Theorem 3). True: they are made absolute, too, and rounds never
            split, as in the authors' repository, most of whose networks start with biases of 0: others add to the flow
            behind a layer, and the first layers of deep networks are emptied at high sparsities.
    """

    rounds: int = 100
    biases: bool = False

    name = "SynFlow"
    key = "synflow"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise ValueError(f"rounds must be an int of at least 1, got {self.rounds!r}")
        if not isinstance(self.biases, bool):
            raise ValueError(f"biases must be True or False, got {self.biases!r}")

    def start(self, s: Start) -> Mapping[str, Tensor]:
        if s.total < len(s.weights):
            raise ValueError(
                f"{self.name} keeps a path through all layers, but {s.total} active weights are fewer than the "
                f"{len(s.weights)} layers: ask for a lower sparsity"
            )
        masks = {name: mask.contiguous() for name, mask in s.dense_masks().items()}
        with scoring_copy(self.name, s, torch.float64) as copy:
            self._make_positive(copy.model)
            ones = self._ones(s)
            for r, target in enumerate(self._totals(s), 1):
                while sum(int(mask.sum()) for mask in masks.values()) > target:
                    masks = self._pruned(copy, ones, masks, target, r)
                    for name, w in copy.weights.items():
                        w.data.mul_(masks[name].to(w.device))
        return masks

    @torch.no_grad()
    def _make_positive(self, model: nn.Module) -> None:
        model.eval()
        for name, t in model.state_dict().items():
            if isinstance(t, Tensor) and t.is_floating_point():
                last = name.rpartition(".")[2]
                none = not self.biases and ("bias" in last or last == "running_mean")
                t.zero_() if none else t.abs_()

    def _ones(self, s: Start) -> Any:
        """One sample of ones, like those of the first batch."""
        first = next(s.samples(), None)
        if first is None:
            raise ValueError(f"{self.name} takes the shape of its input from the first batch, but batches are empty")
        return map_tensors(lambda t: t.new_ones((1, *t.shape[1:]) if t.dim() else ()), first[0])

    def _totals(self, s: Start) -> list[int]:
        """How many weights each round keeps."""
        size = sum(w.numel() for w in s.weights.values())
        steps = [math.ceil(size * (s.total / size) ** (r / self.rounds)) for r in range(1, self.rounds)]
        return [max(k, s.total) for k in steps] + [s.total]

    def _pruned(self, copy: ScoringCopy, ones: Any, masks: dict[str, Tensor], k: int, r: int) -> dict[str, Tensor]:
        """The masks of round ``r``, with ``k`` weights, or more where those that go would take the whole flow along."""
        flow = copy.tensor(copy.output(ones)).sum()
        found = copy.gradients_of(flow)
        if missing := [name for name in copy.weights if name not in found]:
            raise ValueError(f"{self.name}: the output does not depend on {', '.join(missing)}; exclude= leaves it dense")
        scores = {name: x.abs_() for name, x in copy.scores(found).items()}
        most = float(torch.stack([x.max() for x in scores.values()]).max())
        if not 0 < most < math.inf:
            raise ValueError(
                f"{self.name}: the highest score of round {r} of {self.rounds} is {most}, so nothing can be ranked: "
                + ("no path of weights that are not 0 leads to the output" if most == 0 else "the output is beyond float64")
            )
        kept = _highest(scores, masks, k)
        limit = float(flow.detach()) * (1 - 1e-9)  # rounding must not make the last weight of a layer look like a part of it
        if self.biases or sum(float(x.masked_fill(kept[name], 0).sum()) for name, x in scores.items()) < limit:
            return kept
        active = torch.cat([x[masks[name]] for name, x in scores.items()]).sort().values
        return _highest(scores, masks, len(active) - max(1, int((active.cumsum(0) < limit).sum())))


def _highest(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """Of what is active in ``masks`` the ``k`` first in the order (score descending, layer, row-major index), in float64, which
    :func:`dstee.masks_from_scores` does not rank."""
    every = torch.cat([x.masked_fill(~masks[name].to(x.device), -1.0).view(-1) for name, x in scores.items()])
    last = every.topk(k, sorted=False).values.min()
    kept = every > last
    kept[(every == last).nonzero()[: k - int(kept.sum())]] = True
    parts = kept.split([x.numel() for x in scores.values()])
    return {name: part.view(x.shape) for (name, x), part in zip(scores.items(), parts, strict=True)}
