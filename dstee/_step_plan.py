"""What a step of SparseSGD works on: found tensor by tensor, or that of the step before where nothing has changed since."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

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
        """What is stepped: of weights that are cut among ranks, the part that is here."""
        return [p for step in self.steps for p in step.params]

    @property
    def grads(self) -> list[Tensor]:
        """In the order of ``params``, those of sparse weights laid out like them."""
        return [g for step in self.steps for g in step.grads]

    def first_steps(self) -> list[Tensor]:
        """The parameters, not the parts of them that a rank holds, of the groups in which a momentum will be made."""
        found: list[Tensor] = []
        for batches, dense in self.groups:
            if dense.first_step or any([batch.sgd.first_step for batch in batches]):
                found += [*(layer.param for batch in batches for layer in batch.layers), *dense.params]
        return found


@dataclass(frozen=True, slots=True)
class LastPlan:
    """What the plan of the last step was made of, but for the gradients and momenta.

    Those are looked up at each step, and must lie in memory as they did: gradients as their parameters. Parameters are held
    against each other by identity and by where and how they lie, since ``p.data = ...`` leaves them the same.
    """

    plan: StepPlan  # without gradients and momenta
    layers: Mapping[int, SparseLayer]
    objects: list[object]
    stepped: list[Tensor]
    counts: list[int]  # of momenta, by step of the plan
    entries: list[int]  # of the optimizer's state, in which these are
    others: list[Tensor]  # parameters that had no gradient
    places: list[object]
    expected: list[object]  # layouts of gradients and momenta

    @classmethod
    def of(cls, plan: StepPlan, optimizer: torch.optim.SGD, layers: Mapping[int, SparseLayer]) -> LastPlan | None:
        """Of a plan in which no momentum is made. None where the next step must look at each tensor again: for DTensors, for
        gradients that lie otherwise."""
        stepped, used = plan.params, plan.grads
        if not all([p.grad is g for p, g in zip(stepped, used, strict=True)]):
            return None
        momenta = [m for step in plan.steps for m in step.momenta]
        places, lie, moments = layouts(stepped), layouts(stepped, addresses=False), layouts(momenta, addresses=False)
        if places is None or lie is None or moments is None or not _lie_so([*used, *momenta], [*lie, *moments]):
            return None
        place_of = {id(p): i for i, p in enumerate(optimizer.state)}
        entries = [place_of[id(p)] for step in plan.steps if step.momenta for p in step.params]
        ids = set(map(id, stepped))
        others = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in ids]
        kept = StepPlan([([_without_tensors(batch) for batch in batches], dense.known()) for batches, dense in plan.groups])
        counts = [len(step.momenta) for step in plan.steps]
        return cls(kept, layers, _objects(optimizer, plan), stepped, counts, entries, others, places, [*lie, *moments])

    def again(self, optimizer: torch.optim.SGD, layers: Mapping[int, SparseLayer]) -> StepPlan | None:
        """The plan with the gradients and momenta that there are now; None where something else is another."""
        objects = _objects(optimizer, self.plan)
        if len(objects) != len(self.objects) or not all(map(operator.is_, objects, self.objects)) or layers != self.layers:
            return None
        if any([p.grad is not None for p in self.others]):
            return None
        entries = list(optimizer.state.values())
        grads, momenta = [p.grad for p in self.stepped], [entries[i].get("momentum_buffer") for i in self.entries]
        if not _lie_so([*grads, *momenta], self.expected) or layouts(self.stepped) != self.places:
            return None
        return self._with(grads, momenta, optimizer)  # type: ignore[arg-type]

    def _with(self, grads: Sequence[Tensor], momenta: Sequence[Tensor], optimizer: torch.optim.SGD) -> StepPlan:
        """The plan of a step, with the numbers that the groups have now."""
        later, moving, counts = iter(grads), iter(momenta), iter(self.counts)
        groups = []
        for group, (known, others) in zip(optimizer.param_groups, self.plan.groups, strict=True):
            batches = []
            for batch in known:
                g, m = list(islice(later, len(batch.params))), list(islice(moving, next(counts)))
                rule = _optimizer_state.sgd_rule(group, batch.device, started=bool(m))
                batches.append(LayerBatch(batch.layers, batch.params, g, m, rule))
            g = list(islice(later, len(others.params)))
            buffers: list[Tensor | None] = [*islice(moving, next(counts))]
            groups.append((batches, DenseStep(group, others.params, g, buffers, others.whole)))
        return StepPlan(groups)


def _without_tensors(batch: LayerBatch) -> LayerBatch:
    """The layers and parameters alone."""
    return LayerBatch(batch.layers, batch.params, [], [])


def _lie_so(tensors: Sequence[Tensor | None], expected: list[object]) -> bool:
    """Whether all are plain tensors that lie in memory as ``expected``, and mean what lies there."""
    return layouts(tensors, addresses=False) == expected and not any(map(Tensor.is_neg, tensors))  # type: ignore[arg-type]


def _objects(optimizer: torch.optim.SGD, plan: StepPlan) -> list[object]:
    """What a plan holds on to beside layers: parameters by group, masks, and whose the optimizer's state is."""
    found: list[object] = []
    for group in optimizer.param_groups:
        found += [group, group["momentum"] != 0, *group["params"]]
    for batch in plan.batches:
        found += batch.mask_bits
    return [*found, *optimizer.state]
