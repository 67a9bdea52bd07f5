"""SIS (Verma & Pesquet, Sparsifying Networks via Subdifferential Inclusion, 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dstee.methods.actions import Action, Project
from dstee.methods.context import Update, forward, samples
from dstee.methods.gradual import DenseToSparse
from dstee.methods.layer_samples import LayerSamples, observe
from dstee.methods.registry import register
from dstee.methods.sis_layer import sparsify_layer
from dstee.schedule import UpdateSchedule

__all__ = ["SIS"]


@register
@dataclass(frozen=True, kw_only=True)
class SIS(DenseToSparse):
    """Trains dense, finds few weights for each layer that keep its outputs, and trains those.

    The one update comes at ``share`` of ``schedule.stop``, on what layers are given and give, in eval mode, for the batches
    that :func:`dstee.sparsify` got; after loading or copying a model, ``sparse.batches`` needs them again until then. Each
    layer keeps its budget (the groups of a convolution equal parts of it), by :func:`sparsify_layer`. Where relu alone takes
    a layer's outputs, what it makes 0 need not be kept; other layers keep their outputs before the activation. What is no
    linear layer or convolution (attention, transposed convolutions), is not reached by the batches or shared by several
    modules is cut to its largest weights. Ranks of a distributed training need the same batches.

    The paper gives no budget and no schedule of this kind; the defaults are ours.

    Args:
        share: when, as a share of ``schedule.stop``; 2/3 is half of a training whose updates stop at 3/4 of it.
        samples: rows of inputs for each layer, of which no more than 8 for each of its inputs are used; time and memory grow
            with their square.
        iterations: of the splitting.
        penalty: "l1" as in the paper, or "l0", which more often than not comes nearer to the outputs.
    """

    share: float = 2 / 3
    samples: int = 512
    iterations: int = 60
    penalty: Literal["l1", "l0"] = "l1"

    name = "SIS"
    key = "sis"
    needs_batches = True
    needs_whole_weights = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share!r}")
        for name in ("samples", "iterations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        if self.penalty not in ("l1", "l0"):
            raise ValueError(f"penalty must be 'l1' or 'l0', got {self.penalty!r}")

    def due(self, t: int, schedule: UpdateSchedule) -> bool:
        return schedule.stop is not None and t == max(1, round(self.share * schedule.stop))

    def total(self, u: Update) -> int:
        return u.target

    def plan(self, u: Update) -> Sequence[Action]:
        if u.batches is None:
            raise RuntimeError(f"{self.name} looks at data at step {u.t}: set sparse.batches = [(inputs, targets), ...] again")
        return [Project(u.budget, to=self._solutions)]

    def _solutions(self, u: Update) -> list[Tensor]:
        params: dict[str, Tensor] = {layer.name: layer.param for layer in u.layers}
        assert u.model is not None
        batches = samples(u.batches, u.weights[0].device)
        forwards = (partial(forward, u.model, inputs) for inputs, _ in batches)
        seen = observe(u.model, params, forwards, self.samples)
        return [
            self._solve(w, u.budget[name], seen[name]) if name in seen else w for name, w in zip(params, u.weights, strict=True)
        ]

    def _solve(self, weight: Tensor, k: int, seen: LayerSamples) -> Tensor:
        """The layer's new weight, group by group."""
        groups = len(seen.inputs)
        outputs = (seen.outputs.relu() if seen.relu else seen.outputs).chunk(groups, 1)
        biases = [None] * groups if seen.bias is None else seen.bias.chunk(groups)
        found = []
        for i, (w, inputs) in enumerate(zip(weight.flatten(1).chunk(groups), seen.inputs, strict=True)):
            every = -(-len(inputs) // (8 * inputs.shape[1]))
            found.append(
                sparsify_layer(
                    w, biases[i], inputs[::every], outputs[i][::every], k // groups + (i < k % groups),
                    "relu" if seen.relu else "identity", penalty=self.penalty, iterations=self.iterations,
                ).weight
            )  # fmt: skip
        return torch.cat(found).view(weight.shape)
