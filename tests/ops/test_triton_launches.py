"""What a GPU would be asked to compile and launch, without one: see triton_launches.py.

In processes of their own, because this one interprets kernels.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

UPDATES = """
import torch
from support.triton_launches import recording
from dstee import ops
from dstee.ops import SGDRule
from dstee.encoding import bonus_table

def layers(sizes, dtype=torch.float32):
    w, g, m = ([torch.zeros(n, dtype=dtype) for n in sizes] for _ in range(3))
    bits = [torch.zeros(n + 7 >> 3, dtype=torch.uint8) for n in sizes]
    return w, g, m, bits, [torch.zeros(n, dtype=torch.int16) for n in sizes]

def train(sizes, lr, momentum, decay, round, t):
    w, g, m, bits, counts = layers(sizes)
    rule = dict(lr=lr, momentum=momentum, weight_decay=decay)
    ops.masked_sgd_(w, g, m, bits, **rule)
    bonus = bonus_table(1e-3, 1.0, t, round)
    ops.drop_grow_(w, g, m, bits, counts, [0] * len(sizes), bonus=bonus, round=round, sgd=SGDRule(**rule))
"""
NO_COMPILATIONS = """
with recording() as notes:
    train([5000, 16], 0.1, 0.9, 1e-4, 1, 100)
    first = [c.kernel for c in notes.compiled]
    assert sorted(first) == sorted(set(first)) and len(first) == 8, first
    for sizes in ([5001], [4096, 2049, 1], [70000] * 3, [16] * 2, [7], [0, 100_000]):
        for lr, momentum, decay, round, t in ((1.0, 0.5, 1.0, 0, 1), (1e-8, 0.99, 2.0, 15, 10**6), (0.0, 1.0, 16.0, 16, 7)):
            train(sizes, lr, momentum, decay, round, t)
    again = [c.kernel for c in notes.compiled[len(first):]]
    assert not again, f"compiled once more: {again}"

    # Another kind of step: only the kernels that step.
    w, g, m, bits, counts = layers([5000])
    known, rule = len(notes.compiled), SGDRule(0.1, 0.9, weight_decay=1e-4, first_step=True)
    ops.drop_grow_(w, g, m, bits, counts, [0], bonus=bonus_table(1e-3, 1.0, 9, 3), round=3, sgd=rule)
    names = sorted(c.kernel for c in notes.compiled[known:])
    assert names == ["sample_kernel", "select_grow_kernel", "sweep_kernel"], names

    # Tensors anywhere: aligned or not, the same kernels. (Scalars in tensors are kernels of their own, once.)
    known = len(notes.compiled)
    w, g, m, bits, counts = layers([5001])
    offset = [torch.zeros(5002)[1:]]
    for grads in (g, offset):
        for k in (torch.zeros(1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)[1:2]):
            for found_inf in (torch.zeros(()), torch.zeros(5)[1:2]):
                ops.drop_grow_(w, grads, None, bits, None, k, bonus=None, round=3, found_inf=found_inf)
    names = [c.kernel for c in notes.compiled[known:]]
    assert sorted(names) == sorted(set(names)), names
    assert all(not c.fused for c in notes.compiled), "multiply-adds would be fused"
"""
LAUNCHES = """
with recording() as notes:
    def launched(call, *sizes, **kinds):
        notes.launched.clear()
        call(*sizes, **kinds)
        return notes.launched
    def update(sizes, dtypes=(torch.float32,)):
        parts = [layers(sizes, dtype) for dtype in dtypes]
        w, g, m, bits, counts = ([t for part in parts for t in part[i]] for i in range(5))
        k = [0] * len(w)
        ops.drop_grow_(w, g, m, bits, counts, k, bonus=bonus_table(1e-3, 1.0, 9, 3), round=3, sgd=SGDRule(0.1, 0.9))
    assert len(launched(update, [5000] * 300 + [9] * 300)) == 7, notes.launched
    assert launched(update, [2048] * 50) == ["select_grow_kernel"]
    assert len(launched(update, [5000], dtypes=(torch.float32, torch.bfloat16))) == 14
    notes.launched.clear()
    w, g, m, bits, counts = layers([5000] * 100)
    ops.masked_sgd_(w, g, m, bits, lr=0.1, momentum=0.9)
    assert notes.launched == ["masked_sgd_kernel"]
    notes.launched.clear()
    ops.count_active(bits), ops.count_explored(counts, bits)
    assert len(notes.launched) == 2
"""
CAPTURE = """
import numpy as np
from dstee.backends import triton as triton_backend
with recording() as notes:
    module = triton_backend.module("_upload")
    for numbers in ([1, 2, 16], [2**60, -5, 0] * 20, [16] * 33):
        module._store(np.array(numbers), torch.device("cpu"))
    # Once for whole numbers, once for halves, whatever their values.
    assert [c.kernel for c in notes.compiled] == ["store_kernel"] * 2
    assert len(notes.launched) == 1 + 2 + 1
"""


def run(code: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-W", "error", "-c", UPDATES + code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_nothing_is_compiled_again_when_numbers_change() -> None:
    """lr, momentum, weight decay, k, round, table length, sizes and number of layers, alignment: arguments, all of them."""
    run(NO_COMPILATIONS)


def test_launches_do_not_grow_with_the_layers() -> None:
    run(LAUNCHES)


def test_numbers_that_go_as_arguments_compile_once() -> None:
    """While a graph is captured, rows are written by a kernel; an integer's width and value must not make a new one."""
    run(CAPTURE)


@pytest.mark.long
def test_a_kernel_compiles_for_a_gpu_that_is_not_there() -> None:
    """A small part of `make triton-check`."""
    command = [sys.executable, "tests/compile_checks/triton_check.py"]
    command += ["--targets", "sm_90", "--dtypes", "float32", "--only", "masked_sgd"]
    done = subprocess.run([*command, "--jobs", "1"], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "xv4.b32" in done.stdout and "2 compilations" in done.stdout


def test_triton_check_complains_of_errors_spills_and_lost_vectors() -> None:
    from compile_checks.triton_check import Result, complaints, read_ptxas_log

    log = (
        "ptxas info : 8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\nptxas info : Used 40 registers, used 1"
    )
    assert read_ptxas_log(log) == (40, 28)
    assert read_ptxas_log("") == (None, None)
    good = Result("sweep x", "sm_90", 40, 0, 0, {"v4.b32": 2, "b8": 1})
    bad = [
        Result("sweep x", "sm_90", 40, 0, 0, {"b32": 2, "v2.b32": 9}),
        Result("commit x", "gfx942", 40, 0, 3),
        Result("commit x", "sm_80", None, 0, None),
        Result("commit x", "sm_80", error="CompilationError: no"),
    ]
    assert complaints([good]) == []
    words = ("no vector loads", "spills 3", "named no registers", "CompilationError")
    found = complaints([good, *bad])
    assert len(found) == 4 and all(word in text for word, text in zip(words, found, strict=True))
