"""One row in a process of its own: ``python -m bench.worker`` reads a task as JSON from stdin, writes a line per event.

What it is about to do is told before it does it, so that the parent knows whom to blame for a crash or a hang.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from . import cost, cuda_traffic
from .clock import Clock, CudaClock, make_clock
from .contenders import _before
from .contenders.registry import contenders
from .host import run_host
from .layers import DTYPES, ROUND, make_layers, masks_of
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

    task: Task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    run = {"row": run_row, "steps": run_steps, "host": run_host}[task.get("kind", "row")]
    try:
        row = run(task, lambda name, phase: tell({"running": name, "phase": phase}))
    except InputsChanged as error:
        sys.exit(str(error))
    tell({"row": row})


def run_row(task: Task, emit: Emit) -> Row:
    emit(None, "layers")
    shapes = [tuple(shape) for shape in task["shapes"]]
    layers = make_layers(shapes, task["density"], task["swap"], dtype=DTYPES[task["dtype"]], device=task["device"])
    setting = Setting(task["op"], layers, task["density"], task["swap"])
    clock = make_clock(task["device"], task.get("flush_bytes"))
    emit(None, setting.gate)
    row: Row = {
        "n": layers.n, "layers": len(shapes), "active": sum(int(m.sum()) for m in layers.masks), "swapped": sum(layers.k),
        "round": ROUND, "gate": setting.gate, "flushed_bytes": clock.flushed, **_bytes(task, setting, clock),
    }  # fmt: skip
    found = contenders(task["plugins"]) + _before.contenders(task.get("before", []))
    chosen = [c for c in found if c.op == task["op"] and c.name in task["contenders"]]
    row.update(measure(setting, chosen, Plan(**task["plan"]), clock, emit, task.get("roof_bytes")))
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
