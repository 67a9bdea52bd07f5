"""One SGD step of many models at once: one call for all sparse weights, one for the rows of each stack of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.sgd import sgd as dense_sgd

from dstee import SparseModel, ops
from dstee.experiments.many_seeds.stacked_mlp import StackedParameter
from dstee.experiments.trial import Trial
from dstee.sgd_rule import SGDRule

__all__ = ["Momenta", "SharedStep"]

Momenta: TypeAlias = Sequence[Tensor]
"""The momentum buffers of each stack, [S, *shape]; none without momentum."""


_SETTINGS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")


@dataclass
class _Part:
    """Parameters with the settings of one group; the lists have one entry for each sparse weight, or each run of rows."""

    group: dict[str, Any]
    params: list[Tensor] = dataclasses.field(default_factory=list)
    grads: list[Tensor] = dataclasses.field(default_factory=list)
    momenta: list[Tensor] = dataclasses.field(default_factory=list)
    mask_bits: list[Tensor] = dataclasses.field(default_factory=list)

    def add(self, param: Tensor, grad: Tensor, momentum: Tensor | None) -> None:
        self.params.append(param)
        self.grads.append(grad)
        if momentum is not None:
            self.momenta.append(momentum)

    def rule(self) -> SGDRule:
        return SGDRule(**{name: self.group[name] for name in _SETTINGS})


class SharedStep:
    """The step of those of ``trials`` that ``members`` numbers, of which no mask update is due and all momenta exist.

    It is what :class:`dstee.SparseSGD` and ``torch.optim.SGD`` do to each, in fewer calls. Made anew when masks were replaced.
    """

    def __init__(self, trials: Sequence[Trial], members: Iterable[int], stacks: Sequence[StackedParameter], momenta: Momenta):
        self._sparse: dict[object, _Part] = {}
        self._dense: dict[object, _Part] = {}
        members = list(members)
        own = [dict(trials[s].model.named_parameters()) for s in members]
        for k, stack in enumerate(stacks):
            buffers = momenta[k] if momenta else None
            others = []
            for s, parameters in zip(members, own, strict=True):
                p, sparse = parameters[stack.name], trials[s].sparse
                layer = sparse.layers.get(stack.name) if isinstance(sparse, SparseModel) else None
                if layer is None:
                    others.append(s)
                    continue
                part = _part(self._sparse, trials[s], p)
                part.add(p, stack.grads[s], None if buffers is None else buffers[s])
                part.mask_bits.append(layer.mask_bits)
            for run in _runs(others):
                p = own[members.index(run.start)][stack.name]
                part = _part(self._dense, trials[run.start], p)
                part.add(stack.values[run], stack.grads[run], None if buffers is None else buffers[run])

    @torch.no_grad()
    def apply(self) -> None:
        """The step with the gradients that there are, at the learning rate that the members' groups have."""
        for part in self._dense.values():
            group = part.group
            buffers: list[Tensor | None] = [*part.momenta]
            settings: dict[str, Any] = {name: group[name] for name in ("foreach", *_SETTINGS)}
            dense_sgd(part.params, part.grads, buffers, has_sparse_grad=False, **settings)
        for part in self._sparse.values():
            ops.masked_sgd_(part.params, part.grads, part.momenta or None, part.mask_bits, sgd=part.rule())


def _part(parts: dict[object, _Part], trial: Trial, p: Tensor) -> _Part:
    groups = trial.optimizer.param_groups
    i = next(i for i, group in enumerate(groups) if any(q is p for q in group["params"]))
    return parts.setdefault(i, _Part(groups[i]))


def _runs(numbers: Sequence[int]) -> list[slice]:
    """Ascending numbers as slices without gaps."""
    found: list[slice] = []
    for n in numbers:
        if found and found[-1].stop == n:
            found[-1] = slice(found[-1].start, n + 1)
        else:
            found.append(slice(n, n + 1))
    return found
