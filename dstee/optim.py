"""SparseSGD: ``torch.optim.SGD`` that leaves inactive weights alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dstee import _checks, _dispatch, _optimizer_state
from dstee._optimizer_step import Closure
from dstee._packed_momentum import dense_form, moving_with_masks, refuse_layer
from dstee._step_plan import LastPlan, StepPlan
from dstee.distributed.ranks import anywhere
from dstee.distributed.sharding import everyone_of
from dstee.distributed.where import local_part
from dstee.mask_update import MaskKeeper
from dstee.ops import _masked_sgd
from dstee.sparse_layer import SparseLayer

__all__ = ["SparseSGD"]


class SparseSGD(torch.optim.SGD):
    """:class:`torch.optim.SGD` on the active weights of ``sparse``, and on all other parameters as torch does it.

    ``step()`` never changes a mask, a counter or the schedule, so whoever calls it may: :meth:`SparseModel.step` and
    :meth:`SparseModel.update` own the topology. Inactive weights and their momenta stay 0. With all masks True it trains as
    ``torch.optim.SGD`` does, to within 1 ulp a step for weights larger than their step (torch fuses multiply and add, this
    does not: that is what makes all backends agree). Other parameters get the bits of torch's default step, those in float32 on
    the CPU from few calls of its fused and foreach kernels. With lr 0 and gradients 0 no weight moves; momenta decay as torch's
    do.

    Args:
        params: as in ``torch.optim.SGD``; must hold every trainable sparse weight of the model.
        sparse: what :func:`dstee.sparsify` returned.
        others: as in ``torch.optim.SGD``. ``foreach`` and ``fused`` concern the parameters that are not sparse; ``fused=True``
            also lets a ``GradScaler`` hand over its scale (gradients are then unscaled in place, as torch's fused ones do).
        packed_momentum: keeps the momenta of the active weights alone, in the order of the mask: 4 bytes less for each inactive
            float32 weight, and less to read in a step; the same bits. ``state_dict()`` and ``load_state_dict()`` are those of
            ``packed_momentum=False`` and of ``torch.optim.SGD``. A mask update that is not part of the step takes the momenta
            out and packs them again. Not for weights that are cut among ranks, nor for GPU kernels.

    Raises:
        TypeError, ValueError, RuntimeError: as ``torch.optim.SGD``; ValueError for ``differentiable=True``; for
            ``packed_momentum=True`` ValueError, RuntimeError where it is not to be had.
    """

    packed_momentum: bool = False
    unstepped: frozenset[int] = frozenset()
    """Ids of the parameters whose momentum was made without a step."""
    _last: LastPlan | None = None

    def __init__(
        self,
        params: ParamsT,
        sparse: MaskKeeper,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        packed_momentum: bool = False,
    ) -> None:
        if not hasattr(sparse, "layers"):
            raise TypeError(f"sparse must be the SparseModel that dstee.sparsify returned, got {type(sparse).__name__}")
        self.sparse = sparse
        self.packed_momentum = packed_momentum
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        if packed_momentum:
            for layer in sparse.layers.values():
                refuse_layer(layer)
        sparse.attach(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As ``torch.optim.Optimizer.add_param_group``; refuses ``differentiable=True``."""
        super().add_param_group(param_group)
        if self.param_groups[-1]["differentiable"]:
            self.param_groups.pop()
            raise ValueError("SparseSGD works in place and does not support differentiable=True: use torch.optim.SGD")

    def step(self, closure: Closure | None = None) -> Any:
        """One step on all parameters that have a gradient; the masks stay as they are. Returns the closure's loss.

        Raises:
            ValueError: the optimizer does not hold the model's sparse weights. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            if self._overflow():
                return loss
            if self._only_makes_state():
                self._make_state()
                return loss
            layers, update = self.sparse.begin_step(self)
            # What can be wrong with any group is found before a sparse weight moves: by us here, by torch in its own step.
            packed = self.packed_momentum
            again = not (packed or self.unstepped or _dispatch.is_traced())
            plan = self._last.again(self, layers) if again and self._last is not None else None
            first: list[Tensor] = []
            if plan is None:
                plan = StepPlan.find(self, layers, packed=packed)
                first = plan.first_steps()
                self._last = LastPlan.of(plan, self, layers) if again and not first else None
            batches = plan.batches
            for batch in batches:
                _checks.check_rule(batch.sgd, batch.momenta, batch.device)
            for p in first:
                self.state[p]  # the order of entries, which saved states show, is not that of the steps below
            for _, dense in plan.groups:
                dense.apply(self)
            updated: list[SparseLayer] = []
            for batch in batches:
                if update is None:
                    _masked_sgd.checked(
                        batch.params, batch.grads, batch.momenta, batch.mask_bits, batch.sgd, packed_momenta=packed
                    )
                else:
                    with moving_with_masks(self.state, batch.layers):
                        update.apply(batch)
                    updated += batch.layers
                _optimizer_state.keep_momenta(self, batch)
            self.unstepped = frozenset()
            self.sparse.end_step(self, updated)
        return loss

    def _only_makes_state(self) -> bool:
        """Whether this is the step that ``torch.distributed.checkpoint`` makes to have a state that it can load into: learning
        rate and gradients are 0, and there is no state yet. It is none of the training."""
        if self.state or self.sparse.is_stepping() or any(float(group["lr"]) != 0 for group in self.param_groups):
            return False
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        some = any(bool(local_part(grad).any()) for grad in grads)
        return bool(grads) and not anywhere(some, [everyone_of(layer.param) for layer in self.sparse.layers.values()])

    def _make_state(self) -> None:
        """Momenta of 0, which the first step replaces as if there were none."""
        held = [p for group in self.param_groups if group["momentum"] != 0 for p in group["params"] if p.grad is not None]
        for p in held:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)
        self.unstepped = frozenset(map(id, held))

    def _overflow(self) -> bool:
        """With ``fused=True`` a GradScaler leaves its scale and its verdict here: unscale, or skip the step."""
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and found_inf.item():
            return True
        if scale is not None:
            grads = defaultdict(list)
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        grads[p.grad.device].append(local_part(p.grad))
            for device, tensors in grads.items():
                torch._foreach_div_(tensors, scale.to(device))
        return False

    def momentum_buffer(self, layer: SparseLayer) -> Tensor | None:
        """The momentum of the layer's weight, laid out like the weight; None before its first step with momentum.

        A packed one is taken out for it, and packed again at the next step.
        """
        return _optimizer_state.momentum_buffer(self, layer.param, layer)

    def pack_momenta(self, layers: Iterable[SparseLayer]) -> None:
        """With ``packed_momentum``: momenta of ``layers`` that were taken out are packed, in the order of the masks now."""
        if self.packed_momentum:
            _optimizer_state.pack_momenta(self, layers)

    def state_dict(self) -> dict[str, Any]:
        """As ``torch.optim.SGD.state_dict``; packed momenta are in it as dense ones, which are copies."""
        if not self.packed_momentum:
            return super().state_dict()
        kept = self.state
        dense = {p: {key: dense_form(value) for key, value in entries.items()} for p, entries in kept.items()}
        self.state = defaultdict(dict, dense)
        try:
            return super().state_dict()
        finally:
            self.state = kept

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As ``torch.optim.Optimizer.load_state_dict``, but names and shapes are compared first.

        Momenta outside the masks become 0 at the next step, so it does not matter whether the masks are loaded before or after.

        Raises:
            ValueError: listing every parameter whose name or state does not fit. Nothing has changed then.
        """
        check = self.register_load_state_dict_pre_hook(_refuse_other_parameters)  # runs after the user's own
        try:
            super().load_state_dict(state_dict)
        finally:
            check.remove()
        self.unstepped, self._last = frozenset(), None
        self.sparse.check_at_next_step()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"sparse": self.sparse, "packed_momentum": self.packed_momentum}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "sparse" in state:  # a copy or an unpickled optimizer; load_state_dict comes here too
            self.sparse.attach(self, first=False)


def _refuse_other_parameters(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Raises ValueError when state saved for other parameters would be matched to ours by its position."""
    differences = []
    for i, (group, saved) in enumerate(zip(optimizer.param_groups, state_dict["param_groups"], strict=False)):
        names, saved_names = group.get("param_names"), saved.get("param_names")
        for j, (p, key) in enumerate(zip(group["params"], saved["params"], strict=False)):
            where = f"group {i}, parameter {j}" + (f" ({names[j]})" if names else "")
            if names and saved_names and names[j] != saved_names[j]:
                differences.append(f"{where}: saved for {saved_names[j]}")
            buffer = state_dict["state"].get(key, {}).get("momentum_buffer")
            if buffer is not None and (not isinstance(buffer, Tensor) or buffer.shape != p.shape):
                got = list(buffer.shape) if isinstance(buffer, Tensor) else type(buffer).__name__
                differences.append(f"{where}: saved momentum is {got}, expected {list(p.shape)}")
    if differences:
        raise ValueError("the saved optimizer state does not fit this optimizer:\n  " + "\n  ".join(differences))
