"""Which code runs an op: one table, one reason per refusal, one switch.

Automatic choice takes the first backend of the table that can run. ``DSTEE_BACKEND=name`` or ``with use_backend(name):``
forces one; a forced backend that cannot run raises.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from dstee import reference
from dstee.backends import native
from dstee.backends import triton as triton_backend

_KERNELS = {
    "cpu": torch._C.DispatchKeySet(torch._C.DispatchKey.CPU),
    "cuda": torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA),
}


@dataclass(frozen=True)
class Backend:
    """A set of implementations of the catalogue.

    ``why_not(op, device)`` is None when the backend can run the op there, else the reason in one line.
    ``guards_itself``: its kernels refuse bad arguments before they write, with a RuntimeError.
    """

    name: str
    why_not: Callable[[str, torch.device], str | None]
    function: Callable[[str], Callable]
    guards_itself: bool = False


def _native_why_not(op: str, device: torch.device) -> str | None:
    module, reason = native.load()
    if module is None:
        return reason
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"dstee._C has no kernels for {device.type} devices"
    info = module.build_info()
    if info["cuda"]:
        return None
    why = info.get("why_no_cuda") or "unknown reason"
    return f"dstee._C was built without CUDA kernels ({why}): rebuild it with DSTEE_BUILD=cuda and a CUDA toolkit"


def _bump_versions(tensors: list[torch.Tensor]) -> None:
    try:
        torch.autograd.graph.increment_version(tensors)
    except RuntimeError:  # inference tensors keep no version
        torch.autograd.graph.increment_version([t for t in tensors if not t.is_inference()])


def _written(op: str) -> list[int]:
    """Which arguments the op writes."""
    arguments = getattr(torch.ops.dstee, op).default._schema.arguments
    return [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]


@functools.cache
def _triton_function(op: str) -> Callable:
    kernel, written = triton_backend.function(op), _written(op)

    def call(*args):
        result = kernel(*args)
        for i in written:  # as for native kernels, below
            _bump_versions(args[i])
        return result

    return call


@functools.cache
def _native_function(op: str) -> Callable:
    return native_function(op)


def native_function(op: str, device_type: str | None = None) -> Callable:
    """The compiled kernel of ``op`` for ``device_type`` ("cpu" or "cuda"), by default that of its first tensor argument."""
    kernel = getattr(torch.ops.dstee, op).default
    written = _written(op)

    def call(*args):
        # Straight to the kernels of one device, which refuse what is not theirs. The dispatcher would let one meta or sparse
        # tensor among the arguments choose: a meta kernel does nothing, without a word.
        first = args[0][0] if isinstance(args[0], list) else args[0]
        result = kernel.redispatch(_KERNELS[device_type or first.device.type], *args)
        for i in written:  # else autograd could use a saved weight that has changed since, without a word
            _bump_versions(args[i])
        return result

    return call


BACKENDS: dict[str, Backend] = {
    b.name: b
    for b in (
        Backend("native", _native_why_not, _native_function, guards_itself=True),
        Backend("triton", triton_backend.why_not, _triton_function),
        Backend("reference", lambda op, device: None, lambda op: getattr(reference, op)),
    )
}

_forced: ContextVar[str | None] = ContextVar("dstee_backend", default=None)
_timer: ContextVar[KernelTime | None] = ContextVar("dstee_timer", default=None)


def forced() -> str | None:
    """The name forced by :func:`use_backend` or ``DSTEE_BACKEND``, or None for automatic choice."""
    return _forced.get() or os.environ.get("DSTEE_BACKEND") or None


def resolve(op: str, device: torch.device) -> Backend:
    """The backend that runs ``op`` on ``device``.

    Raises:
        ValueError: the forced name is unknown. RuntimeError: the forced backend cannot run here; the text says why.
    """
    name = forced()
    if name is None:
        # The interpreter is there to be asked for: on the CPU Triton is never the automatic choice.
        names = [name for name in BACKENDS if name != "triton" or device.type != "cpu"]
        return next(BACKENDS[name] for name in names if BACKENDS[name].why_not(op, device) is None)
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r} (DSTEE_BACKEND or use_backend), expected one of {', '.join(BACKENDS)}")
    reason = BACKENDS[name].why_not(op, device)
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


@dataclass
class KernelTime:
    """Calls and wall seconds spent in the ops of the catalogue; on a GPU, the time to launch them."""

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


def run(backend: Backend, op: str, args: tuple) -> Any:
    timer = _timer.get()
    if timer is None:
        return backend.function(op)(*args)
    start = time.perf_counter()
    try:
        return backend.function(op)(*args)
    finally:
        timer.calls += 1
        timer.seconds += time.perf_counter() - start
