"""The SGD step on parameters that are not sparse: torch's, in few calls where these return the same bits."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from dstee import _dispatch
from dstee._packed_momentum import PackedMomentum

__all__ = ["DenseStep"]

_WHOLE = 16
"""Torch's fused kernel computes vectors of this many weights, or of half as many, as its default step does; what is left at the
end of a tensor it rounds otherwise."""


@dataclass(frozen=True, slots=True)
class DenseStep:
    """The parameters of ``group`` that have a gradient and are not sparse. ``momenta``: their buffers, None before a first
    step; [] without momentum."""

    group: Mapping[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    momenta: list[Tensor | None]

    @classmethod
    def make(cls, optimizer: torch.optim.SGD, group: Mapping[str, Any], sparse: Container[int]) -> DenseStep:
        """``sparse``: ids of the sparse weights."""
        params = [p for p in group["params"] if p.grad is not None and id(p) not in sparse]
        momenta: list[Tensor | None] = []
        if group["momentum"] != 0:
            states = [optimizer.state.get(p) for p in params]
            momenta = [state.get("momentum_buffer") if state else None for state in states]
            for i, m in enumerate(momenta) if getattr(optimizer, "packed_momentum", False) else ():
                if isinstance(m, PackedMomentum):  # of a weight that was sparse
                    optimizer.state[params[i]]["momentum_buffer"] = momenta[i] = m.unpack()
            if unstepped := getattr(optimizer, "unstepped", None):
                momenta = [None if id(p) in unstepped else m for p, m in zip(params, momenta, strict=True)]
        return cls(group, params, [p.grad for p in params], momenta)

    @property
    def first_step(self) -> bool:
        """Whether a momentum will be made."""
        return not all([m is not None for m in self.momenta])

    def apply(self, optimizer: torch.optim.SGD) -> None:
        """The step, in place; the momenta that it makes become the optimizer's state."""
        if not self.params:
            return
        if self._is_simple():
            self._apply_at_once()
            return
        group = self.group
        sgd(
            self.params,
            self.grads,
            self.momenta,
            has_sparse_grad=any(grad.is_sparse for grad in self.grads),
            foreach=group["foreach"],
            fused=group["fused"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        for p, m in zip(self.params, self.momenta, strict=bool(self.momenta)):
            optimizer.state[p]["momentum_buffer"] = m

    def _is_simple(self) -> bool:
        """Whether :meth:`_apply_at_once` can do it: float32 on the CPU, momenta there, and no choice made by the user."""
        group, float32, strided = self.group, torch.float32, torch.strided
        if group["foreach"] is not None or group["fused"] is not None:
            return False
        if isinstance(group["lr"], Tensor) or isinstance(group["weight_decay"], Tensor) or _dispatch.is_traced():
            return False
        tensors = [*self.params, *self.grads, *self.momenta]
        return _dispatch.PLAIN.issuperset(map(type, tensors)) and all(
            [t.dtype is float32 and t.is_cpu and t.layout is strided for t in tensors]  # type: ignore[union-attr]
        )

    def _apply_at_once(self) -> None:
        """What torch does for one parameter after the other, to the bit."""
        group, params, grads = self.group, self.params, self.grads
        momenta: list[Tensor] = self.momenta  # type: ignore[assignment]
        whole = [
            p.numel() % _WHOLE == 0
            and p.numel() == g.numel() == m.numel()
            and p.is_contiguous()
            and g.is_contiguous()
            and m.is_contiguous()
            and not g.is_neg()
            for p, g, m in zip(params, grads, momenta or params, strict=True)
        ]
        if any(whole):
            fused = [list(itertools.compress(tensors, whole)) for tensors in (params, grads, momenta)]
            torch._fused_sgd_(
                *fused,
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                is_first_step=False,
            )
        if all(whole):
            return
        rest = [not yes for yes in whole]
        params, grads, momenta = (list(itertools.compress(tensors, rest)) for tensors in (params, grads, momenta))
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        if group["weight_decay"] != 0:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        if group["momentum"] != 0:
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, grads, alpha=1 - group["dampening"])
            nesterov = group["nesterov"]
            grads = list(torch._foreach_add(grads, momenta, alpha=group["momentum"])) if nesterov else momenta
        torch._foreach_add_(params, grads, alpha=-group["lr"])
