"""Where the caller or torch's threads flush denormals to 0, every backend computes with them all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dstee import _float_mode, backends, encoding, ops
from dstee.backends import native, triton
from dstee.testing import assert_same_bits

pytestmark = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush denormals")
needs_native = pytest.mark.skipif(not native.load()[0], reason=native.load()[1])
no_triton = triton.why_not("drop_grow_", torch.device("cpu"))
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
BACKENDS += [pytest.param("triton", marks=pytest.mark.skipif(bool(no_triton), reason=no_triton or ""))]
RULE = ops.SGDRule(0.1, momentum=0.9, weight_decay=0.01, nesterov=True)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    torch.ones(1 << 20).mul(2)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def flushed() -> Iterator[None]:
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def tiny(n: int, generator: torch.Generator) -> Tensor:
    """Denormals of both signs, and normal numbers whose products with 0.1 are denormal."""
    bits = torch.randint(0, 0x0100_0000, (n,), generator=generator, dtype=torch.int32)
    return (bits | torch.randint(0, 2, (n,), generator=generator, dtype=torch.int32) << 31).view(torch.float32)


def case(n: int, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(n)
    w, g, m = (tiny(n, generator).to(dtype) for _ in range(3))
    mask = torch.arange(n) % 3 == 0
    bits = encoding.pack_bits(mask)
    zero = torch.zeros((), dtype=dtype)
    bonus = torch.tensor([0x0000_7000, 0x0000_0700, 0x0000_0070], dtype=torch.int32).view(torch.float32)
    counts = encoding.flip_counts(mask.int() + (torch.arange(n) % 2).int() * ~mask, mask, 1).short()
    return dict(params=[torch.where(mask, w, zero)], grads=[g], momenta=[torch.where(mask, m, zero)], mask_bits=[bits],
                counts=[counts], k=[n // 10], bonus=bonus, round=1)  # fmt: skip


def after(backend: str, n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a masked step and then an update with its step leave."""
    arguments = case(n, dtype)
    step = {name: arguments[name] for name in ("params", "grads", "momenta", "mask_bits")}
    with backends.use_backend(backend):
        ops.masked_sgd_(**step, sgd=RULE)
        ops.drop_grow_(**arguments, sgd=RULE)
    return {name: arguments[name][0] for name in ("params", "momenta", "mask_bits", "counts")}


SIZES = [7, 5_000, 70_001, 200_003]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", SIZES)
def test_the_caller_flushes(threads: int, n: int, backend: str, dtype: torch.dtype) -> None:
    if backend == "triton" and n * threads > 5_000:
        return  # interpreted: slow
    expected = after(backend, n, dtype)
    torch.set_flush_denormal(True)
    try:
        found = after(backend, n, dtype)
        assert _float_mode._flushes(1), "the caller goes on as it was"
    finally:
        torch.set_flush_denormal(False)
    assert torch.get_num_threads() == threads
    for name, t in expected.items():
        assert_same_bits(found[name], t, name)


@needs_native
@pytest.mark.parametrize("n", SIZES)
def test_both_backends_agree(flushed: None, threads: int, n: int) -> None:
    one, other = after("native", n, torch.float32), after("reference", n, torch.float32)
    for name, t in one.items():
        assert_same_bits(other[name], t, name)


def test_what_is_tested_depends_on_denormals(flushed: None) -> None:
    """Computed with them lost, the results are others."""
    arguments = case(5_000, torch.float32)
    before = arguments["params"][0].clone()
    assert int((before * 1.0).view(torch.int32).count_nonzero()) < int(before.view(torch.int32).count_nonzero())


def test_an_error_leaves_flag_and_threads_as_they_were(flushed: None, threads: int) -> None:
    with pytest.raises(ZeroDivisionError), _float_mode.gradual_underflow(10):
        assert torch.get_num_threads() == 1 and not _float_mode._flushes(1)
        raise ZeroDivisionError
    assert torch.get_num_threads() == threads and _float_mode._flushes(1)


def test_without_flushing_nothing_is_set(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("set_num_threads", "set_flush_denormal"):
        monkeypatch.setattr(torch, name, pytest.fail)
    with _float_mode.gradual_underflow(200_003):
        assert torch.get_num_threads() == threads


FLUSHING_POOL = """
import torch
torch.set_num_threads(2)
torch.set_flush_denormal(True)
torch.ones(1 << 20).mul(2)  # now the pool starts, and flushes for ever
torch.set_flush_denormal(False)
from ops.test_flushed_denormals import SIZES, after
from dstee import _float_mode
from dstee.testing import assert_same_bits
assert _float_mode._flushes(1 << 20) and not _float_mode._flushes(1)
for n in SIZES:
    found = after("reference", n, torch.float32)
    assert torch.get_num_threads() == 2 and not _float_mode._flushes(1)
    torch.set_num_threads(1)
    for name, t in after("reference", n, torch.float32).items():
        assert_same_bits(found[name], t, name)
    torch.set_num_threads(2)
print("same")
"""


def test_only_the_threads_of_the_pool_flush() -> None:
    """The caller flushed when they started, and no longer does."""
    tests = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tests.parent, tests)))}
    done = subprocess.run([sys.executable, "-c", FLUSHING_POOL], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout == "same\n", done.stderr
