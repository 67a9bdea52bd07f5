"""The op suite on a GPU: backends of the tests that run the CUDA and the Triton kernels on copies of the CPU tensors they get.

``DSTEE_REQUIRE_GPU=1`` (set by ``make gpu``) forbids to leave these tests out: without a GPU they fail.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dstee import backends
from dstee.backends import native, version_counters
from dstee.backends import triton as triton_backend
from dstee.testing import Configuration

REQUIRED = os.environ.get("DSTEE_REQUIRE_GPU") == "1"
NAME, TRITON = "native-cuda", "triton-cuda"
DEVICE = "cuda"


def why_no_gpu() -> str:
    """Empty where the CUDA kernels can run."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    return backends.BACKENDS["native"].why_not("drop_grow_", torch.device("cuda")) or ""


def skip_or_fail() -> None:
    """For the head of a module whose tests all need a GPU.

    Raises:
        RuntimeError: there is none, and it is required.
    """
    reason = why_no_gpu()
    if reason and REQUIRED:
        raise RuntimeError(f"DSTEE_REQUIRE_GPU=1, but {reason}")
    if reason:
        pytest.skip(reason, allow_module_level=True)


@contextlib.contextmanager
def no_syncs() -> Iterator[None]:
    """Inside the block, whatever makes torch wait for the GPU raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Mirror:
    """Copies of CPU tensors on ``device``, storage by storage: offsets, strides, margins and aliasing are those of the CPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.storages: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def send(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.send(v) for v in value]
        if not isinstance(value, Tensor):
            return value
        if type(value) not in (Tensor, torch.nn.Parameter) or value.layout is not torch.strided or value.device.type != "cpu":
            return value  # the kernels are to refuse it themselves
        own = value.untyped_storage()
        if value.numel() and own.nbytes() == 0:  # freed
            return value
        if own._cdata not in self.storages:
            copy = torch.UntypedStorage(own.nbytes(), device=self.device)
            self.storages[own._cdata] = own, copy.copy_(own)
        copy = self.storages[own._cdata][1]
        return torch.empty(0, dtype=value.dtype, device=self.device).set_(
            copy, value.storage_offset(), value.size(), value.stride()
        )

    def bring_back(self) -> None:
        for own, copy in self.storages.values():
            own.copy_(copy)


def mirrored(op: str, kernel: Callable, device: str = "cuda") -> Callable:
    """``kernel`` of ``op``, which takes tensors on ``device``, as a function of CPU tensors."""
    schema = getattr(torch.ops.dstee, op).default._schema
    written = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]

    def call(*args: Any) -> Any:
        mirror = Mirror(device)
        try:
            result = kernel(*(mirror.send(a) for a in args))
        finally:  # what a refused call has written shows too
            mirror.bring_back()
        for i in written:
            version_counters.bump(args[i])
        return result.cpu() if isinstance(result, Tensor) else result

    return call


def _why_not(op: str, device: torch.device) -> str | None:
    return why_no_gpu() or (None if device.type == "cpu" else f"it copies CPU tensors, not {device.type} ones")


def _why_not_native(op: str, device: torch.device) -> str | None:
    return _why_not(op, device) or native.why_not(op, torch.device(DEVICE))


def _why_not_triton(op: str, device: torch.device) -> str | None:
    return _why_not(op, device) or triton_backend.why_not(op, torch.device(DEVICE))


def parameters() -> list:
    """For the parametrised backends of the op suite: two more where there is a GPU, or must be one."""
    if not REQUIRED and why_no_gpu():
        return []
    backends.BACKENDS[NAME] = backends.Backend(
        NAME,
        _why_not_native,
        lambda op: mirrored(op, native.function(op, "cuda")),
        guards_itself=True,
        why_not_option=lambda op, device, option: native.why_not_option(op, torch.device(DEVICE), option),
    )
    backends.BACKENDS[TRITON] = backends.Backend(
        TRITON,
        _why_not_triton,
        lambda op: mirrored(op, lambda *args: triton_backend.function(op)(*args)),
    )
    return [pytest.param(Configuration(name), id=name) for name in (NAME, TRITON)]
