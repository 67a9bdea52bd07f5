"""Which code runs an op: one table, one reason per refusal, one switch.

Automatic choice takes the first backend of the table that can run. ``DSTEE_BACKEND=name`` or ``with use_backend(name):``
forces one; a forced backend that cannot run raises.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from dstee import reference
from dstee.backends import native
from dstee.backends import triton as triton_backend

__all__ = ["BACKENDS", "Backend", "forced", "resolve", "use_backend"]


@dataclass(frozen=True)
class Backend:
    """A set of implementations of the ops.

    ``why_not(op, device)`` is None when the backend can run the op there, else the reason in one line;
    ``why_not_option(op, device, option)`` says the same of an argument of the op that not every backend has.
    ``guards_itself``: its kernels refuse bad arguments before they write, with a RuntimeError.
    """

    name: str
    why_not: Callable[[str, torch.device], str | None]
    function: Callable[[str], Callable]
    guards_itself: bool = False
    why_not_option: Callable[[str, torch.device, str], str | None] = lambda op, device, option: None

    def refusal(self, op: str, device: torch.device, options: Sequence[str]) -> str | None:
        """Why the backend cannot run the op there with these arguments, or None."""
        reason = self.why_not(op, device)
        if reason is None and options:
            reason = next(filter(None, (self.why_not_option(op, device, option) for option in options)), None)
        return reason


BACKENDS: dict[str, Backend] = {
    b.name: b
    for b in (
        Backend("native", native.why_not, native.function, guards_itself=True, why_not_option=native.why_not_option),
        Backend("triton", triton_backend.why_not, triton_backend.function, why_not_option=triton_backend.why_not_option),
        Backend("reference", lambda op, device: None, lambda op: getattr(reference, op)),
    )
}

_forced: ContextVar[str | None] = ContextVar("dstee_backend", default=None)


def forced() -> str | None:
    """The name forced by :func:`use_backend` or ``DSTEE_BACKEND``, or None for automatic choice."""
    return _forced.get() or os.environ.get("DSTEE_BACKEND") or None


def resolve(op: str, device: torch.device, options: Sequence[str] = ()) -> Backend:
    """The backend that runs ``op`` on ``device``, with those of its arguments that not every backend has (``options``).

    Raises:
        ValueError: the forced name is unknown. RuntimeError: the forced backend cannot run here; the text says why.
    """
    name = forced()
    if name is None:
        for backend in BACKENDS.values():
            # The interpreter is there to be asked for: on the CPU Triton is never the automatic choice.
            if (backend.name != "triton" or device.type != "cpu") and backend.refusal(op, device, options) is None:
                return backend
        raise AssertionError("the reference runs everywhere")
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r} (DSTEE_BACKEND or use_backend), expected one of {', '.join(BACKENDS)}")
    reason = BACKENDS[name].refusal(op, device, options)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} was asked for but cannot run {op} on {device}: {reason}")
    return BACKENDS[name]


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces backend ``name`` inside the block, in this thread or task.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}, expected one of {', '.join(BACKENDS)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)
