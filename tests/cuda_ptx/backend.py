"""What nvcc makes of the CUDA kernels as one more backend of the tests, "cuda-ptx": their PTX is executed on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cuda_host import build
from cuda_host.backend import HostConfiguration
from cuda_ptx import compile as ptx_compile

__all__ = ["PtxConfiguration", "parameters", "why_not"]


@dataclass(frozen=True)
class PtxConfiguration(HostConfiguration):
    """The kernels' PTX under the schedules of one seed.

    arch: of the PTX, 80 or 90. lockstep: the lanes of a warp go together where they can, as counts want them; else at random.
    resident, multiprocessors: blocks alive at once, and the caches that they share. weak: caches keep what they hold and stores
    arrive late, until a fence.
    """

    backend: str = "cuda-ptx"
    variant: build.Variant = build.PTX
    arch: int = ptx_compile.ARCH
    lockstep: bool = False
    resident: int = 8
    multiprocessors: int = 4
    weak: bool = True
    races: bool = True

    def __str__(self) -> str:
        parts = [super().__str__(), f"sm{self.arch}" if self.arch != ptx_compile.ARCH else "", "lockstep" * self.lockstep]
        return "-".join(filter(None, parts))

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        module = build.load(self.variant)
        try:
            for text in ptx_compile.ptx_of_all(self.arch).values():
                module.load_ptx(text)
            module.set_ptx_schedule(
                self.seed, lockstep=self.lockstep, resident=self.resident, processors=self.multiprocessors, weak=self.weak,
                races=self.races,
            )  # fmt: skip
            with super().active():
                yield
        finally:
            module.clear_ptx()


def why_not() -> str:
    """Empty when there are both compilers."""
    return build.why_not() or ptx_compile.why_not()


def parameters(*configurations: PtxConfiguration) -> list[Any]:
    """For ``pytest.mark.parametrize``: a skip where a compiler is missing."""
    reason = why_not()
    marks = [pytest.mark.skip(reason)] if reason else []
    return [pytest.param(c, id=str(c), marks=marks) for c in configurations]
