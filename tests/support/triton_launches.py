"""Runs the host side of the Triton kernels without a GPU: what would be compiled and launched is written down instead.

Triton compiles a kernel for each kind of arguments (types, alignments, constants). It finds that kind without a GPU,
so a driver that only names a target and a compiler that only takes notes show every compilation that a GPU would see. Only for
processes that do not interpret kernels.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from dstee import backends


@dataclass(frozen=True)
class Compilation:
    """One specialisation of a kernel, as Triton's compiler takes it."""

    module: str
    kernel: str
    signature: dict[str, Any] = field(hash=False)  # a tuple of types for a NamedTuple
    constants: dict[Any, Any] = field(hash=False)
    attributes: dict[Any, Any] = field(hash=False)
    warps: int
    fused: bool


@dataclass
class Launches:
    compiled: list[Compilation] = field(default_factory=list)
    launched: list[str] = field(default_factory=list)


class Target:
    """As much of a driver as a launch asks for."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def recording() -> Iterator[Launches]:
    """Inside the block no kernel runs: tensors stay as they are."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    notes = Launches()
    original = JITFunction._do_compile
    names = list(inspect.signature(original).parameters)

    def take_notes(self: Any, *args: Any) -> Any:
        given = dict(zip(names, (self, *args), strict=True))
        name = self.fn.__name__
        options = given["options"]
        notes.compiled.append(
            Compilation(
                self.fn.__module__.rsplit(".", 1)[1], name, given["signature"], given["constexprs"], given["attrs"],
                options.num_warps, options.enable_fp_fusion,
            )
        )  # fmt: skip
        kernel = SimpleNamespace(
            launch_metadata=lambda *a: None, function=None, packed_metadata=None, run=lambda *a: notes.launched.append(name)
        )
        self.device_caches[given["device"]][0][given["key"]] = kernel
        return kernel

    triton = backends.BACKENDS["triton"]
    JITFunction._do_compile = take_notes
    driver.set_active(Target(GPUTarget("cuda", 90, 32)))  # there is none to go back to
    backends.BACKENDS["triton"] = replace(triton, why_not=lambda op, device: None)
    try:
        with backends.use_backend("triton"):
            yield notes
    finally:
        JITFunction._do_compile = original
        backends.BACKENDS["triton"] = triton
