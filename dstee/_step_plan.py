"""What a step of SparseSGD works on: found tensor by tensor, or that of the step before where nothing has changed since."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dstee import _optimizer_state
from dstee._dense_step import DenseStep
from dstee._tensor_layouts import layouts
from dstee.layer_batch import LayerBatch
from dstee.sparse_layer import SparseLayer

__all__ = ["LastPlan", "StepPlan"]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """For each parameter group what has a gradient: sparse weights, in batches, and the others."""

    groups: list[tuple[list[LayerBatch], DenseStep]]

    @classmethod
    def find(cls, optimizer: torch.optim.SGD, layers: Mapping[int, SparseLayer], *, packed: bool) -> StepPlan:
        """``layers`` by id of their parameter; ``packed``: the momenta of the sparse weights are packed."""
        groups = []
        for group in optimizer.param_groups:
            sparse, rest = _optimizer_state.with_gradient(group, layers)
            batches = _optimizer_state.sgd_batches(optimizer, group, sparse, layers, packed=packed)
            groups.append((batches, DenseStep.make(optimizer, group, rest)))
        return cls(groups)

    @property
    def batches(self) -> list[LayerBatch]:
        return [batch for batches, _ in self.groups for batch in batches]

    @property
    def steps(self) -> list[LayerBatch | DenseStep]:
        """By group, sparse weights first."""
        steps: list[LayerBatch | DenseStep] = []
        for batches, dense in self.groups:
            steps += [*batches, dense]
        return steps

    @property
    def params(self) -> list[Tensor]:
        return [p for step in self.steps for p in step.params]

    @property
    def grads(self) -> list[Tensor]:
        """In the order of ``params``, those of sparse weights laid out like them."""
        return [g for step in self.steps for g in step.grads]

    def first_steps(self) -> list[StepPlan]:
        """The groups in which a momentum will be made."""
        return [
            StepPlan([(batches, dense)])
            for batches, dense in self.groups
            if dense.first_step or any([batch.sgd.first_step for batch in batches])
        ]

    def with_gradients(self, grads: Sequence[Tensor], optimizer: torch.optim.SGD) -> StepPlan:
        """With others, in the order of ``params``, and the numbers that the groups have now."""
        groups, start = [], 0
        for group, (known, others) in zip(optimizer.param_groups, self.groups, strict=True):
            batches = []
            for batch in known:
                rule = _optimizer_state.sgd_rule(group, batch.device, started=bool(batch.momenta))
                stop = start + len(batch.params)
                batches.append(LayerBatch(batch.layers, batch.params, list(grads[start:stop]), batch.momenta, rule))
                start = stop
            stop = start + len(others.params)
            groups.append((batches, DenseStep(group, others.params, list(grads[start:stop]), others.momenta, others.whole)))
            start = stop
        return StepPlan(groups)


@dataclass(frozen=True, slots=True)
class LastPlan:
    """The plan of the last step without its gradients, and all else that it was made of.

    Tensors are held against each other by identity, and by where and how they lie, since ``p.data = ...`` leaves them the same.
    Gradients, which are new at each step, must lie as their parameters do.
    """

    plan: StepPlan
    layers: Mapping[int, SparseLayer]
    objects: list[object]
    stepped: list[Tensor]
    others: list[Tensor]  # parameters that had no gradient
    momenta: list[Tensor]
    places: list[object]
    layouts: list[object]

    @classmethod
    def of(cls, plan: StepPlan, optimizer: torch.optim.SGD, layers: Mapping[int, SparseLayer]) -> LastPlan | None:
        """None where the next step must look at each tensor again: after a first step, for DTensors, for gradients that lie
        otherwise."""
        stepped, used = plan.params, plan.grads
        if plan.first_steps() or not all([p.grad is g for p, g in zip(stepped, used, strict=True)]):
            return None
        momenta = [m for entry in optimizer.state.values() if (m := entry.get("momentum_buffer")) is not None]
        places, lie = layouts([*stepped, *momenta]), layouts(stepped, addresses=False)
        if places is None or lie is None or not _lie_so(used, lie):
            return None
        ids = set(map(id, stepped))
        others = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in ids]
        objects = _objects(optimizer, plan)
        kept = StepPlan([(batches, dense.known()) for batches, dense in plan.groups]).with_gradients([], optimizer)
        return cls(kept, layers, objects, stepped, others, momenta, places, lie)

    def again(self, optimizer: torch.optim.SGD, layers: Mapping[int, SparseLayer]) -> StepPlan | None:
        """The plan with the gradients that there are now; None where something is another."""
        objects = _objects(optimizer, self.plan)
        if len(objects) != len(self.objects) or not all(map(operator.is_, objects, self.objects)) or layers != self.layers:
            return None
        grads = [p.grad for p in self.stepped]
        if any([p.grad is not None for p in self.others]) or not _lie_so(grads, self.layouts):
            return None
        if layouts([*self.stepped, *self.momenta]) != self.places:
            return None
        return self.plan.with_gradients(grads, optimizer)  # type: ignore[arg-type]


def _lie_so(grads: Sequence[Tensor | None], expected: list[object]) -> bool:
    """Whether all are plain tensors that lie in memory as ``expected``, and mean what lies there."""
    return layouts(grads, addresses=False) == expected and not any(map(Tensor.is_neg, grads))  # type: ignore[arg-type]


def _objects(optimizer: torch.optim.SGD, plan: StepPlan) -> list[object]:
    """What a plan holds on to beside layers: parameters by group, masks, and the optimizer's state."""
    found: list[object] = []
    for group in optimizer.param_groups:
        found += [group, group["momentum"] != 0, *group["params"]]
    for batch in plan.batches:
        found += batch.mask_bits
    entries = optimizer.state.values()
    return [*found, *optimizer.state, *entries, *[entry.get("momentum_buffer") for entry in entries]]
