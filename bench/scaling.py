"""Sweeps that show how time grows: with the number of weights, of layers, with density, with threads; one thing varied each."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence

from .environment import all_cores
from .session import Contender
from .shapes import Shape
from .tasks import Task, op_task, threads

__all__ = ["tasks"]

LAYERS = (1, 5, 20, 100, 500)
DENSITIES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5)
BYTES_PER_WEIGHT = 60  # of state, its copies and what the gate computes
WEIGHTS = 10_000_000


def memory() -> int:
    """Bytes of memory that may be used: available now, or all."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return 8 << 30


def tasks(args: argparse.Namespace, found: Sequence[Contender]) -> list[Task]:
    """Native kernels, and torch.topk up to 1e7 weights; n from 1e3 as far as --largest and memory allow."""
    return [
        _task(args, found, op, sweep, x, shapes, density, n_threads)
        for sweep, x, shapes, density, n_threads in _points(args)
        for op in ("drop_grow", "masked_sgd")
    ]


def _points(args: argparse.Namespace) -> Iterator[tuple[str, float, list[Shape], float, int]]:
    """What is varied and its value, then layers, density and threads."""
    most = min(args.largest, memory() / BYTES_PER_WEIGHT)
    base, used, density = min(WEIGHTS, int(most)), threads(args), args.density[0]
    for half in range(6, 19):  # 1e3, 3.2e3, ... 1e9
        n = round(10 ** (half / 2))
        if n <= most:
            yield "n", n, [_layer(n)], density, used
    for count in LAYERS:
        yield "layers", count, [_layer(base // count)] * count, density, used
    for d in DENSITIES:
        yield "density", d, [_layer(base)], d, used
    for n_threads in sorted({*(2**i for i in range(10)), all_cores()}):
        if n_threads <= all_cores():
            yield "threads", n_threads, [_layer(base)], density, n_threads


def _task(
    args: argparse.Namespace, found: Sequence[Contender], op: str, sweep: str, x: float, shapes: list[Shape], density: float,
    n_threads: int,
) -> Task:  # fmt: skip
    few = {
        "backends": ["native"], "against": ["torch.topk"] if sweep == "n" and x <= WEIGHTS else [],
        "repeats": min(args.repeats, 15), "budget": 2.0, "threads": n_threads,
    }  # fmt: skip
    options = argparse.Namespace(**{**vars(args), **few})
    task = op_task(options, found, op, f"{sweep} {x:g}", shapes, density, "float32", True)
    task["key"].update({"op": "scaling", "of": op, "sweep": sweep, "x": x})
    task["skipped"] = {}
    return task


def _layer(n: int) -> Shape:
    rows = 1 << int(math.log2(n) / 2)
    return (rows, max(1, round(n / rows)))
