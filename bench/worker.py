"""One row in a process of its own: ``python -m bench.worker`` reads a task as JSON from stdin, writes a line per event.

What it is about to do is told before it does it, so that the parent knows whom to blame for a crash or a hang.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

from . import cost
from .clock import make_clock
from .contenders import Setting, registry
from .layers import DTYPES, ROUND, make_layers, masks_of
from .measure import Emit, Plan, measure


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what contenders print goes to stderr

    def tell(event: dict[str, Any]) -> None:
        out.write(json.dumps(event, allow_nan=False) + "\n")
        out.flush()

    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    kind = task.get("kind", "row")
    if kind == "steps":
        from .steps import run_steps

        row = run_steps(task, lambda name, phase: tell({"running": name, "phase": phase}))
    else:
        row = run_row(task, lambda name, phase: tell({"running": name, "phase": phase}))
    tell({"row": row})


def run_row(task: dict[str, Any], emit: Emit) -> dict[str, Any]:
    emit(None, "layers")
    shapes = [tuple(shape) for shape in task["shapes"]]
    layers = make_layers(shapes, task["density"], task["swap"], dtype=DTYPES[task["dtype"]])
    if task["device"] != "cpu":
        layers = layers.to(task["device"])
    setting = Setting(task["op"], layers, task["density"], task["swap"], task["device"])
    emit(None, setting.gate)
    expected = setting.expected
    line = cost.LINE[task["device"]]
    if task["op"] == "drop_grow":
        after = [m.to(task["device"]) for m in masks_of(expected.mask_bits, shapes)]
        moved = cost.drop_grow_bytes(layers, after, line)
    else:
        moved = cost.masked_sgd_bytes(layers, line)
    chosen = [c for c in registry(task["plugins"]) if c.op == task["op"] and c.name in task["contenders"]]
    clock = make_clock(task["device"], task.get("flush_bytes"))
    measured = measure(setting, chosen, Plan(**task["plan"]), clock, emit, task.get("roof_bytes"))
    roof = measured["roof"]["copy_gb_s"]
    for result in measured["contenders"].values():
        if result["status"] == "ok":
            result["gb_s"] = moved / result["median_ms"] * 1e-6
            result["share_of_roof"] = result["gb_s"] / roof
    return {
        "n": layers.n, "layers": len(shapes), "active": sum(int(m.sum()) for m in layers.masks), "swapped": sum(layers.k),
        "round": ROUND, "bytes": moved, "roof_ms": moved / roof * 1e-6, "gate": setting.gate, "flushed_bytes": clock.flushed,
        **measured,
    }  # fmt: skip


if __name__ == "__main__":
    main()
