"""The CUDA kernels on the CPU as one more backend of the tests: its name is "cuda-host", and it is there only while active."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cuda_host import build

from dstee import backends, ops
from dstee.backends import native, version_counters
from dstee.testing import Case, Configuration, assert_same_bits

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


@dataclass(frozen=True)
class HostConfiguration(Configuration):
    """The kernels under the schedules of one seed. Every launch has its own schedule, so one seed is many of them.

    processors: of the pretended GPU, hence how large the grids are; 0 is the harness's default.
    list_share, tight_bounds: make rare paths common, see csrc/test_limits.h.
    """

    backend: str = "cuda-host"
    seed: int = 0
    variant: build.Variant = build.PLAIN
    processors: int = 0
    list_share: float = 1.0
    tight_bounds: bool = False

    def __str__(self) -> str:
        parts = [self.backend, f"s{self.seed}"]
        parts += [self.variant.name] if self.variant is not build.PLAIN else []
        parts += [f"p{self.processors}"] if self.processors else []
        parts += [f"lists{self.list_share:g}"] if self.list_share != 1.0 else []
        parts += ["tight"] if self.tight_bounds else []
        return "-".join(parts)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        module = build.load(self.variant)
        _declare(self.variant.space)
        backends.BACKENDS[self.backend] = backends.Backend(
            self.backend,
            functools.partial(_why_not, self.variant),
            functools.partial(_function, self.variant),
            guards_itself=True,
            why_not_option=lambda op, device, option: native.why_not_option(op, torch.device("cuda"), option),
        )
        try:
            module.set_seed(self.seed)
            module.set_processors(self.processors)
            module.set_test_limits(list_share=self.list_share, tight_bounds=self.tight_bounds)
            module.take_report()
            with super().active():
                yield
        finally:
            module.set_processors()
            module.set_test_limits()
            module.abort_after()
            del backends.BACKENDS[self.backend]


def parameters(*seeds: int) -> list[Any]:
    """For ``pytest.fixture(params=...)``: a skip without a compiler."""
    reason = build.why_not()
    marks = [pytest.mark.skip(reason)] if reason else []
    found = [HostConfiguration(seed=seed) for seed in seeds]
    return [pytest.param(c, id=str(c), marks=marks) for c in found]


def update(case: Case, backend: str, explored: bool = True) -> Case:
    """The case after its mask update, and what count_explored says then."""
    run = case.clone()
    with backends.use_backend(backend):
        run.drop_grow_()
        if explored and run.counts:
            run.options["explored"] = ops.count_explored(run.counts, run.mask_bits)
    run.assert_margins()
    return run


def compare(case: Case, configuration: HostConfiguration, explored: bool = True) -> None:
    """The update's bits are those of the reference."""
    expected = update(case, "reference", explored)
    with configuration.active():
        actual = update(case, configuration.backend, explored)
    for name, tensors in expected.lists().items():
        assert_same_bits(actual.lists()[name], tensors, f"{name} of {case.description}")
    assert_same_bits(actual.options.get("explored"), expected.options.get("explored"), "count_explored")


@contextlib.contextmanager
def kept_workspaces(variant: build.Variant = build.PLAIN) -> Iterator[None]:
    """In here a workspace that was freed serves the next request of its size as it was left."""
    module = build.load(variant)
    module.keep_workspace(True)
    try:
        yield
    finally:
        module.keep_workspace(False)


@functools.cache
def _declare(space: str) -> torch.library.Library:
    """The catalogue's schemas once more, in the library that the harness registers its kernels for."""
    library = torch.library.Library(space, "DEF")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("dstee::"):
            schema = getattr(torch.ops.dstee, name.removeprefix("dstee::")).default._schema
            library.define(str(schema).removeprefix("dstee::"))
    return library


def _why_not(variant: build.Variant, op: str, device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"the harness runs on cpu tensors, not on {device.type}"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{variant.space}::{op}", "CPU"):
        return f"csrc/cuda has no {op}"
    return None


@functools.cache
def _function(variant: build.Variant, op: str) -> Callable:
    module, kernel = build.load(variant), getattr(getattr(torch.ops, variant.space), op).default
    written = [i for i, a in enumerate(kernel._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]

    def call(*args):
        result = kernel.redispatch(_CPU, *args)  # as the native backend does
        for i in written:
            version_counters.bump(args[i])
        report = module.take_report()  # undefined behaviour in host code ends nothing by itself
        assert not report, report
        return result

    return call
