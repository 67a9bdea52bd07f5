"""What a method is told: ``Start`` when a model becomes sparse, ``Step`` around a step, ``Update`` at a mask update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dstee import ops
from dstee.distributed import agree
from dstee.distributed.ranks import Ranks, exchange, reduce_each
from dstee.distributed.sharding import Sharding
from dstee.distributed.where import Where, local_part
from dstee.schedule import UpdateSchedule
from dstee.score_masks import masks_from_scores
from dstee.sparsity_distribution import random_mask, seed64

__all__ = ["LayerView", "LossFn", "Start", "Step", "Update", "forward", "growth_seeds", "map_tensors", "samples"]

LossFn = Callable[[Any, Any], Tensor]
"""(model output, target) -> scalar loss."""


def growth_seeds(seed: int, names: Sequence[str], round: int, tag: str = "grow") -> list[int]:
    """One signed 64-bit seed per layer, a hash of (tag, seed, layer name, round): what random growth hashes indices with."""
    return [seed64(tag, seed, name, round) for name in names]


@dataclass
class Start:
    """A model that is about to become sparse; its weights are dense still, and no hook may leave them changed.

    Attributes:
        model: as the user gave it.
        weights: those that get masks, by name: the parameters themselves.
        nnz: the budget of each, from the sparsity and the distribution.
        nnz_at: the budgets for another density in (0, 1].
        seed, schedule: as given to ``sparsify``.
        batches: (inputs, targets) pairs, as given; iterated anew at each use.
        loss_fn: as given; default cross entropy.
        shardings: how the weights that are cut among ranks are cut, by name: masks are of this rank's parts.
    """

    model: nn.Module
    weights: Mapping[str, nn.Parameter]
    nnz: Mapping[str, int]
    nnz_at: Callable[[float], dict[str, int]]
    seed: int
    schedule: UpdateSchedule
    batches: Iterable[tuple[Any, Any]] | None = None
    loss_fn: LossFn = torch.nn.functional.cross_entropy
    shardings: Mapping[str, Sharding] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Active weights of all layers together."""
        return sum(self.nnz.values())

    def samples(self) -> Iterator[tuple[Any, Any]]:
        """The batches, on the device of the weights."""
        return samples(self.batches, next(iter(self.weights.values())).device)

    def dense_masks(self) -> dict[str, Tensor]:
        """Everything active."""
        return {name: torch.ones_like(local_part(w), dtype=torch.bool) for name, w in self.weights.items()}

    def random_masks(self, nnz: Mapping[str, int] | None = None) -> dict[str, Tensor]:
        """Random masks of these numbers of weights (default: the budget), by seed and name, as ``sparsify`` draws them."""
        numbers = self.nnz if nnz is None else nnz
        names, cuts = list(self.shardings), list(self.shardings.values())
        rounds = agree.random_masks(names, [numbers[name] for name in names], self.seed, [cut.where for cut in cuts])
        parts = exchange(rounds, [cut.holders for cut in cuts]) if cuts else []
        cut_masks = {name: mask.view(cut.local_shape) for name, mask, cut in zip(names, parts, cuts, strict=True)}
        return {
            name: cut_masks[name] if name in cut_masks else random_mask(w.numel(), numbers[name], self.seed, name).view(w.shape)
            for name, w in self.weights.items()
        }


def samples(batches: Iterable[tuple[Any, Any]] | None, device: torch.device) -> Iterator[tuple[Any, Any]]:
    """(inputs, targets) of each of ``batches``, on ``device``."""
    for inputs, targets in batches or ():
        yield map_tensors(lambda t: t.to(device), inputs), map_tensors(lambda t: t.to(device), targets)


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value``, a tensor or nested tuples, lists and mappings of tensors, with each of them changed; other values stay."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        items = [map_tensors(change, one) for one in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return {key: map_tensors(change, one) for key, one in value.items()} if isinstance(value, Mapping) else value


def forward(model: nn.Module, inputs: Any) -> Any:
    """What ``model`` makes of a batch's inputs: one, a tuple or list of arguments, or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


class LayerView(Protocol):
    """What hooks see of a sparse layer (:class:`dstee.sparse_layer.SparseLayer`)."""

    name: str
    mask_bits: Tensor
    state: dict[str, Tensor]

    @property
    def param(self) -> nn.Parameter: ...
    @property
    def local(self) -> Tensor: ...
    @property
    def grad(self) -> Tensor | None: ...
    @property
    def numel(self) -> int: ...
    @property
    def nnz(self) -> int: ...
    @property
    def holders(self) -> Ranks | None: ...
    @property
    def where(self) -> Where: ...
    def fit_grad(self) -> None: ...
    def active(self) -> Tensor: ...
    def fitted_state(self, key: str) -> Tensor: ...


@dataclass
class Step:
    """The sparse layers that a step concerns, in the model's order; frozen ones are left out, in ``before_step`` those without
    a gradient too. Lists have one entry per layer.

    Attributes:
        t: this step, from 1. ``round``: mask updates before it. ``seed``: the model's.
        schedule: of the updates.
        numbers: the method's own numbers (:meth:`dstee.methods.Method.initial_numbers`), float64 tensors of no dimension on the
            layers' device. Replace entries, never write into them: they count from the end of the step or update on. They
            cannot be replaced in ``before_step``, whose step may be skipped.
        optimizers: who makes the step.
    """

    t: int
    round: int
    seed: int
    schedule: UpdateSchedule
    layers: Sequence[LayerView]
    numbers: MutableMapping[str, Tensor]
    optimizers: Sequence[torch.optim.Optimizer] = ()

    @property
    def names(self) -> list[str]:
        return [layer.name for layer in self.layers]

    @property
    def weights(self) -> list[Tensor]:
        """The weights as they are now, without history: writing to them in place writes to the model."""
        return [layer.local.detach() for layer in self.layers]

    @property
    def grads(self) -> list[Tensor]:
        """The gradients as they are now, laid out like the weights; in ``before_step`` what is written to them is stepped."""
        return [g for layer in self.layers if (g := layer.grad) is not None]

    @property
    def lr(self) -> list[float]:
        """Learning rates of the weights, as the optimizer has them at this step; 0 for what none holds."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        rates = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
        return [rates.get(id(layer.param), 0.0) for layer in self.layers]

    @property
    def sizes(self) -> list[int]:
        """Weights, active or not."""
        return [layer.numel for layer in self.layers]

    def masks(self) -> list[Tensor]:
        """What is active now: bool, like the weights."""
        return [layer.active() for layer in self.layers]

    def state(self, key: str) -> list[Tensor]:
        """The method's own tensors ``key``, float32, like the weights, 0 at first; written in place."""
        return [layer.fitted_state(key) for layer in self.layers]

    def seeds(self, tag: str = "grow") -> list[int]:
        """A seed for each layer, a hash of (tag, seed, name, round)."""
        return growth_seeds(self.seed, self.names, self.round, tag)


@dataclass
class Update(Step):
    """A mask update. ``plan`` sees it before the step, the functions inside actions after it: then weights are the new ones.

    Attributes:
        budget: active weights of each layer at the target sparsity, by name.
        dropping: while ``Swap.grow`` is asked, how many weights of each layer ``Swap.drop`` has said will go: int64 [L].
        model: whose layers these are. ``batches``: as ``sparsify`` got them, where the method needs them.
    """

    budget: Mapping[str, int] = field(default_factory=dict)
    model: nn.Module | None = None
    batches: Iterable[tuple[Any, Any]] | None = None
    dropping: Tensor = None  # type: ignore[assignment]  # there is one when a function may look

    @property
    def nnz(self) -> Tensor:
        """Active weights of each layer now: int64 [L] on the device."""
        bits = [layer.mask_bits for layer in self.layers]
        if any(layer.holders for layer in self.layers):  # known on the host, as what ranks agree on is
            return torch.tensor([layer.nnz for layer in self.layers], device=bits[0].device)
        return ops.count_active(bits)

    @property
    def inactive(self) -> Tensor:
        """Inactive weights of each layer now: int64 [L] on the device."""
        nnz = self.nnz
        return torch.tensor(self.sizes, device=nnz.device) - nnz

    @property
    def total(self) -> int:
        """Active weights of the layers together now; a host sync on a GPU."""
        return int(self.nnz.sum())

    @property
    def target(self) -> int:
        """Active weights of the layers together at the target sparsity."""
        return sum(self.budget[name] for name in self.names)

    @property
    def progress(self) -> float:
        """From 0 at step 0 to 1 at the last due step before ``schedule.stop``; needs ``stop``."""
        last = self.schedule.last_update
        return min(self.t / last, 1.0) if last else 1.0

    @property
    def k(self) -> Tensor:
        """Weights that the schedule has each layer swap, by what is active now, 0 where all are: int64 [L] on the device."""
        nnz = self.nnz
        k = (nnz.double() * self.schedule.fraction(self.t)).ceil().long()
        return k.masked_fill_(nnz == torch.tensor(self.sizes, device=nnz.device), 0)

    def count_below(self, threshold: Tensor | float) -> Tensor:
        """Active weights of each layer with abs(w) below ``threshold``: int64 [L], exact, no host sync."""
        weights = self.weights
        limits = torch.as_tensor(threshold, dtype=torch.float32, device=weights[0].device).expand(len(weights)).contiguous()
        return self.over_ranks(ops.count_below(weights, [layer.mask_bits for layer in self.layers], limits))

    def largest(self, values: Sequence[Tensor], k: Sequence[int] | None = None, total: int | None = None) -> list[Tensor]:
        """Masks of the largest abs(value) of whole layers, ``k`` of each or ``total`` of all, as
        :func:`dstee.masks_from_scores` makes them: bool, like the weights."""
        holders, where = [layer.holders for layer in self.layers], [layer.where for layer in self.layers]
        if any(holders) and k is not None:
            masks = exchange(agree.largest(list(values), list(k), where), holders)
            return [mask.view(x.shape) for mask, x in zip(masks, values, strict=True)]
        if any(holders) and total is not None:
            bits = [ops.pack_mask(torch.ones_like(x, dtype=torch.bool)) for x in values]
            k, _ = exchange(agree.kept(list(values), bits, where, total, by_score=False), holders)
            total = None
        return masks_from_scores([x.abs() for x in values], k, total)

    def over_ranks(self, numbers: Tensor, largest: bool = False) -> Tensor:
        """Numbers [L] of what this rank holds of each layer, added up over the ranks that hold parts of it, or the ``largest``
        of them; themselves where no layer is cut. What a method counts in weights, signals or masks must go through this."""
        holders = [layer.holders for layer in self.layers]
        return reduce_each(numbers, holders, largest) if any(holders) else numbers
