"""The SGD step on parameters that are not sparse: torch's, in few calls where these return the same bits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
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
end of a tensor it rounds otherwise. Its bfloat16 momenta on the CPU are wrong."""
_FLOAT32 = torch.FloatTensor  # as a type: float32, strided, on the CPU, and means what lies there (no negation)
_OPTIONS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")


@dataclass(frozen=True, slots=True)
class DenseStep:
    """Parameters of ``group`` that have a gradient and are not sparse. ``momenta``: their buffers, None before a first
    step; [] without momentum. ``whole``: what :meth:`find_whole` says of them, where that is known."""

    group: Mapping[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    momenta: list[Tensor | None]
    whole: list[bool] | None = None

    @classmethod
    def make(cls, optimizer: torch.optim.SGD, group: Mapping[str, Any], params: list[Tensor]) -> DenseStep:
        """``params``, with the momenta that ``optimizer`` has for them."""
        momenta: list[Tensor | None] = []
        if group["momentum"] != 0:
            states = [optimizer.state.get(p) for p in params]
            momenta = [state.get("momentum_buffer") if state else None for state in states]
            for i, m in enumerate(momenta) if getattr(optimizer, "packed_momentum", False) else ():
                if isinstance(m, PackedMomentum):  # of a weight that was sparse
                    optimizer.state[params[i]]["momentum_buffer"] = momenta[i] = m.unpack()
            if unstepped := getattr(optimizer, "unstepped", None):
                momenta = [None if id(p) in unstepped else m for p, m in zip(params, momenta, strict=True)]
        return cls(group, params, [p.grad for p in params], momenta)  # type: ignore[misc]

    def known(self) -> DenseStep:
        """The parameters alone, with :meth:`find_whole` answered for steps whose tensors lie as these do."""
        return DenseStep(self.group, self.params, [], [], self.find_whole())

    @property
    def first_step(self) -> bool:
        """Whether a momentum will be made."""
        return not all([m is not None for m in self.momenta])

    def apply(self, optimizer: torch.optim.SGD) -> None:
        """The step, in place; the momenta that it makes become the optimizer's state."""
        if not self.params:
            return
        if not self._is_left_to_torch():
            self._apply_default(optimizer)
            return
        whole = self.find_whole() if self.whole is None else self.whole
        if not all(whole):  # these first: torch may refuse them
            rest = self._those([not yes for yes in whole])
            if rest._is_simple():
                rest._apply_foreach()
            else:
                rest._apply_default(optimizer)
        if any(whole):
            part = self if all(whole) else self._those(whole)
            options = {name: self.group[name] for name in _OPTIONS}
            torch._fused_sgd_(part.params, part.grads, part.momenta, is_first_step=False, **options)  # type: ignore[arg-type]

    def _those(self, chosen: list[bool]) -> DenseStep:
        return DenseStep(
            self.group,
            list(itertools.compress(self.params, chosen)),
            list(itertools.compress(self.grads, chosen)),
            list(itertools.compress(self.momenta, chosen)),
        )

    def _is_left_to_torch(self) -> bool:
        """Whether nobody has chosen how the step is made, and torch's default would make it of plain numbers."""
        group = self.group
        numbers = not isinstance(group["lr"], Tensor) and not isinstance(group["weight_decay"], Tensor)
        return group["foreach"] is None and group["fused"] is None and numbers and not _dispatch.is_traced()

    def find_whole(self) -> list[bool]:
        """Which parameters the fused kernel, which reads memory as it lies, steps as torch's default does."""
        plain = _dispatch.PLAIN
        return [
            isinstance(p, _FLOAT32)
            and isinstance(g, _FLOAT32)
            and isinstance(m, _FLOAT32)
            and (n := p.numel()) % _WHOLE == 0
            and n == g.numel() == m.numel()
            and p.is_contiguous()
            and g.is_contiguous()
            and m.is_contiguous()
            and type(p) in plain
            and type(g) in plain
            and type(m) in plain
            for p, g, m in zip(self.params, self.grads, self.momenta or self.params, strict=True)
        ]

    def _is_simple(self) -> bool:
        """Whether :meth:`_apply_foreach` takes the parameters."""
        tensors = [*self.params, *self.grads, *self.momenta]
        return _dispatch.PLAIN.issuperset(map(type, tensors)) and all(
            [t.dtype is torch.float32 and t.is_cpu and t.layout is torch.strided for t in tensors]  # type: ignore[union-attr]
        )

    def _apply_foreach(self) -> None:
        """What torch's default does for one parameter after the other, in its order of operations."""
        group, params, grads = self.group, self.params, self.grads
        momenta: list[Tensor] = self.momenta  # type: ignore[assignment]
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

    def _apply_default(self, optimizer: torch.optim.SGD) -> None:
        group = self.group
        sgd(
            self.params, self.grads, self.momenta, has_sparse_grad=any(grad.is_sparse for grad in self.grads),
            foreach=group["foreach"], fused=group["fused"], **{name: group[name] for name in _OPTIONS},
        )  # fmt: skip
        for p, m in zip(self.params, self.momenta, strict=bool(self.momenta)):
            optimizer.state[p]["momentum_buffer"] = m
