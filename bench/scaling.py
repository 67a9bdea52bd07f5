"""Sweeps that show how time grows, one thing varied each: weights, layers, density, the share that is swapped, the data."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .adversarial import KINDS, ORDINARY
from .environment import all_cores
from .session import Contender
from .shapes import Shape
from .tasks import Task, op_task

__all__ = ["tasks"]

LAYERS = (1, 5, 20, 100, 500, 1000, 2000, 5000)
SMALL_LAYERS = (1, 10, 100, 1000, 5000)
SMALL = 5_000  # weights
DENSITIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
SWAPS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
DTYPES = ("float32", "bfloat16")
BYTES_PER_WEIGHT = 100  # of state, its copies and what the gate computes
WEIGHTS = 10_000_000
REPEATS, FEW = 9, 5  # at most; of half of WEIGHTS and more


class Point(NamedTuple):
    """What is varied and its value, and what is measured there."""

    sweep: str
    x: float
    shapes: list[Shape]
    density: float
    swap: float
    data: str = ORDINARY
    ops: tuple[str, ...] = ("drop_grow", "masked_sgd")


def memory() -> int:
    """Bytes of memory that may be used: available now, or all."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return 8 << 30


def tasks(args: argparse.Namespace, found: Sequence[Contender]) -> list[Task]:
    """Native kernels on one thread and on all cores, torch.topk beside them over the weights; n from 1e4 as far as --largest
    and memory allow. Tasks that follow each other have the same layers, which one worker keeps for all of them."""
    used = sorted({1, all_cores()}) if args.threads is None else [args.threads]
    return [
        _task(args, found, op, point, dtype, threads, with_topk=threads == used[-1])
        for point in _points(args)
        for dtype in args.dtype or DTYPES
        for op in point.ops
        for threads in used
    ]


def _points(args: argparse.Namespace) -> Iterator[Point]:
    most = min(args.largest, memory() / BYTES_PER_WEIGHT)
    base, density, swap = min(WEIGHTS, int(most)), args.density[0], args.swap
    for half in range(8, 19):  # 1e4, 3.2e4, ... 1e9
        n = round(10 ** (half / 2))
        if n <= most:
            yield Point("n", n, [_layer(n)], density, swap)
    for count in LAYERS:
        if base // count >= 8:
            yield Point("layers", count, [_layer(base // count)] * count, density, swap)
    for count in SMALL_LAYERS:
        if count * SMALL <= most:
            yield Point("small layers", count, [_layer(SMALL)] * count, density, swap)
    for d in DENSITIES:
        yield Point("density", d, [_layer(base)], d, swap)
    for share in SWAPS:
        yield Point("swap", share, [_layer(base)], density, share, ops=("drop_grow",))
    for i, kind in enumerate(KINDS):
        yield Point("data", i, [_layer(base)], density, swap, kind)


def _task(
    args: argparse.Namespace, found: Sequence[Contender], op: str, point: Point, dtype: str, threads: int, with_topk: bool
) -> Task:
    n = sum(math.prod(shape) for shape in point.shapes)
    with_topk = with_topk and point.sweep == "n" and dtype == "float32" and n <= WEIGHTS
    few = {
        "backends": ["native"], "against": ["torch.topk"] if with_topk else [], "swap": point.swap, "threads": threads,
        "repeats": min(args.repeats, REPEATS if n < WEIGHTS // 2 else FEW), "budget": min(args.budget, 1.0),
    }  # fmt: skip
    case = point.data if point.sweep == "data" else f"{point.sweep} {point.x:g}"
    task = op_task(argparse.Namespace(**{**vars(args), **few}), found, op, case, point.shapes, point.density, dtype, True)
    task["key"].update({"op": "scaling", "of": op, "sweep": point.sweep, "x": point.x})
    task["plan"]["roof"] = False
    task.update({"skipped": {}, "data": point.data, "keep": True})
    return task


def _layer(n: int) -> Shape:
    rows = 1 << int(math.log2(n) / 2)
    return (rows, max(1, round(n / rows)))
