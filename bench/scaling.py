"""How time grows: with the number of weights, of layers, with density, with threads. Rows of one op with one thing varied.

The slope is that of log(time) over log(x) by least squares: 1 for weights means a flat time per weight. Time per weight is
printed beside it, since caches and fixed costs bend the line at its lower end.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

from .contenders import Contender
from .results_file import Document, Row, find
from .table import milliseconds

LAYERS = (1, 5, 20, 100, 500)
DENSITIES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5)
BYTES_PER_WEIGHT = 60  # of state, its copies and the oracle's scratch
WEIGHTS = 10_000_000
SWEEPS = {"n": "weights", "layers": "layers", "density": "density", "threads": "threads"}


def memory() -> int:
    """Bytes of memory that may be used: available now, or all."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return 8 << 30


def tasks(args: argparse.Namespace, found: list[Contender]) -> list[dict[str, Any]]:
    """Native kernels, and torch.topk up to 1e7 weights; n from 1e3 as far as --largest and memory allow."""
    from . import plan

    most = min(args.largest, memory() / BYTES_PER_WEIGHT)
    base = min(WEIGHTS, int(most))
    used, density = plan.threads(args), args.density[0]
    out = []

    def add(sweep: str, x: float, shapes: list[tuple[int, ...]], d: float = density, threads: int = used) -> None:
        for op in ("drop_grow", "masked_sgd"):
            key = {"op": "scaling", "of": op, "sweep": sweep, "x": x}
            limited = argparse.Namespace(
                **{**vars(args), "backends": ["native"], "repeats": min(args.repeats, 15), "budget": 2.0}
            )
            limited.against = ["torch.topk"] if sweep == "n" and x <= WEIGHTS else []
            task = plan.row(limited, found, op, f"{sweep} {x:g}", shapes, d, "float32", True, threads, key)
            task["skipped"] = {}
            out.append(task)

    for half in range(6, 19):  # 1e3, 3.2e3, ... 1e9
        n = round(10 ** (half / 2))
        if n <= most:
            add("n", n, _layer(n))
    for count in LAYERS:
        add("layers", count, _layer(base // count) * count)
    for d in DENSITIES:
        add("density", d, _layer(base), d)
    for n_threads in sorted({1, 2, *(2**i for i in range(2, 10)), plan.all_cores()}):
        if n_threads <= plan.all_cores():
            add("threads", n_threads, _layer(base), threads=n_threads)
    return out


def _layer(n: int) -> list[tuple[int, ...]]:
    rows = 1 << int(math.log2(n) / 2)
    return [(rows, max(1, round(n / rows)))]


def slope(x: list[float], y: list[float]) -> float:
    """Of log y over log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def curves(document: Document) -> dict[tuple[str, str, str], list[tuple[float, Row, dict[str, Any]]]]:
    """(op, sweep, contender) -> (x, row, result), sorted by x."""
    found: dict[tuple[str, str, str], list[tuple[float, Row, dict[str, Any]]]] = {}
    for row in find(document, op="scaling"):
        for name, one in row.get("contenders", {}).items():
            if one["status"] == "ok":
                found.setdefault((row["key"]["of"], row["key"]["sweep"], name), []).append((row["key"]["x"], row, one))
    return {key: sorted(points, key=lambda p: p[0]) for key, points in found.items()}


def lines(document: Document) -> list[str]:
    """One line per curve: slope over the whole range and over its upper half, time per weight at both ends."""
    out = []
    for (op, sweep, name), points in curves(document).items():
        if len(points) < 2:
            continue
        x = [p[0] for p in points]
        y = [p[2]["median_ms"] for p in points]
        upper = max(2, (len(x) + 1) // 2)
        per = [1e6 * t / p[1]["n"] for t, p in zip(y, points, strict=True)]
        out.append(
            f"{op:10} {name:11} over {SWEEPS[sweep]:8} {x[0]:g} to {x[-1]:g}: {milliseconds(y[0])} to {milliseconds(y[-1])}, "
            f"slope {slope(x, y):.2f}, upper half {slope(x[-upper:], y[-upper:]):.2f}; {per[0]:.2f} to {per[-1]:.2f} ns each"
        )
    return out


def show(document: Document, console: Any) -> None:
    found = lines(document)
    if found:
        console.print(
            "\ngrowth (slope of log time over log x; 1 over weights: a flat time per weight)", markup=False, soft_wrap=True
        )
        for line in found:
            console.print(line, markup=False, soft_wrap=True)
