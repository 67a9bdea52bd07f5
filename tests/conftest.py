"""Fixtures shared by the tests of the ops: each way to run them that this machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from cuda_host import backend as cuda_host
from support import on_gpu
from support.lacking import lacks
from support.processes import Launcher

from dstee.backends import native
from dstee.backends import triton as triton_backend
from dstee.testing import Configuration, configurations

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are imported, which the first of their calls does


def _parameters(thorough: bool) -> list:
    found = [pytest.param(c, id=str(c)) for c in configurations(thorough)]
    reason = native.load()[1]
    return found + ([pytest.param(Configuration("native"), id="native", marks=pytest.mark.skip(reason))] if reason else [])


def _triton_parameters() -> list:
    """The Triton kernels, interpreted."""
    reason = triton_backend.why_not("drop_grow_", torch.device("cpu"))
    marks = [pytest.mark.skip(reason)] if reason else []
    return [pytest.param(Configuration("triton", threads=1), id="triton", marks=marks)]


# Interpreted Triton kernels are slow, and on a GPU each new set of options is compiled: test_triton.py has cases of its own,
# these modules have small ones.
WITH_TRITON = (
    "test_drop_grow_tables", "test_budget_tables", "test_budget_errors", "test_errors", "test_pack_mask", "test_counts",
    "test_count_outside",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def wanted(item: pytest.Item) -> bool:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        configuration = parameters.get("backend") or parameters.get("detour")
        if not isinstance(configuration, Configuration):
            return True
        mark = item.get_closest_marker("op")
        if lacks(configuration, *(mark.args if mark else (parameters.get("op", ""),))):
            return False
        return configuration.backend not in ("triton", on_gpu.TRITON) or item.path.stem in WITH_TRITON

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many small layers: the reference's sorts of them wait for threads most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=_parameters(thorough=False) + _triton_parameters() + cuda_host.parameters(0) + on_gpu.parameters())
def backend(request: pytest.FixtureRequest) -> Iterator[Configuration]:
    """The reference, the native kernels with each instruction set of this machine, the interpreted Triton kernels, the CUDA
    kernels on the host."""
    with request.param.active():
        yield request.param


@pytest.fixture(params=_parameters(thorough=True) + cuda_host.parameters(*range(1, 9)))
def detour(request: pytest.FixtureRequest) -> Iterator[Configuration]:
    """The native kernels with other thread counts, and with bounds that miss or lists without room; the CUDA
    kernels under further schedules."""
    with request.param.active():
        yield request.param


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Runs functions on several processes. Whoever is first to use it pays for its start."""
    launcher = Launcher(tmp_path_factory.mktemp("ranks"))
    yield launcher
    launcher.close()
