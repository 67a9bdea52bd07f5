"""The SGD step as one value, and the list of numbers that stands for it in the ops' schemas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["SGDRule", "pack", "unpack"]


@dataclass(frozen=True, slots=True)
class SGDRule:
    """The step of :func:`dstee.ops.masked_sgd_`, which :func:`dstee.ops.drop_grow_` fuses into its sweep.

    Fields as in :class:`torch.optim.SGD`. ``first_step`` says that the momentum buffers hold nothing yet (then m = d).
    """

    lr: float | Tensor
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    first_step: bool = False


def pack(rule: SGDRule | None) -> tuple[list[float], Tensor | None]:
    """The schemas' ``sgd`` and ``lr``: the fields in their order, [] for no step; and the learning rate if it is a tensor,
    which takes the place of the first number."""
    if rule is None:
        return [], None
    lr = rule.lr
    number, tensor = (0.0, lr) if isinstance(lr, Tensor) else (float(lr), None)
    numbers = (rule.momentum, rule.dampening, rule.weight_decay, rule.nesterov, rule.maximize, rule.first_step)
    return [number, *map(float, numbers)], tensor


def unpack(sgd: Sequence[float], lr: Tensor | None) -> SGDRule | None:
    """The inverse of :func:`pack`."""
    if not sgd:
        return None
    number, momentum, dampening, weight_decay, nesterov, maximize, first_step = sgd
    return SGDRule(
        number if lr is None else lr, momentum, dampening, weight_decay, bool(nesterov), bool(maximize), bool(first_step)
    )
