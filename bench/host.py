"""What a step costs its host: all that follows ``backward()`` in small networks, where it is calls rather than bytes.

Gradients are there, no forward or backward is timed, no update falls due, and the cache is warm. Each implementation steps its
own copy of the model; they take turns step by step, forwards and backwards.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dstee._console import UsageError
from dstee.experiments.models import MODELS

from . import expected
from .contenders.registry import steppers
from .expected import array
from .measure import Emit, reason_of, summary
from .results_file import Result, Row
from .tasks import Task
from .training import SGD, Stepper, Stepping

__all__ = ["run_host", "tasks"]

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: MODELS["resnet20"](input_shape=(3, 32, 32), classes=10),
    "lenet-300-100": lambda: MODELS["mlp"](input_shape=(784,), classes=10, hidden=(300, 100)),
}
CHECKED = 3  # steps that are compared with the rule
WARM = 20
STEPS = 10  # for each of --repeats
TOLERANCE = 1e-5


def tasks(args: argparse.Namespace, found: Sequence[Stepper]) -> list[Task]:
    """One per network and density; one thread unless ``--threads`` says otherwise.

    Raises:
        UsageError: a network is not known, or not on this device.
    """
    names = args.shapes or list(NETWORKS)
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise UsageError(f"--op host --shapes {' '.join(unknown)}: expected of {', '.join(NETWORKS)}")
    if args.device != "cpu":
        raise UsageError("--op host times a CPU: leave out --device")
    skipped = {one.name: reason for one in found if (reason := one.why_not()) is not None}
    used = args.threads or 1
    return [
        {
            "kind": "host", "model": name, "density": density, "swap": args.swap, "threads": used,
            "key": {"op": "host", "case": name, "density": density, "threads": used},
            "contenders": [one.name for one in found if one.name not in skipped], "skipped": skipped,
            "plugins": args.plugin, "plan": {"budget": args.budget}, "steps": STEPS * args.repeats,
        }
        for name in names for density in args.density
    ]  # fmt: skip


def run_host(task: Task, emit: Emit) -> Row:
    """The row of one network."""
    results: dict[str, Result] = {}
    running: dict[str, Stepping] = {}
    samples: dict[str, list[float]] = {}
    model, masks = network(task["model"], task["density"])
    for one in steppers(task["plugins"]):
        if one.name not in task["contenders"]:
            continue
        emit(one.name, "first steps")
        result: Result = {"status": "ok", "rule": one.computes, "ours": one.ours}
        results[one.name] = result
        try:
            stepping, first = _first_steps(one, task)
            result["first_call_ms"] = first * 1e3
            wrong = fault(stepping, masks if one.masked else {}, model)
            for _ in range(WARM):
                stepping.step()
        except Exception as error:
            result.update({"status": "failed", "reason": reason_of(error)})
            continue
        if wrong:
            result.update({"status": "wrong", "reason": wrong})
        else:
            running[one.name], samples[one.name] = stepping, []
    gc.collect()
    gc.disable()
    try:
        begin = time.monotonic()
        for turn in range(task["steps"]):
            if turn % STEPS == 0:
                emit(None, f"step {turn + 1}")
                if time.monotonic() - begin > task["plan"]["budget"] * len(running) and turn:
                    break
            for name in list(running)[:: 1 if turn % 2 == 0 else -1]:
                start = time.perf_counter()
                running[name].step()
                samples[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
    for name, found in samples.items():
        results[name].update(summary(found))
    sizes = [(mask.numel(), int(mask.sum())) for mask in masks.values()]
    return {
        "n": sum(n for n, _ in sizes), "layers": len(masks), "active": sum(active for _, active in sizes),
        "dense_parameters": len(list(model.parameters())) - len(masks), "contenders": results,
    }  # fmt: skip


def network(name: str, density: float) -> tuple[nn.Module, dict[str, Tensor]]:
    """The same model, gradients and masks at every call; all matrices and kernels have masks, norms and biases none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NETWORKS[name]()
        masks = {}
        for parameter, p in model.named_parameters():
            p.grad = torch.randn_like(p) * 1e-3
            if p.dim() > 1:
                masks[parameter] = torch.rand_like(p) < density
        with torch.no_grad():
            for parameter, mask in masks.items():
                model.get_parameter(parameter).mul_(mask)
    return model, masks


def _first_steps(one: Stepper, task: Task) -> tuple[Stepping, float]:
    """Its model after :data:`CHECKED` steps, and the seconds of the first."""
    model, masks = network(task["model"], task["density"])
    stepping = one.open(model, masks)
    start = time.perf_counter()
    stepping.step()
    first = time.perf_counter() - start
    for _ in range(CHECKED - 1):
        stepping.step()
    return stepping, first


def fault(stepping: Stepping, masks: Mapping[str, Tensor], before: nn.Module) -> str | None:
    """What is wrong with weights or momenta after the first steps from ``before``, rounding aside; or None."""
    for (name, start), p in zip(before.named_parameters(), stepping.model.parameters(), strict=True):
        g = array(start.grad) if start.grad is not None else np.zeros(start.numel())
        mask = array(masks[name]) if name in masks else np.ones(start.numel(), bool)
        w, m = array(start), np.zeros(start.numel())
        for _ in range(CHECKED):
            w, m = (np.where(mask, x, 0) for x in expected.sgd(w, g, m, **SGD))
        found = {"weights": (array(p), w), "momenta": (array(stepping.optimizer.state[p]["momentum_buffer"]), m)}
        for what, (actual, exact) in found.items():
            bad = ~(np.abs(actual - exact) <= TOLERANCE * (np.abs(exact) + np.abs(g)))
            if bad.any():
                return f"{name}: {int(bad.sum())} {what} differ, first at {int(np.flatnonzero(bad)[0])}"
    return None
