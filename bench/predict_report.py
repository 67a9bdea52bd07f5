"""Predicted times as tables, beside measured ones where there are some."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dstee._console import UsageError
from dstee._files import parse_json, read_file

from . import cuda_counts, results_file
from .layers import by_name
from .predict import ASSUMPTIONS, GPUS, OPS, Gpu, Kernel, kernels
from .table import aligned, milliseconds, ratio

__all__ = ["Measured", "read_measured", "text"]

CASES = ("resnet50", "100m", "llama-1b")
PROFILED = ("resnet50", 0.05)  # what `make gpu` profiles, see bench/gpu/stages.py
HEAD = ("kernel", "launches", "issue", "memory", "load/store", "bound by", "predicted", "measured")
TOTALS = ("layers", "weights", "density", "op", "predicted", "per weight", "measured", "of predicted")


class Measured:
    """Of one GPU: seconds of whole ops by (op, case, density), and of kernels by (op, kernel)."""

    def __init__(self, gpu: str, ops: Mapping[tuple[str, str, float], float], kernels: Mapping[tuple[str, str], float]) -> None:
        self.gpu = gpu
        self.ops = ops
        self.kernels = kernels


def read_measured(path: Path) -> Measured:
    """From a file of ``make gpu`` or of ``python -m bench --device cuda --json``.

    Raises:
        UsageError: it is neither.
    """
    try:
        data = parse_json(read_file(path, results_file.LARGEST))
    except (OSError, ValueError) as error:
        raise UsageError(f"--measured {path} cannot be read: {error}") from error
    parts = [data, *(data.values() if isinstance(data, dict) else [])]
    documents: list[results_file.Document] = [part for part in parts if results_file.fault(part) is None]
    gpu = next((document["stamp"]["gpu"] for document in documents if document["stamp"].get("gpu")), None)
    if gpu is None:
        raise UsageError(f"--measured {path}: expected a file of make gpu or of bench --device cuda, found no figures of a GPU")
    ops = {}
    for row in (row for document in documents for row in document["rows"]):
        key, native = row["key"], row.get("contenders", {}).get("native", {})
        if native.get("status") == "ok" and key.get("dtype") == "float32":
            ops[key["op"], key["case"], key["density"]] = native["median_ms"] * 1e-3
    return Measured(gpu, ops, _kernels(data.get("ncu", [])))


def _kernels(launches: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Of the profiled calls, which follow each other in the order of OPS; the first kernel of each tells them apart."""
    found: dict[tuple[str, str], float] = {}
    op = -1
    for launch in launches:
        name = launch["kernel"].partition("_kernel")[0]
        op += name in ("masked_sgd", "sample")
        duration = launch["metrics"].get("gpu__time_duration.sum", launch["metrics"].get("Duration"))
        if duration is not None and 0 <= op < len(OPS):
            key = (OPS[op], name)
            found[key] = found.get(key, 0.0) + duration * 1e-9
    return found


def text(gpus: Sequence[str], cases: Sequence[str], densities: Sequence[float], measured: Measured | None = None) -> str:
    """All tables. ``gpus``: of predict.GPUS.

    Raises:
        UsageError: a case or density cannot be predicted, or the measured GPU is none of those asked for.
    """
    if measured and not any(_is(GPUS[name], measured) for name in gpus):
        raise UsageError(f"--measured: the figures are those of {measured.gpu}: name it by --gpu, of {', '.join(GPUS)}")
    counts = cuda_counts.read()
    parts = [f"PREDICTED, not measured: {counts.source}; float32", *(f"  {line}" for line in ASSUMPTIONS.splitlines())]
    for gpu in (GPUS[name] for name in gpus):
        mine = measured if measured and _is(gpu, measured) else None
        totals = []
        parts += ["", str(gpu) + (f"; measured: {mine.gpu}" if mine else "")]
        for case in cases:
            sizes = [math.prod(shape) for shape in by_name(case).values()]
            for density in densities:
                for op in OPS:
                    found = kernels(counts, gpu, op, sizes, density)
                    parts += ["", f"{op}  {case}  {density:.0%}", *_kernel_table(found, op, (case, density), mine)]
                    totals.append(_total(found, op, case, sizes, density, mine))
        parts += ["", *_without_empty(TOTALS, totals)]
    return "\n".join(parts)


def _is(gpu: Gpu, measured: Measured) -> bool:
    return gpu.name.lower() in measured.gpu.lower()


def _kernel_table(found: Sequence[Kernel], op: str, what: tuple[str, float], measured: Measured | None) -> list[str]:
    times = measured.kernels if measured and what == PROFILED else {}
    return _without_empty(HEAD, [
        (k.name, str(k.launches), *map(_time, (k.issue, k.memory, k.units)), k.bound, _range(k.best, k.worst),
         _time(times[op, k.name]) if (op, k.name) in times else "")
        for k in found
    ])  # fmt: skip


def _total(
    found: Sequence[Kernel], op: str, case: str, sizes: Sequence[int], density: float, measured: Measured | None
) -> tuple[str, ...]:
    best, worst, n = sum(k.best for k in found), sum(k.worst for k in found), sum(sizes)
    seen = measured.ops.get((op, case, density)) if measured else None
    layers = (f"{case} ({len(sizes)})", f"{n / 1e6:,.0f} M", f"{density:.0%}")
    beside = (_time(seen), ratio(seen / best)) if seen else ("", "")
    return (*layers, op, _range(best, worst), f"{best / n * 1e12:.2f} ps", *beside)


def _time(seconds: float) -> str:
    return milliseconds(seconds * 1e3)


def _range(best: float, worst: float) -> str:
    return f"{_time(best)} to {_time(worst)}"


def _without_empty(head: Sequence[str], lines: Sequence[tuple[str, ...]]) -> list[str]:
    """The table, less columns in which nobody has anything."""
    kept = [i for i in range(len(head)) if any(line[i] for line in lines)]
    return aligned(tuple(head[i] for i in kept), [tuple(line[i] for i in kept) for line in lines])
