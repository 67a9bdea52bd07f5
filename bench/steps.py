"""Times whole training steps of a real model with each implementation: forward, backward, optimizer, masks, mask update.

Every implementation trains its own copy of the model; they take turns step by step, forwards and backwards. Updates happen
every few steps, so that there are some to time, and are charged as if they came every ``every`` steps. The share of the sparse
bookkeeping is what optimizer, masks and updates cost beyond the dense optimizer, as a share of the step; where a masked
step costs less than the dense one, it is negative.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Sequence

from dstee._console import UsageError

from .clock import peak_memory, reset_peak, resident_memory, trim_memory
from .contenders.registry import trainers
from .measure import Emit, reason_of, summary
from .models import make_job
from .results_file import Result, Row
from .tasks import Task, threads
from .training import PHASES, Trainer, Training, weights_of

__all__ = ["run_steps", "tasks"]

BATCH = {"vgg19": 16, "resnet50": 8, "mlp": 64, "gnn": 0}


def tasks(args: argparse.Namespace, found: Sequence[Trainer]) -> list[Task]:
    """One per model and density.

    Raises:
        UsageError: a model is not known, or not on this device.
    """
    models = args.shapes or ["mlp", "gnn"]
    unknown = [m for m in models if m not in BATCH]
    if unknown:
        raise UsageError(f"--op step --shapes {' '.join(unknown)}: expected of {', '.join(BATCH)}")
    if args.device != "cpu":
        raise UsageError("--op step times a CPU: leave out --device")
    skipped = {one.name: reason for one in found if (reason := one.why_not()) is not None}
    used = threads(args)
    return [
        {
            "kind": "steps", "model": model, "density": density, "swap": args.swap, "every": args.every, "threads": used,
            "key": {"op": "step", "case": model, "density": density, "threads": used, "batch": BATCH[model]},
            "batch": BATCH[model], "contenders": [one.name for one in found if one.name not in skipped], "skipped": skipped,
            "plugins": args.plugin, "plan": {"budget": args.budget}, "steps": max(12, 4 * (args.repeats // 4)),
        }
        for model in models for density in args.density
    ]  # fmt: skip


def run_steps(task: Task, emit: Emit) -> Row:
    """The row of one model."""
    results: dict[str, Result] = {}
    running: dict[str, Training] = {}
    marks: dict[str, list[dict[str, float]]] = {}
    for trainer in trainers(task["plugins"]):
        name = trainer.name
        if name not in task["contenders"]:
            continue
        emit(name, "set-up")
        results[name] = {"status": "ok", "rule": trainer.computes, "ours": trainer.ours}
        try:
            trim_memory()
            before = resident_memory()
            running[name] = trainer.open(make_job(task["model"], task["batch"]), task["density"], task["swap"])
            _step(running[name])
            gc.collect()
            trim_memory()
            measurable = reset_peak()
            _step(running[name])
            peak = peak_memory()
            if measurable and before is not None and peak is not None:
                results[name]["peak_extra_bytes"] = max(0, peak - before)
            marks[name] = []
        except Exception as error:
            results[name].update({"status": "failed", "reason": reason_of(error)})
            running.pop(name, None)
    gc.disable()
    try:
        start = time.monotonic()
        for turn in range(task["steps"]):
            for name in list(running)[:: 1 if turn % 2 == 0 else -1]:
                emit(name, f"step {turn + 1}")
                marks[name].append(_step(running[name]))
            enough = time.monotonic() - start > 6 * task["plan"]["budget"]
            if enough and all(_updates(marks[name]) >= 2 or name == "dense" for name in running):
                break
    finally:
        gc.enable()
    for name in running:
        results[name].update(_figures(marks[name], task["every"]))
    dense = results.get("dense")
    for one in results.values():
        if dense is not None and dense["status"] == one["status"] == "ok" and one is not dense:
            spent = one["phases_ms"]["optimizer"] + one["phases_ms"]["masks"] + one["update_ms"]
            one["sparse_share"] = (spent - dense["phases_ms"]["optimizer"]) / one["median_ms"]
    return {"n": sum(w.numel() for w in weights_of(make_job(task["model"], 1).model)), "contenders": results}


def _step(one: Training) -> dict[str, float]:
    """Seconds of each phase of one training step; ``updated`` is 1 when the masks changed."""
    times: dict[str, float] = {}
    last = time.perf_counter()

    def mark(phase: str) -> None:
        nonlocal last
        now = time.perf_counter()
        times[phase], last = now - last, now

    for p in one.model.parameters():
        p.grad = None
    last = time.perf_counter()
    loss = one.job.loss()
    mark("forward")
    loss.backward()
    mark("backward")
    times["updated"] = float(one.after(mark))
    return times


def _updates(steps: list[dict[str, float]]) -> int:
    return int(sum(s["updated"] for s in steps))


def _figures(steps: list[dict[str, float]], every: int) -> Result:
    """Phases are medians over ordinary steps; ``update_ms`` is what an update adds to its step, over ``every``."""
    plain = [s for s in steps if not s["updated"]]
    phases = {p: statistics.median(s[p] for s in plain) * 1e3 for p in PHASES}
    both = [1e3 * (s["optimizer"] + s["masks"]) for s in steps if s["updated"]]
    update = (statistics.median(both) - phases["optimizer"] - phases["masks"]) / every if both else 0.0
    whole = summary([sum(s[p] for p in PHASES) for s in plain])
    return {**whole, "phases_ms": phases, "update_ms": update, "updates": len(both)}
