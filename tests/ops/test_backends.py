"""The table of backends: automatic choice, forcing, reasons, and the timer around the ops."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dstee
from dstee import backends, ops
from dstee.backends import native
from dstee.testing import Configuration, assert_same_bits, configurations, native_isas

CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(native.load()[0] is None, reason=native.load()[1])


@pytest.fixture(autouse=True)
def no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSTEE_BACKEND", raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # then Triton takes no GPU; see test_triton.py for its place in the table


def without_native(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    monkeypatch.setattr(native, "load", lambda: (None, reason))


# --- choice --------------------------------------------------------------------------------------------------------------


@needs_native
def test_the_native_backend_is_chosen_where_it_runs() -> None:
    assert backends.resolve("drop_grow_", CPU).name == "native"


def test_without_the_module_the_reference_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    without_native(monkeypatch, "not built")
    assert backends.resolve("drop_grow_", CPU).name == "reference"
    assert int(ops.count_active([torch.tensor([7], dtype=torch.uint8)])) == 3


def test_a_device_without_kernels_gets_the_reference() -> None:
    """Nothing falls through to the CPU module for a device it was not built for."""
    device = torch.device("xpu")
    assert backends.resolve("masked_sgd_", device).name == "reference"
    reason = backends.BACKENDS["native"].why_not("masked_sgd_", device)
    assert reason and (native.load()[0] is None or "xpu" in reason)


def fake_module(monkeypatch: pytest.MonkeyPatch, **info: str) -> None:
    module = SimpleNamespace(build_info=lambda: {"cuda": "", "archs": "", "why_no_cuda": ""} | info)
    monkeypatch.setattr(native, "load", lambda: (module, ""))


def test_a_gpu_without_cuda_kernels_gets_the_reference_and_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_module(monkeypatch, why_no_cuda="nvcc not found")
    device = torch.device("cuda")
    assert backends.resolve("drop_grow_", device).name == "reference"
    with (
        pytest.raises(
            RuntimeError, match=r"cannot run drop_grow_ on cuda: .*without CUDA kernels \(nvcc not found\).*DSTEE_BUILD"
        ),
        backends.use_backend("native"),
    ):
        backends.resolve("drop_grow_", device)


def test_a_gpu_gets_the_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_module(monkeypatch, cuda="13.0", archs="8.0;9.0+PTX")
    assert backends.resolve("masked_sgd_", torch.device("cuda", 1)).name == "native"
    assert backends.BACKENDS["native"].why_not("masked_sgd_", torch.device("xpu"))


# --- forcing -------------------------------------------------------------------------------------------------------------


def test_forcing_and_nesting() -> None:
    assert dstee.use_backend is backends.use_backend
    before = backends.resolve("pack_mask", CPU).name
    with backends.use_backend("reference"):
        assert backends.forced() == "reference"
        assert backends.resolve("pack_mask", CPU).name == "reference"
        with backends.use_backend("native"):
            assert backends.forced() == "native"
        assert backends.forced() == "reference"
    assert backends.forced() is None
    assert backends.resolve("pack_mask", CPU).name == before


def test_forcing_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), backends.use_backend("reference"):
        raise KeyError
    assert backends.forced() is None


def test_the_environment_forces_and_the_block_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSTEE_BACKEND", "reference")
    assert backends.resolve("pack_mask", CPU).name == "reference"
    with backends.use_backend("native"):
        assert backends.forced() == "native"
    monkeypatch.setenv("DSTEE_BACKEND", "")
    assert backends.forced() is None


def test_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ValueError, match=r"unknown backend 'abacus', expected one of native.*reference"),
        backends.use_backend("abacus"),
    ):
        pass
    monkeypatch.setenv("DSTEE_BACKEND", "abacus")
    with pytest.raises(ValueError, match=r"unknown backend 'abacus' \(DSTEE_BACKEND"):
        ops.pack_mask(torch.ones(3, dtype=torch.bool))


def test_a_forced_backend_that_cannot_run_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """No silent fallback: the text says what was asked for, and why it cannot be."""
    without_native(monkeypatch, "the compiler was asleep")
    with (
        pytest.raises(RuntimeError, match="'native' was asked for but cannot run pack_mask on cpu: the compiler was asleep"),
        backends.use_backend("native"),
    ):
        ops.pack_mask(torch.ones(3, dtype=torch.bool))


def test_another_thread_is_not_forced() -> None:
    seen: list[str | None] = []
    with backends.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.forced()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_threads_may_call_at_the_same_time(backend: Configuration) -> None:
    """Workspaces of concurrent calls must not mix."""
    masks = [torch.arange(100_003) % (3 + i) == 0 for i in range(4)]
    expected = [ops.pack_mask(m) for m in masks]
    results: list[list[torch.Tensor]] = [[] for _ in masks]

    def work(i: int) -> None:
        with backends.use_backend(backend.backend):
            for _ in range(5):
                results[i].append(_updated(masks[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i, packed in enumerate(expected):
        alone = _updated(masks[i])
        assert not torch.equal(alone, packed), "the update changed nothing, so this test would prove nothing"
        for r in results[i]:
            assert_same_bits(r, alone, f"thread {i}")
    assert len(results[0]) == 5


def _updated(mask: torch.Tensor) -> torch.Tensor:
    """The mask bits after one update of a layer that is a function of ``mask`` alone."""
    n = mask.numel()
    w = torch.sin(torch.arange(n, dtype=torch.float32)) * mask
    g = torch.cos(torch.arange(n, dtype=torch.float32))
    bits = ops.pack_mask(mask)
    ops.drop_grow_([w], [g], None, [bits], None, [n // 20], bonus=None, round=0)
    return bits


# --- reasons of the native module ----------------------------------------------------------------------------------------

load_anew: Callable[[], tuple[Any, str]] = native.load.__wrapped__


def test_a_module_that_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    module, reason = load_anew()
    assert module is None and "not built" in reason and "pip install" in reason


def test_a_torch_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is not even opened: with the wrong torch it would fail in ways that explain nothing."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail("the library was opened"))
    for version in ("2.10.1", "1.13.0+cpu", "2.9.0.dev20250101+cu130"):
        monkeypatch.setattr(torch, "__version__", version)
        module, reason = load_anew()
        assert module is None and version in reason and "needs torch >= 2.11" in reason


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("undefined symbol: spam")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", broken)
    module, reason = load_anew()
    assert module is None and "undefined symbol: spam" in reason and "rebuild" in reason
    monkeypatch.setattr(native, "load", load_anew)
    assert "undefined symbol: spam" in native.build_info()["error"]


@needs_native
def test_the_module_tells_how_it_was_built() -> None:
    info = native.build_info()
    assert info["compiler"] and isinstance(info["flags"], str)
    assert "-ffp-contract=off" in info["flags"] and "-ffast-math" not in info["flags"]
    assert set(native_isas()) <= set(info["cpu_features"]) and "scalar" in info["cpu_features"]


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="reads the module's sections as Linux has them")
def test_the_module_carries_no_debug_information() -> None:
    module = native.load()[0]
    assert module is not None and module.__file__ is not None
    binary = Path(module.__file__).read_bytes()
    assert b".debug_info" not in binary, "built by an older setup.py: build it again"
    assert len(binary) < 2_000_000 or native.build_info()["cuda"]


@needs_native
def test_switches_of_the_native_module_refuse_nonsense() -> None:
    module = native.load()[0]
    assert module is not None
    with pytest.raises(ValueError, match="sse9"):
        module.force_isa("sse9")
    with pytest.raises(ValueError, match="list_share"):
        module.set_test_limits(list_share=-0.5)
    assert module.test_limits() == (1.0, False)


@needs_native
def test_a_forced_instruction_set_is_used_and_given_back() -> None:
    module = native.load()[0]
    assert module is not None
    automatic = module.build_info()["cpu_in_use"]
    for configuration in configurations()[1:]:
        with configuration.active():
            assert module.build_info()["cpu_in_use"] == configuration.isa
    assert module.build_info()["cpu_in_use"] == automatic == native_isas()[0]


# --- the timer -----------------------------------------------------------------------------------------------------------


def test_kernel_time_adds_up_calls_and_seconds(backend: Configuration) -> None:
    mask = torch.ones(1000, dtype=torch.bool)
    with backends.kernel_time() as outer:
        ops.pack_mask(mask)
        with backends.kernel_time() as inner:
            ops.pack_mask(mask)
            ops.pack_mask(mask)
    ops.pack_mask(mask)
    assert (outer.calls, inner.calls) == (3, 2), "every call inside the block, none after it"
    assert 0 < inner.seconds < outer.seconds < 5


def test_one_update_is_one_call(backend: Configuration) -> None:
    """What the checks look up on the way is not counted."""
    with backends.kernel_time() as timer:
        _updated(torch.arange(1000) % 3 == 0)
    assert timer.calls == 2, "pack_mask and drop_grow_"


def test_kernel_time_counts_a_call_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise MemoryError

    monkeypatch.setitem(backends.BACKENDS, "broken", backends.Backend("broken", lambda op, device: None, lambda op: broken))
    with backends.use_backend("broken"), backends.kernel_time() as timer, pytest.raises(MemoryError):
        ops.pack_mask(torch.ones(1, dtype=torch.bool))
    assert timer.calls == 1 and timer.seconds >= 0
