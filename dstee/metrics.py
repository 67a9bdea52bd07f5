"""What a sparse training run does: how much it explores and exploits, how its masks look, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dstee import ops, summary, weight_kinds
from dstee._lookup import did_you_mean
from dstee.distributed.ranks import sum_each
from dstee.distributed.where import local_part
from dstee.layer_batch import count_each
from dstee.methods import Method
from dstee.schedule import UpdateSchedule
from dstee.sparse_layer import SparseLayer
from dstee.sparse_model import SparseModel

__all__ = [
    "Flops", "ForwardCost", "Ignored", "IgnoredGrowth", "Shares", "churn", "dead_units", "density", "exploitation",
    "exploration", "exploration_limit", "flops", "forward_cost", "ignored_later", "training_flops",
]  # fmt: skip


@dataclass(frozen=True)
class Shares:
    """One share in [0, 1] per layer, and the share of the whole model."""

    per_layer: dict[str, float]
    total: float


def _shares(parts: Mapping[str, int], wholes: Mapping[str, int]) -> Shares:
    per_layer = {name: part / max(wholes[name], 1) for name, part in parts.items()}
    return Shares(per_layer, sum(parts.values()) / max(sum(wholes.values()), 1))


def _counts(sparse: SparseModel, count: Callable[[list[SparseLayer]], Tensor]) -> dict[str, int]:
    """One number per layer from ``count``, with one host sync for a model on one device; of whole layers, where they are cut
    among ranks."""
    layers = list(sparse.follow_all().values())
    numbers = count_each(layers, lambda layer: layer.mask_bits.device, count)
    return dict(zip(sparse.layers, sum_each(numbers, [layer.holders for layer in layers]), strict=True))


def exploration(sparse: SparseModel) -> Shares:
    """Exploration degree R: share of the sparse weights that were ever active, the initial mask included (paper, R).

    Raises:
        ValueError: the method keeps no counters.
    """

    def count(layers: list[SparseLayer]) -> Tensor:
        counts = [layer.counts for layer in layers if layer.counts is not None]
        return ops.count_explored(counts, [layer.mask_bits for layer in layers])

    if any(layer.counts is None for layer in sparse.layers.values()):
        raise ValueError(
            f"exploration needs counters, which {sparse.method.name} does not keep: use sparsify(..., track_exploration=True)"
        )
    return _shares(_counts(sparse, count), {name: layer.numel for name, layer in sparse.layers.items()})


def density(sparse: SparseModel) -> float:
    """Share of the sparse weights that are active."""
    return sparse.nnz / max(sparse.numel, 1)


def churn(sparse: SparseModel) -> float:
    """Share of the active weights that the last update brought in; 0 before the first update."""

    def count(layers: list[SparseLayer]) -> Tensor:
        return ops.count_active([layer.grown_bits() for layer in layers])

    return sum(_counts(sparse, count).values()) / max(sparse.nnz, 1)


def exploration_limit(sparse: SparseModel) -> Shares:
    """R_max: the most that the exploration degree can be after the updates so far; R / R_max says how much of it is used.

    Of a layer min(1, density * (1 + sum of the shares of active weights that the updates swapped)): if every weight that
    was grown had never been active before. The shares are the schedule's (rounded up to whole weights, as an update does);
    the total is the mean by size. Methods that move budgets or update when they themselves say have no limit but 1. No host
    sync.
    """
    layers = list(sparse.layers.values())
    most = summary.explorable(layers, sparse.t, sparse.method, sparse.schedule)
    return _shares(dict(zip(sparse.layers, most, strict=True)), {layer.name: layer.numel for layer in layers})


def dead_units(sparse: SparseModel) -> Shares:
    """Share of output units (rows of a linear layer, channels of a convolution) without a single active weight.

    Of the packed projections of attention the units are those of query, key and value; of stacked experts, [experts, in, out]
    (with ``is_transposed = False`` [experts, out, in]), those of each expert; of transformers' ``Conv1D`` its columns.
    """
    dead, units = summary.dead_units(list(sparse.layers.values()))
    return _shares(dict(zip(sparse.layers, dead, strict=True)), dict(zip(sparse.layers, units, strict=True)))


@torch.no_grad()
def exploitation(sparse: SparseModel, loss_fn: Callable[[], Tensor]) -> float:
    """Degree of exploitation of the last update: the loss without minus the loss with the weights it grew (paper, Eq. 3).

    ``loss_fn`` is called twice, without gradients and in the model's present mode; use ``model.eval()`` and the same batch
    to compare like with like. The weights get their bits back whatever happens. 0 before the first update.
    """
    if sparse.round == 0:
        return 0.0
    with_grown = float(loss_fn())
    saved = []
    try:
        for layer in sparse.follow_all().values():
            weight, grown = local_part(layer.param).data, layer.grown()  # .data: a pending backward must not notice
            saved.append((weight, grown, weight[grown]))
            weight.masked_fill_(grown, 0)
        return float(loss_fn()) - with_grown
    finally:
        for weight, grown, values in saved:
            weight[grown] = values


@dataclass(frozen=True)
class Ignored:
    """What an update ignored of the weights that turned out important: counts, and the same of growth at random.

    ``candidates``: weights that could be grown, inactive once the update had dropped. ``grown``: how many of them it took.
    ``important``: so many, inactive before, were looked for. ``missed``: those that it did not grow.
    """

    candidates: int
    grown: int
    important: int
    missed: int

    @property
    def share(self) -> float:
        """Share of the important weights that were not grown."""
        return self.missed / self.important

    @property
    def random(self) -> float:
        """What to expect of growth at random: the hits follow a hypergeometric distribution."""
        return 1 - self.grown / self.candidates

    @property
    def random_std(self) -> float:
        """Standard deviation of that share from one draw of random growth to the next."""
        return math.sqrt(self.random_variance) / self.important

    @property
    def random_variance(self) -> float:
        """Variance of the number of hits of random growth."""
        share = self.important / self.candidates
        return self.grown * share * (1 - share) * (self.candidates - self.grown) / max(self.candidates - 1, 1)


@dataclass(frozen=True)
class IgnoredGrowth:
    """:func:`ignored_later` of each layer in which the last update grew something, and of all of these together."""

    per_layer: dict[str, Ignored]

    @property
    def share(self) -> float:
        return sum(one.missed for one in self.per_layer.values()) / self._important

    @property
    def random(self) -> float:
        return sum(one.random * one.important for one in self.per_layer.values()) / self._important

    @property
    def random_std(self) -> float:
        return math.sqrt(sum(one.random_variance for one in self.per_layer.values())) / self._important

    @property
    def _important(self) -> int:
        return sum(one.important for one in self.per_layer.values())


@torch.no_grad()
def ignored_later(
    sparse: SparseModel, importance: Mapping[str, Tensor], grown: Mapping[str, int] | None = None
) -> IgnoredGrowth:
    """Share of the weights that turned out important, inactive before the last update, that it did not grow (paper, Fig. 1).

    Of each layer the k most important are compared with what was grown, k being the number that was grown; equal importance
    goes by index, the lower first. Growth at random, beside it, tells how much of the share is the update's own.

    Args:
        sparse: as its last update left it, or trained on within the same masks.
        importance: by parameter name, in the shape of the weights: say the magnitude of the weights after some steps of dense
            training from here, or of the gradients after some more sparse steps. Layers without growth may be left out.
        grown: how many weights the update grew in each layer, with those that it had just dropped; masks cannot tell these
            from weights that stayed. None: as many as the masks show.

    Raises:
        ValueError: there was no update, or it grew nothing; a name, a shape or a number does not fit, or a value is NaN; a
            weight is cut among ranks.
    """
    if unknown := sorted(importance.keys() - sparse.layers.keys()):
        hint = did_you_mean(unknown[0], sparse.layers)
        raise ValueError(f"importance has {unknown[0]!r}{hint}, expected sparse layers: {', '.join(sparse.layers)}")
    sparse.follow_all()
    found: dict[str, Ignored] = {}
    for name, layer in sparse.layers.items():
        if layer.holders is not None:
            raise ValueError(f"{name} is cut among ranks: load its state into a model that is whole, and ask there")
        if layer.previous_bits is None:
            continue
        taken = layer.grown()
        shown = int(taken.sum())
        k = shown if grown is None else grown.get(name, shown)
        if not shown <= k <= layer.nnz:
            raise ValueError(f"grown says {k} for {name}, expected {shown} (what its masks show) to {layer.nnz} (all active)")
        inactive = layer.bools(layer.previous_bits).logical_not_().reshape(-1)
        if not (sought := min(k, int(inactive.sum()))):
            continue
        values = importance.get(name)
        if values is None or values.shape != layer.shape:
            got = "nothing" if values is None else list(values.shape)
            raise ValueError(f"importance of {name}: got {got}, expected a tensor {list(layer.shape)}")
        values = values.to(inactive.device).reshape(-1)[inactive]
        if values.isnan().any():
            raise ValueError(f"importance of {name} is NaN in places: there is no order to take the first of")
        important = values.argsort(descending=True, stable=True)[:sought]
        hits = int(taken.reshape(-1)[inactive][important].sum())
        found[name] = Ignored(layer.numel - layer.nnz + k, k, sought, sought - hits)
    if not found:
        raise ValueError("the last update grew nothing, or there was none: look at a model just after an update that grows")
    return IgnoredGrowth(found)


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, two per multiply-accumulate (the convention of RigL's tables).

    ``inference`` is one forward of the example input, ``training`` the mean optimizer step on it.
    """

    dense_inference: int
    sparse_inference: int
    dense_training: float
    sparse_training: float

    @property
    def inference_ratio(self) -> float:
        return self.sparse_inference / self.dense_inference

    @property
    def training_ratio(self) -> float:
        return self.sparse_training / self.dense_training


def training_flops(dense: float, sparse: float, method: Method, schedule: UpdateSchedule, steps: int | None = None) -> float:
    """Mean FLOPs of a training step from those of a dense and a sparse forward; a backward costs two forwards.

    A step costs ``3 * sparse``. A step with an update of a method that grows by gradients has a dense weight gradient and costs
    ``2 * sparse + dense``, whether the update follows the step or replaces it. RigL's appendix counts an update in addition
    to ``every`` steps; here it is one of them. So the mean before ``schedule.stop`` is about
    ``(3 * sparse * (every - 1) + 2 * sparse + dense) / every``, and ``3 * sparse`` from there on.
    A method that reads the dense gradient at every step (SNFS) costs ``2 * sparse + dense`` throughout.

    These are the costs of one density; :class:`dstee.training_cost.TrainingCost` adds up those of a density that changes.

    Args:
        steps: optimizer steps of the whole training, over which the updates are counted exactly; None: it ends at
            ``schedule.stop``, and never without one.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be the number of optimizer steps of the training, at least 1, got {steps}")
    if method.needs_every_gradient:
        return 2 * sparse + dense
    if not (method.updates and method.needs_gradients):
        return 3 * sparse
    if steps is None:
        steps = schedule.every if schedule.stop is None else schedule.stop
    updates = len(method.update_steps(schedule, steps))
    return (3 * sparse * (steps - updates) + (2 * sparse + dense) * updates) / steps


def flops(sparse: SparseModel, example_input: object, steps: int | None = None) -> Flops:
    """FLOPs of linear layers, convolutions (transposed too) and attention projections; all else is left out.

    Runs one forward in eval mode without gradients and puts every module's mode back. Layers that are not sparse count in full.

    Args:
        example_input: what the model takes: a tensor, a tuple of arguments or a mapping of keyword arguments. With a batch
            of one the figures are FLOPs per sample.
        steps: as in :func:`training_flops`.

    Raises:
        ValueError: a sparse weight belongs to another kind of module, or the forward used none of these layers.
    """
    cost = forward_cost(sparse, example_input)
    dense = round(cost.of({name: layer.numel for name, layer in sparse.layers.items()}))
    forward = round(cost.of({name: layer.nnz for name, layer in sparse.layers.items()}))
    return Flops(dense, forward, 3 * dense, training_flops(dense, forward, sparse.method, sparse.schedule, steps))


@dataclass(frozen=True)
class ForwardCost:
    """FLOPs of one forward: ``per_weight`` for each active weight of a sparse layer, by name, ``rest`` for what is dense."""

    rest: float
    per_weight: dict[str, float]

    def of(self, nnz: Mapping[str, int]) -> float:
        """With so many active weights, by layer."""
        return self.rest + sum(self.per_weight[name] * n for name, n in nnz.items())


def forward_cost(sparse: SparseModel, example_input: object) -> ForwardCost:
    """What :func:`flops` counts, for any density; arguments and errors are its own."""
    known = (
        layer.name for layer in sparse.layers.values() if _is_counted(layer.module) or weight_kinds.is_embedding(layer.module)
    )
    if foreign := sorted(sparse.layers.keys() - known):  # a look-up in an embedding costs nothing
        raise ValueError(f"cannot count the FLOPs of {', '.join(foreign)}: not linear, convolution or attention layers")
    names = {id(layer.param): name for name, layer in sparse.layers.items()}
    per_weight = dict.fromkeys(sparse.layers, 0.0)
    rest = 0.0

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal rest
        for weight, uses in _uses(module, args, kwargs, output):
            if (name := names.get(id(weight))) is None:
                rest += 2 * weight.numel() * uses
            else:
                per_weight[name] += 2 * uses

    modules = list(sparse.model.modules())
    modes = [module.training for module in modules]
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules if _is_counted(module)]
    try:
        sparse.model.eval()
        with torch.no_grad():
            _call(sparse.model, example_input)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    if not (rest or any(per_weight.values())):
        raise ValueError("the forward used no linear, convolution or attention layer: nothing to count")
    return ForwardCost(rest, per_weight)


def _call(model: nn.Module, example_input: object) -> None:
    if isinstance(example_input, Mapping):
        model(**example_input)
    elif isinstance(example_input, tuple):
        model(*example_input)
    else:
        model(example_input)


def _is_counted(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, _ConvNd, nn.MultiheadAttention)) or weight_kinds.is_conv1d(module)


def _uses(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> list[tuple[Tensor, float]]:
    """(weight, how often one forward used each of its elements, on average); padding counts as input."""
    if isinstance(module, nn.MultiheadAttention):
        inputs = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        query, key, value = (inputs[name].numel() // inputs[name].shape[-1] for name in ("query", "key", "value"))
        if module.in_proj_weight is None:
            uses: dict[str, float] = {"q_proj_weight": query, "k_proj_weight": key, "v_proj_weight": value}
        else:
            uses = {"in_proj_weight": (query + key + value) / 3}
        return [*((getattr(module, name), n) for name, n in uses.items()), (module.out_proj.weight, query)]
    if isinstance(module, _ConvTransposeNd):  # every input position meets the whole kernel
        x = args[0] if args else kwargs["input"]
        return [(module.weight, x.numel() // module.in_channels)]
    weight = cast(Tensor, module.weight)  # a parameter, or computed from some
    units = module.out_channels if isinstance(module, _ConvNd) else output.shape[-1]
    return [(weight, output.numel() // units)]
