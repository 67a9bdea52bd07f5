"""Finds the Triton kernels, ``dstee.kernels``, and imports them when an op first asks; remembers why it could not."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dstee._console import needs
from dstee._float_mode import with_gradual_underflow
from dstee.backends import version_counters

__all__ = ["DEVICES", "MODULES", "NO_OPTION", "function", "interpreted", "missing", "module", "why_not", "why_not_option"]

MODULES = {
    "masked_sgd_": "masked_sgd", "drop_grow_": "drop_grow", "pack_mask": "pack_mask", "unpack_mask": "pack_mask",
    "encode_counts": "counts", "decode_counts": "counts", "count_active": "counts", "count_explored": "counts",
    "count_outside": "count_outside", "count_below": "count_below", "growth_scale": "growth_scale",
    "hashed_noise_": "hashed_noise", "global_keep_": "global_keep", "key_histogram": "key_histogram",
}  # fmt: skip
NO_OPTION: dict[str, frozenset[str]] = {
    "masked_sgd_": frozenset({"packed_momenta"}),
    "drop_grow_": frozenset({"packed_momenta"}),
}
"""Arguments of an op that its kernels have not got. They refuse them when called directly, too."""
_COMPUTE = ("masked_sgd_", "drop_grow_", "count_below", "key_histogram")
DEVICES = ("cuda", "xpu")  # torch calls ROCm cuda


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which the environment decides when they are imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def why_not(op: str, device: torch.device) -> str | None:
    """Why the Triton kernels cannot run ``op`` on the device; None where they can."""
    if device.type == "cpu" and not interpreted():
        return (
            "it is for GPUs, a CPU needs nothing more for it (TRITON_INTERPRET=1, set before Python starts, interprets its "
            "kernels: slow, for tests)"
        )
    if device.type != "cpu" and interpreted():
        return f"TRITON_INTERPRET is set, and the interpreter cannot read the memory of {device.type} devices: unset it"
    if op not in MODULES:
        return f"there is no Triton kernel of {op}"
    if device.type not in (*DEVICES, "cpu"):
        return f"the Triton kernels are written for {' and '.join(DEVICES)} devices, not for {device.type}"
    return missing()


def why_not_option(op: str, device: torch.device, option: str) -> str | None:
    return f"the Triton kernel of {op} has no {option}" if option in NO_OPTION.get(op, ()) else None


@functools.cache
def missing() -> str | None:
    """What to install, or None."""
    if importlib.util.find_spec("triton") is None:
        return needs("the Triton backend", "triton", "triton")
    return None


@functools.cache
def function(op: str) -> Callable[..., Any]:
    """What runs ``op``, with the arguments of its schema.

    Raises:
        RuntimeError: the kernels cannot be imported.
    """
    kernel, written = getattr(module(MODULES[op]), op), version_counters.written(op)
    if interpreted() and op in _COMPUTE:  # numpy computes as the calling thread does
        kernel = with_gradual_underflow(kernel)

    def call(*args: Any) -> Any:
        result = kernel(*args)
        if written:  # as for native kernels
            version_counters.bump([t for i in written for t in args[i]])
        return result

    return call


@functools.cache
def module(name: str) -> ModuleType:
    """``dstee.kernels.<name>``.

    Raises:
        RuntimeError: it cannot be imported.
    """
    if importlib.util.find_spec("dstee.kernels") is None:
        _from_checkout()
    try:
        return importlib.import_module(f"dstee.kernels.{name}")
    except ImportError as error:
        raise RuntimeError(f"the Triton kernels could not be imported ({error}): install another triton") from error


def _from_checkout() -> None:
    """In a source tree that is not installed the kernels lie beside the package, not in it."""
    folder = Path(__file__).resolve().parents[2] / "kernels"
    spec = importlib.util.spec_from_file_location(
        "dstee.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not folder.is_dir():
        raise RuntimeError("dstee.kernels is not installed: reinstall dstee")
    package = importlib.util.module_from_spec(spec)
    sys.modules["dstee.kernels"] = package
    spec.loader.exec_module(package)
