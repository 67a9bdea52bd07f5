"""What is measured on ranks: lists of layers, made small enough, and methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypedDict

from dstee.methods import DSTEE, SET, Method, RigL

from ..layers import by_name
from ..shapes import Shape

__all__ = ["METHODS", "Case", "Task", "case", "most_collectives"]

METHODS: dict[str, Callable[[], Method]] = {
    "DST-EE": lambda: DSTEE(),
    "DST-EE(c=1e-3)": lambda: DSTEE(c=1e-3),
    "RigL(regrow=False)": lambda: RigL(order="after", regrow=False),
    "SET": lambda: SET(),
}


LEAST = 16
"""No dimension is made smaller than this."""


class Case(NamedTuple):
    """Layers by name, whose dimensions were divided by ``divisor``, down to :data:`LEAST` at most."""

    name: str
    divisor: int
    layers: dict[str, Shape]

    @property
    def n(self) -> int:
        return sum(map(math.prod, self.layers.values()))


class Task(TypedDict):
    """What all ranks of a run are told. ``layers``: names and shapes; ``threads`` and ``timeout`` of each rank."""

    layers: list[tuple[str, Shape]]
    density: float
    dtype: str
    methods: list[str]
    warmup: int
    updates: int
    threads: int
    timeout: float


def case(name: str, largest: float) -> Case:
    """The list ``name`` of :func:`bench.layers.by_name`, made smaller by the least power of 2 that leaves at most ``largest``
    weights.

    Raises:
        UsageError: there is no such list.
    """
    layers, divisor = by_name(name), 1
    while True:
        found = Case(name, divisor, {key: _divided(shape, divisor) for key, shape in layers.items()})
        if found.n <= largest or found.layers == {key: _divided(shape, 2 * divisor) for key, shape in layers.items()}:
            return found
        divisor *= 2


def _divided(shape: Shape, divisor: int) -> Shape:
    return tuple(max(size // divisor, min(size, LEAST)) for size in shape)


def most_collectives(method: str, dtype: str) -> int | None:
    """How many an update may make; None where no number is promised."""
    if dtype != "float32":
        return None
    return 12 if METHODS[method]().regrow else 6
