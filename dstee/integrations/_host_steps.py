"""What the callbacks share: all that belongs to the masks around the steps that a host's optimizer really makes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from dstee._optimizer_step import Stepper, core_optimizer, owner, unscale, was_performed
from dstee.method_hooks import overrides
from dstee.sparse_model import SparseModel


class HostSteps:
    """Updates masks inside the steps of followed optimizers, at their very end, while ``training`` is True.

    So nobody sees a stepped weight before it is masked: no other callback, no average, no checkpoint. Steps that a GradScaler
    or a wrapper skips do not come here. Those that checkpoint code makes to read a state are none of the training: hosts make
    them while ``training`` is False.

    Args:
        refusal: why such a step must not be; empty where it may.
    """

    def __init__(self, sparse: SparseModel, refusal: str = "") -> None:
        self.sparse = sparse
        self.refusal = refusal
        self.training = False
        self._cores: list[torch.optim.Optimizer] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def follow(self, optimizers: Iterable[Stepper]) -> None:
        """From now on, in the place of those that were followed. Optimizers that hold no sparse weight are left alone, unless
        none does, which the first step will say."""
        self.leave()
        sparse = self.sparse.follow_all().keys()
        cores = [core_optimizer(optimizer) for optimizer in optimizers]
        held = [{id(p) for group in core.param_groups for p in group["params"]} for core in cores]
        holding = [core for core, ids in zip(cores, held, strict=True) if not sparse.isdisjoint(ids)]
        self._cores = holding or cores
        self._handles = [core.register_step_post_hook(self._after) for core in self._cores]

    def leave(self) -> None:
        self.training = False
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def before(self, optimizer: Stepper, scaler: torch.amp.GradScaler | None) -> None:
        """For a host's hook between backward and the step of ``optimizer``.

        An update that replaces the step is made here, and takes the gradients away: the step that the host makes all the same
        then does nothing. Methods that change gradients do so here.
        """
        core, sparse = core_optimizer(optimizer), self.sparse
        if not self.training or self.refusal or core not in self._cores or self._nothing_to_step() or sparse.is_stepping():
            return
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        method = sparse.method
        if method.updates and method.order == "replace" and method.due(sparse.t + 1, sparse.schedule):
            t = sparse.t
            sparse.step(core, scaler=scaler)
            if sparse.t > t:  # else an overflow, which the host will find, too
                for group in core.param_groups:
                    for p in group["params"]:
                        p.grad = None
        elif overrides(method, "before_step") and owner(core).fusing is None and (scaler is None or unscale(scaler, core)):
            sparse._change_gradients(core)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self.training or self.sparse.is_stepping() or not was_performed(optimizer) or self._nothing_to_step():
            return
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.sparse._count([owner(optimizer)])

    def _nothing_to_step(self) -> bool:
        """Hosts step for a batch without a loss, too; optimizers leave weights without a gradient as they are."""
        return all(layer.param.grad is None for layer in self.sparse.layers.values())
