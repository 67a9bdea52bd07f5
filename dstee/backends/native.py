"""The compiled kernels: loads ``dstee._C`` once, remembers why it could not be loaded, and calls its kernels."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType

import torch

from dstee.backends import version_counters

__all__ = ["OLDEST_TORCH", "build_info", "function", "load", "why_not"]

OLDEST_TORCH = (2, 11)
_KEYS = {
    "cpu": torch._C.DispatchKeySet(torch._C.DispatchKey.CPU),
    "cuda": torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA),
}


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """(module, "") or (None, reason). The torch version is looked at before the library is opened."""
    if importlib.util.find_spec("dstee._C") is None:
        return None, "dstee._C is not built: run `pip install --no-build-isolation -e .` with a C++ compiler"
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        return None, f"torch {torch.__version__} found, dstee._C needs torch >= 2.11: upgrade torch"
    try:
        return importlib.import_module("dstee._C"), ""
    except ImportError as error:
        return None, f"dstee._C could not be loaded ({error}): rebuild it with `pip install --no-build-isolation -e .`"


def build_info() -> dict:
    """What the compiled module says of itself (compiler, flags, CUDA, CPU features), or ``{"error": reason}``."""
    module, reason = load()
    return module.build_info() if module else {"error": reason}


def why_not(op: str, device: torch.device) -> str | None:
    module, reason = load()
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


@functools.cache
def function(op: str, device_type: str | None = None) -> Callable:
    """The compiled kernel of ``op`` for ``device_type`` ("cpu" or "cuda"), by default that of its first tensor argument."""
    kernel = getattr(torch.ops.dstee, op).default
    written = version_counters.written(op)

    def call(*args):
        # Straight to the kernels of one device, which refuse what is not theirs. The dispatcher would let one meta or sparse
        # tensor among the arguments choose: a meta kernel does nothing, without a word.
        first = args[0][0] if isinstance(args[0], list) else args[0]
        result = kernel.redispatch(_KEYS[device_type or first.device.type], *args)
        for i in written:  # else autograd could use a saved weight that has changed since, without a word
            version_counters.bump(args[i])
        return result

    return call
