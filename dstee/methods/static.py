"""A random mask that never changes."""

from __future__ import annotations

from dataclasses import dataclass

from dstee.methods.base import Method
from dstee.methods.registry import register

__all__ = ["Static"]


@register
@dataclass(frozen=True)
class Static(Method):
    """The initial random mask, for good."""

    name = "static"
    key = "static"
    group = "at initialisation"
    updates = False
