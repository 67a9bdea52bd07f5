"""RigL (Evci et al., Rigging the Lottery)."""

from __future__ import annotations

from dataclasses import dataclass, field

from dstee.methods.base import Method, Order
from dstee.methods.registry import register

__all__ = ["RigL"]


@register
@dataclass(frozen=True)
class RigL(Method):
    """RigL: grow by ``abs(g)``; an update replaces the step."""

    order: Order = field(default="replace", kw_only=True)

    name = "RigL"
    key = "rigl"
    needs_gradients = True
