"""How much of a program's time the ops take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

__all__ = ["KernelTime", "kernel_time", "timed"]


@dataclass
class KernelTime:
    """Calls and wall seconds spent in the ops; on a GPU, the time to launch them."""

    calls: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def kernel_time() -> Iterator[KernelTime]:
    """Adds up the time of every op called inside the block."""
    timer = KernelTime()
    token = _timer.set(timer)
    try:
        yield timer
    finally:
        _timer.reset(token)
        outer = _timer.get()
        if outer is not None:
            outer.calls += timer.calls
            outer.seconds += timer.seconds


_timer: ContextVar[KernelTime | None] = ContextVar("dstee_timer", default=None)


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, its calls added to the timer in force; itself where there is none."""
    timer = _timer.get()
    if timer is None:
        return function

    def call(*args: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            timer.calls += 1
            timer.seconds += time.perf_counter() - start

    return call
