"""Rows in a process of their own: ``python -m bench.worker`` reads a task in JSON from each line of stdin, and writes a line an
event.

What it is about to do is told before it does it, so that the parent knows whom to blame for a crash or a hang. What tasks with
``keep`` make of their layers stays for the next one.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from . import cost, cuda_traffic
from .adversarial import KINDS, ORDINARY
from .clock import Clock, CudaClock, make_clock
from .contenders import _before
from .contenders.registry import contenders
from .host import run_host
from .layers import DTYPES, ROUND, Layers, make_layers, masks_of
from .measure import Emit, InputsChanged, Plan, measure
from .results_file import Row
from .session import Setting

__all__: list[str] = []  # a program: nothing to import
from .steps import run_steps
from .tasks import Task


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what contenders print goes to stderr

    def tell(event: dict[str, object]) -> None:
        out.write(json.dumps(event, allow_nan=False) + "\n")
        out.flush()

    cache = Cache()
    for line in sys.stdin:
        task: Task = json.loads(line)
        torch.set_num_threads(task["threads"])
        torch.manual_seed(0)

        def emit(name: str | None, phase: str) -> None:
            tell({"running": name, "phase": phase})

        kind = task.get("kind", "row")
        try:
            row = run_row(task, emit, cache) if kind == "row" else {"steps": run_steps, "host": run_host}[kind](task, emit)
        except InputsChanged as error:
            sys.exit(str(error))
        tell({"row": row})


class Cache:
    """The last setting and its clock, for tasks that follow each other: those of the same layers share them, and those of the
    same op what was expected."""

    def __init__(self) -> None:
        self._made_of: dict[str, object] = {}
        self._setting: Setting | None = None
        self._clock: tuple[object, Clock] | None = None

    def setting(self, task: Task, emit: Emit) -> Setting:
        parts = ("shapes", "density", "swap", "dtype", "device", "data")
        made_of = {name: task.get(name) for name in parts}
        old = self._setting if made_of == self._made_of else None
        self._setting = None  # one at a time: large cases fill the memory
        if old is None or old.op != task["op"]:
            emit(None, "layers")
            old = Setting(task["op"], make(task) if old is None else old.before, task["density"], task["swap"])
        self._setting, self._made_of = old, made_of
        return old

    def clock(self, task: Task) -> Clock:
        which = (task["device"], task.get("flush_bytes"))
        if self._clock is None or self._clock[0] != which:
            self._clock = (which, make_clock(task["device"], task.get("flush_bytes")))
        return self._clock[1]


def make(task: Task) -> Layers:
    shapes = [tuple(shape) for shape in task["shapes"]]
    layers = make_layers(shapes, task["density"], task["swap"], dtype=DTYPES[task["dtype"]], device=task["device"])
    KINDS[task.get("data", ORDINARY)](layers)
    return layers


def run_row(task: Task, emit: Emit, cache: Cache | None = None) -> Row:
    cache = cache or Cache()
    setting, clock = cache.setting(task, emit), cache.clock(task)
    layers, plan = setting.before, Plan(**task["plan"])
    emit(None, setting.gate)
    row: Row = {
        "n": layers.n, "layers": len(layers.params), "active": sum(int(m.sum()) for m in layers.masks),
        "swapped": sum(layers.k), "round": ROUND, "gate": setting.gate, "flushed_bytes": clock.flushed,
    }  # fmt: skip
    if plan.roof:
        row.update(_bytes(task, setting, clock))
    found = contenders(task["plugins"]) + _before.contenders(task.get("before", []))
    chosen = [c for c in found if c.op == task["op"] and c.name in task["contenders"]]
    row.update(measure(setting, chosen, plan, clock, emit, task.get("roof_bytes")))
    if plan.roof:
        _put_below_roofs(row)
    return row


def _put_below_roofs(row: Row) -> None:
    """How long the bytes take at the machine's limits, and what share of the roof each contender reaches."""
    roof, reads = row["roof"], row.get("read_bytes")
    row["roofs_ms"] = {"copy": row["bytes"] / roof["copy_gb_s"] * 1e-6}
    if reads is not None:
        for unit in ("lines", "pairs"):
            row["roofs_ms"][unit] = (reads[unit] + reads.get(f"{unit}_again", 0)) / roof["read_gb_s"] * 1e-6
    row["roof_by"] = "copy" if reads is None else "pairs"
    row["roof_ms"] = row["roofs_ms"][row["roof_by"]]
    for result in row["contenders"].values():
        if result["status"] == "ok":
            result["share_of_roof"] = row["roof_ms"] / result["median_ms"]
            result["gb_s"] = result["share_of_roof"] * roof["copy_gb_s" if reads is None else "read_gb_s"]


def _bytes(task: Task, setting: Setting, clock: Clock) -> Row:
    """What the op has to move; what it has to read on a CPU, what dstee's kernels move for it on a GPU."""
    before, line = setting.before, cost.LINE[task["device"]]
    masks_after = [m.to(setting.device) for m in masks_of(setting.expected.mask_bits, before.shapes)]
    units = {"lines": line, "pairs": cost.PAIR}
    if task["op"] == "drop_grow":
        found: Row = {"bytes": cost.drop_grow_bytes(before, masks_after, line)}
        reads = {unit: cost.drop_grow_reads(before, size) for unit, size in units.items()}
        reads |= {f"{unit}_again": cost.swapped_bytes(before, masks_after, size) for unit, size in units.items()}
    else:
        found = {"bytes": cost.masked_sgd_bytes(before, line)}
        reads = {unit: cost.masked_sgd_reads(before, size) for unit, size in units.items()}
    if task["device"] == "cpu":
        found["read_bytes"] = reads
    if isinstance(clock, CudaClock):
        found["kernel_bytes"] = cuda_traffic.by_kernel(task["op"], setting.before, masks_after, clock.processors)
    return found


if __name__ == "__main__":
    main()
