"""Fixtures shared by the tests of the ops: each way to run them that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import on_gpu
import pytest
from cuda_host import backend as cuda_host

from dstee import _native
from dstee.testing import Configuration, configurations


def _parameters(thorough: bool) -> list:
    found = [pytest.param(c, id=str(c)) for c in configurations(thorough)]
    reason = _native.load()[1]
    return found + ([pytest.param(Configuration("native"), id="native", marks=pytest.mark.skip(reason))] if reason else [])


@pytest.fixture(params=_parameters(thorough=False) + cuda_host.parameters(0) + on_gpu.parameters())
def backend(request: pytest.FixtureRequest) -> Iterator[Configuration]:
    """The reference, the native kernels with each instruction set of this machine, the CUDA kernels on the host."""
    with request.param.active():
        yield request.param


@pytest.fixture(params=_parameters(thorough=True) + cuda_host.parameters(*range(1, 9)))
def detour(request: pytest.FixtureRequest) -> Iterator[Configuration]:
    """The native kernels with other thread counts, and with their fast path told that its bracket missed or overflowed; the
    CUDA kernels under further schedules."""
    with request.param.active():
        yield request.param
