"""A fork after kernels have used several threads: an error instead of a child that waits for ever; other children work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dstee.backends import native

pytestmark = [
    pytest.mark.skipif(not native.load()[0], reason=native.load()[1]),
    pytest.mark.skipif(sys.platform != "linux", reason="the runtime of OpenMP that waits is Linux's"),
]

PREPARED = """
import os, signal, sys, torch
from dstee import backends, encoding, ops

torch.set_num_threads(1)
n = 1 << 18
w, g = torch.ones(n), torch.ones(n)
bits = torch.full((n // 8,), 255, dtype=torch.uint8)

def step():
    ops.masked_sgd_([w], [g], None, [bits], lr=0.5)

def fork(threads):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # a child that waits for ever dies of it
        try:
            torch.set_num_threads(threads)
            step()
            print("stepped", float(w[0]), float(w[-1]), flush=True)
        except RuntimeError as error:
            print(error, flush=True)
        finally:
            os._exit(0)
    print("status", os.waitpid(pid, 0)[1], flush=True)
"""

REFUSED = (
    "this process was forked from one that had used CPU kernels with several threads, which the fork did not copy: "
    "with more than one thread it would wait for them for ever. Start it with spawn or forkserver "
    "(multiprocessing.get_context), or call torch.set_num_threads(1) in it first"
)


def run(code: str) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(native.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREPARED + code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


has_gnu_openmp = pytest.mark.skipif(not native._has_gnu_openmp(), reason="this torch has another OpenMP than GNU's")


@has_gnu_openmp
@pytest.mark.parametrize(
    "before",
    [
        "torch.set_num_threads(2); step()",
        "torch.set_num_threads(2); step(); torch.set_num_threads(1)",
        "torch.set_num_threads(1); step(); torch.set_num_threads(2); step()",
        "torch.set_num_threads(2); step(); fork(1)",
    ],
)
def test_a_child_with_several_threads_is_told_what_to_do(before: str) -> None:
    assert run(f"{before}\nfork(2)")[-2:] == [REFUSED, "status 0"]


@has_gnu_openmp
def test_the_grandchild_of_threads_is_told_too() -> None:
    grandchild = "torch.set_num_threads(2); step()\npid = os.fork()\nif pid == 0:\n fork(2); os._exit(0)\nos.waitpid(pid, 0)"
    assert run(grandchild) == [REFUSED, "status 0"]


def test_one_thread_in_the_child_works() -> None:
    assert run("torch.set_num_threads(2); step()\nfork(1)") == ["stepped 0.0 0.0", "status 0"]


def test_the_error_goes_away_with_one_thread() -> None:
    code = "torch.set_num_threads(2); step()\nreal = step\n"
    code += "def step():\n try: real()\n except RuntimeError: torch.set_num_threads(1); real()\nfork(2)"
    assert run(code) == ["stepped 0.0 0.0", "status 0"]


@pytest.mark.parametrize("before", ["", "step()", "ops.pack_mask(torch.ones(8, dtype=torch.bool))"])
def test_a_parent_with_one_thread_refuses_its_children_none(before: str) -> None:
    stepped = 0.5 if before != "step()" else 0.0
    assert run(f"{before}\nfork(2)") == [f"stepped {stepped} {stepped}", "status 0"]


def test_the_parent_is_not_concerned() -> None:
    code = "torch.set_num_threads(2); step()\nfork(1)\nstep()\nprint(float(w[0]))"
    assert run(code) == ["stepped 0.0 0.0", "status 0", "0.0"]


def test_the_workers_of_a_dataloader_are_not_refused() -> None:
    code = """
from torch.utils.data import DataLoader, Dataset

class Packed(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        step()
        return ops.pack_mask(torch.arange(1 << 18) % (i + 2) == 0)

torch.set_num_threads(2)
step()
loader = DataLoader(Packed(), batch_size=2, num_workers=2, multiprocessing_context="fork")
print([int(ops.count_active([bits]).sum()) for batch in loader for bits in batch])
"""
    assert run(code) == [str([-(-(1 << 18) // d) for d in (2, 3, 4, 5)])]


def test_a_child_of_forkserver_or_spawn_works() -> None:
    code = """
import multiprocessing
from dstee.testing import make_case

torch.set_num_threads(2)
step()
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(torch.get_num_threads) >= 1, pool.apply(ops.pack_mask, (torch.ones(3) > 0,)).tolist())
"""
    assert run(code) == ["True [7]"]


def test_a_call_that_has_been_asked_once_looks_at_one_attribute() -> None:
    code = """
import unittest.mock
step()
assert backends.native._forks.unsure is False
with unittest.mock.patch.object(backends.native._forks, "ask", side_effect=AssertionError):
    step()
print("looked")
"""
    assert run(code) == ["looked"]
