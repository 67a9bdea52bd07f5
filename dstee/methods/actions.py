"""What a method can have done to the masks: the actions that :meth:`dstee.methods.Method.plan` returns, executed in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from dstee.methods.context import Update

__all__ = ["Action", "Amount", "KeepGlobal", "Project", "Random", "SetDensity", "Signal", "Swap"]

Numbers: TypeAlias = int | Sequence[int] | Mapping[str, int] | Tensor
Amount: TypeAlias = Numbers | Callable[["Update"], Numbers]
"""Weights per layer: one int for all, a list or an int64 tensor [L] in the order of ``u.names``, a dict by name, or a function
that gives one of these, called when the action's turn comes: after the step, with the masks that earlier actions left."""

Signal: TypeAlias = Callable[["Update"], Sequence[Tensor]]
"""What is ranked: a function that gives one tensor per layer, of the weight's shape and dtype or float32; called as above."""


@dataclass(frozen=True)
class Random:
    """Growth at random: by a hash of (tag, seed, layer name, round, index), the same on every machine."""

    tag: str = "grow"


@dataclass(frozen=True, kw_only=True)
class Swap:
    """In every layer the weakest weights go and the best candidates come (:func:`dstee.ops.drop_grow_`).

    Where only ``bonus``, ``regrow`` and :class:`Random` growth are set, it is one sweep with the optimizer's step. Functions
    are called in the order of the arguments, with the masks before the swap.

    Args:
        drop: weights to drop; None: the schedule's share of the layer's active weights, rounded up.
        grow: weights to grow; None: as many as are dropped, which a function finds in ``u.dropping``.
        drop_by: the lowest of abs(this) go; None: of the weights.
        grow_by: the largest of abs(this) come; None: of the gradients.
        bonus: added to abs(signal) by counter (:func:`dstee.bonus_table`); a float64 table is in units of the signal.
        regrow: whether what is dropped is a candidate; None: as the method says.
    """

    drop: Amount | None = None
    grow: Amount | None = None
    drop_by: Signal | None = None
    grow_by: Signal | Random | None = None
    bonus: Tensor | None = None
    regrow: bool | None = None

    @property
    def is_fusible(self) -> bool:
        """Whether it needs nothing that is known only after the step."""
        return self.drop is self.grow is self.drop_by is None and (self.grow_by is None or isinstance(self.grow_by, Random))


@dataclass(frozen=True)
class KeepGlobal:
    """Of the active weights of all layers together the ``total`` best stay (:func:`dstee.ops.global_keep_`).

    ``by`` is ranked with its sign; None: abs(weight).
    """

    total: int | Tensor | Callable[[Update], int | Tensor]
    by: Signal | None = None


@dataclass(frozen=True)
class Project:
    """Of each layer the ``k`` largest active weights stay, after they were set to ``to`` where that is given.

    Where ``k`` is more than the layer has active, all stay.
    """

    k: Amount
    to: Signal | None = None


@dataclass(frozen=True)
class SetDensity:
    """Layers, by name, get so many active weights: the smallest go, or inactive ones come at 0.

    ``grow_by``: which come, as in :class:`Swap`; None: by index. Layers that are not named stay as they are.
    """

    nnz: Mapping[str, int]
    grow_by: Signal | Random | None = None


Action: TypeAlias = Swap | KeepGlobal | Project | SetDensity
