"""The tensors that optimizers keep for a sparse weight, and the SGD steps that they make up together with its gradient."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dstee import _dispatch, _packed_momentum
from dstee._packed_momentum import PackedMomentum, refuse_layer
from dstee.distributed.where import as_dtensor, local_part
from dstee.encoding import zero_where
from dstee.layer_batch import LayerBatch
from dstee.sgd_rule import SGDRule
from dstee.sparse_layer import SparseLayer, fit_each


def held_by(optimizer: torch.optim.Optimizer) -> set[int]:
    """Ids of the parameters that ``optimizer`` holds."""
    found: set[int] = set()
    for group in optimizer.param_groups:
        found.update(map(id, group["params"]))
    return found


def refuse_missing(
    optimizers: Sequence[torch.optim.Optimizer],
    layers: Mapping[int, SparseLayer],
    was_replaced: Callable[[SparseLayer], bool],
) -> None:
    """Raises ValueError naming the trainable layers, given by id of their parameter, that none of ``optimizers`` holds."""
    held = held_by(optimizers[0]) if len(optimizers) == 1 else set().union(*map(held_by, optimizers))
    if layers.keys() <= held:
        return
    missing = [layer for key, layer in layers.items() if key not in held and layer.param.requires_grad]
    if not missing:
        return
    replaced = [layer.name for layer in missing if was_replaced(layer)]
    cause = f" ({', '.join(replaced)}: another parameter than the optimizer's has come in its place)"
    advice = "Create it after wrapping, sharding or replacing the model's parameters"
    if len(missing) < len(layers) and not replaced and dist.is_available() and dist.is_initialized():
        advice += "; under ZeroRedundancyOptimizer, which steps a part of them on each rank, use torch.optim.SGD inside"
    raise ValueError(
        "the optimizer does not hold these sparse weights of the model: "
        f"{', '.join(layer.name for layer in missing)}{cause * bool(replaced)}. {advice}"
    )


def state_keepers(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizer and those inside it, which may keep the state in its place (SAM's ``base_optimizer``,
    ZeroRedundancyOptimizer's ``optim``, torchtitan's ``optimizers``)."""
    found: list[torch.optim.Optimizer] = []
    waiting = [optimizer]
    while waiting:
        one = waiting.pop(0)
        if any(one is other for other in found):
            continue
        found.append(one)
        for value in vars(one).values():
            if isinstance(value, torch.optim.Optimizer):
                waiting.append(value)
            elif isinstance(value, (list, tuple)):
                waiting += [v for v in value if isinstance(v, torch.optim.Optimizer)]
    return found


def zero_state(optimizer: torch.optim.Optimizer, p: Tensor, where: Tensor) -> None:
    """Parameter-shaped state of ``p`` (momentum, exp_avg, exp_avg_sq, ...) gets its fresh value where ``where`` is True.

    Of a DTensor, ``where`` is of the part that this rank holds.

    Raises:
        ValueError: the state of a weight that is cut among ranks is whole.
    """
    for keeper in state_keepers(optimizer):
        for key, value in keeper.state.get(p, {}).items():
            if isinstance(value, PackedMomentum):
                keeper.state[p][key] = value = value.unpack()
            if isinstance(value, Tensor) and value.shape == p.shape:
                if as_dtensor(p) is not None and as_dtensor(value) is None:
                    raise ValueError(
                        f"{type(keeper).__name__} has {key} {list(value.shape)} whole for a weight that is cut among ranks: "
                        "load it with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
                    )
                fresh = _fresh_value(keeper, p, key)
                if fresh == 0:
                    zero_where(local_part(value), where)
                else:
                    local_part(value).masked_fill_(where, fresh)


def _fresh_value(optimizer: torch.optim.Optimizer, p: Tensor, key: str) -> float:
    """What the optimizer itself starts with: 0 but for Adagrad's sum and Rprop's step size."""
    name = {"sum": "initial_accumulator_value", "step_size": "lr"}.get(key)
    if name is None or not isinstance(optimizer, (torch.optim.Adagrad, torch.optim.Rprop)):
        return 0.0
    group = next(group for group in optimizer.param_groups if any(q is p for q in group["params"]))
    return float(group[name])


def refuse_codes(optimizers: Iterable[torch.optim.Optimizer], layers: Iterable[SparseLayer]) -> None:
    """Raises TypeError for state whose elements are no numbers of one weight each, so that 0 means nothing: codes of 8-bit
    optimizers, tensors that wrap others."""
    for keeper in [keeper for optimizer in optimizers for keeper in state_keepers(optimizer)]:
        for layer in layers:
            p = layer.param
            for key, value in keeper.state.get(p, {}).items():
                if not isinstance(value, Tensor) or value.numel() != p.numel() or value.numel() < 2:
                    continue
                part = local_part(value)
                if not part.is_floating_point() or _dispatch.is_wrapper(part):
                    kind = type(part).__name__ if _dispatch.is_wrapper(part) else str(part.dtype)
                    raise TypeError(
                        f"{type(keeper).__name__} keeps {key} of {layer.name} as {kind}, which cannot be reset for single "
                        "weights: use an optimizer with floating-point state for the sparse layers. Nothing was changed"
                    )


class FirstStep:
    """Undoes the first step of an optimizer whose state turns out to be of a kind that cannot be handled.

    State is made in the first step; before it there is nothing to look at.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, layers: Iterable[SparseLayer]) -> None:
        self.optimizer = optimizer
        self.layers = list(layers)
        keepers = state_keepers(optimizer)
        refuse_codes([optimizer], self.layers)
        fresh = not any(keeper.state.get(layer.param) for keeper in keepers for layer in self.layers)
        params = [p for group in optimizer.param_groups for p in group["params"]] if fresh else []
        self.before = [(p, p.detach().clone()) for p in params]
        self.known = [(keeper, set(keeper.state)) for keeper in keepers]

    def check(self) -> None:
        """Raises TypeError, and puts back what the step has changed."""
        if not self.before:
            return
        try:
            refuse_codes([self.optimizer], self.layers)
        except TypeError:
            with torch.no_grad():
                for p, values in self.before:
                    p.copy_(values)
            for keeper, known in self.known:
                for p in set(keeper.state) - known:
                    del keeper.state[p]
            raise


def momentum_buffer(optimizer: torch.optim.Optimizer, p: Tensor, layer: SparseLayer) -> Tensor | None:
    """SGD's momentum of ``p``, laid out as ``p`` is now; None before its first step with momentum."""
    state = optimizer.state.get(p)
    buffer = state.get("momentum_buffer") if state and id(p) not in getattr(optimizer, "unstepped", ()) else None
    if state is None or buffer is None:
        return None
    if isinstance(buffer, PackedMomentum):
        state["momentum_buffer"] = buffer = buffer.unpack()
    if layer.sharding is not None:
        part = layer.sharding.part_of(buffer, f"momentum_buffer of {layer.name}")
        fitting = layer.fit(part)
        if fitting is not part or as_dtensor(buffer) is None:
            state["momentum_buffer"] = layer.placed(fitting)
            fitting = local_part(state["momentum_buffer"])
        return fitting
    fitting = layer.fit(buffer)
    if fitting is not buffer:
        state["momentum_buffer"] = fitting
    return fitting


def with_gradient(group: Mapping[str, Any], sparse: Container[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Of a parameter group what has a gradient: the sparse weights, given by their ids, and the others."""
    found: tuple[list[Tensor], list[Tensor]] = [], []
    for p in group["params"]:
        if p.grad is not None:
            found[id(p) not in sparse].append(p)
    return found


def sgd_batches(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    held: Sequence[Tensor],
    layers: Mapping[int, SparseLayer],
    *,
    packed: bool = False,
) -> list[LayerBatch]:
    """The step that SGD makes on ``held``, sparse weights of a parameter group that have a gradient.

    ``layers`` by id of the parameter. After the step, :func:`keep_momenta` gives the optimizer the buffers that were made.
    ``packed``: the optimizer's buffers become :class:`PackedMomentum`, and the batches have their values.
    """
    owners = [layers[id(p)] for p in held]
    momenta = (_packed_momenta if packed else _momenta)(optimizer, held, owners)
    kinds = [(p.device, m is not None) for p, m in zip(held, momenta, strict=True)]
    found = []
    for kind in dict.fromkeys(kinds):
        rows = [i for i, other in enumerate(kinds) if other == kind]
        batch = LayerBatch([owners[i] for i in rows], [], [], [], sgd_rule(group, *kind), packed)
        for i, layer in zip(rows, batch.layers, strict=True):
            batch.params.append(held[i] if layer.sharding is None else layer.local)
            batch.grads.append(held[i].grad if layer.sharding is None else layer.grad)  # type: ignore[arg-type]
        batch.grads[:] = fit_each(batch.layers, batch.grads)
        if batch.rule is not None and batch.rule.first_step:
            made = zip(batch.params, batch.layers, strict=True)
            batch.momenta.extend([p.new_zeros(layer.nnz) if packed else torch.zeros_like(p) for p, layer in made])
        else:
            batch.momenta.extend([m for i in rows if (m := momenta[i]) is not None])
        found.append(batch)
    return found


def _momenta(optimizer: torch.optim.Optimizer, params: Sequence[Tensor], layers: Sequence[SparseLayer]) -> list[Tensor | None]:
    """:func:`momentum_buffer` of each; without a Python call for those that lie as they should."""
    odd = getattr(optimizer, "unstepped", None) or getattr(optimizer, "packed_momentum", False)
    if odd or any([layer.sharding is not None for layer in layers]):
        return [momentum_buffer(optimizer, p, layer) for p, layer in zip(params, layers, strict=True)]
    states = [optimizer.state.get(p) or {} for p in params]
    found: list[Tensor | None] = [state.get("momentum_buffer") for state in states]
    there = [i for i, buffer in enumerate(found) if buffer is not None]
    fitting = fit_each([layers[i] for i in there], [buffer for buffer in found if buffer is not None])
    for i, buffer in zip(there, fitting, strict=True):
        if buffer is not found[i]:
            states[i]["momentum_buffer"] = found[i] = buffer
    return found


def _packed_momenta(
    optimizer: torch.optim.Optimizer, params: Sequence[Tensor], layers: Sequence[SparseLayer]
) -> list[Tensor | None]:
    """As :func:`_momenta`: the values of packed buffers; what is not packed yet, or in another order, is packed."""
    for layer in [layer for layer in layers if layer.sharding is not None or layer.mask_bits.device.type != "cpu"]:
        refuse_layer(layer)
    found = [(optimizer.state.get(p) or {}).get("momentum_buffer") for p in params]
    for i, fits in enumerate(_packed_momentum.fit_each(found, layers)):
        if not fits and found[i] is not None:
            momentum = momentum_buffer(optimizer, params[i], layers[i])
            found[i] = None if momentum is None else PackedMomentum.pack(layers[i], momentum)
            if momentum is not None:
                optimizer.state[params[i]]["momentum_buffer"] = found[i]
    return [None if packed is None else packed.values for packed in found]


def pack_momenta(optimizer: torch.optim.Optimizer, layers: Iterable[SparseLayer]) -> None:
    """Buffers that something has taken out are packed again."""
    held = [(layer.param, layer) for layer in layers if layer.param in optimizer.state]
    _packed_momenta(optimizer, [p for p, _ in held], [layer for _, layer in held])


def sgd_rule(group: Mapping[str, Any], device: torch.device, started: bool) -> SGDRule:
    """As torch's step reads a group: nesterov means nothing without momentum, lr may be a tensor of any dtype."""
    lr, momentum = group["lr"], group["momentum"]
    if isinstance(lr, Tensor) and (lr.device != device or not lr.is_floating_point()):
        lr = lr.item()
    return SGDRule(
        lr,
        momentum,
        group["dampening"],
        float(group["weight_decay"]),
        group["nesterov"] and momentum != 0,
        group["maximize"],
        first_step=momentum != 0 and not started,
    )


def keep_momenta(optimizer: torch.optim.Optimizer, batch: LayerBatch) -> None:
    """After a first step: the new buffers become the optimizer's state."""
    if batch.rule is not None and batch.rule.first_step:
        for layer, buffer in zip(batch.layers, batch.momenta, strict=True):
            kept = PackedMomentum.of(layer, buffer) if batch.packed else layer.placed(buffer)
            optimizer.state[layer.param]["momentum_buffer"] = kept
