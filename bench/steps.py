"""A whole training step of a real model with each implementation: forward, backward, optimizer, masks, mask update.

Every implementation trains its own copy of the model; they take turns step by step, forwards and backwards. Updates happen
every few steps, so that there are some to time, and are charged as if they came every ``every`` steps. The share of the sparse
bookkeeping is what optimizer, masks and updates cost beyond the dense optimizer, as a share of the step; where a masked
step costs less than the dense one, it is negative.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import dstee

from .clock import _resident, reset_peak, trim_memory
from .contenders import TopK
from .layers import UsageError
from .measure import Emit, _words, summary
from .models import Job, make_job

SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
GAP = 4  # steps between updates while timing; the first steps warm up
BATCH = {"vgg19": 16, "resnet50": 8, "mlp": 64, "gnn": 0}
PHASES = ("forward", "backward", "optimizer", "masks")
Marks = Callable[[str], None]


class Implementation:
    """``after(mark)`` does what follows ``backward()`` and marks the end of ``optimizer`` and ``masks``; True: updated."""

    rule = ""

    def __init__(self, job: Job, density: float, swap: float) -> None:
        self.job = job
        self.model = job.model
        self.steps = 0

    def after(self, mark: Marks) -> bool:
        raise NotImplementedError

    def due(self) -> bool:
        self.steps += 1
        return self.steps % GAP == 0


class Dense(Implementation):
    rule = "no masks; torch.optim.SGD, fused"

    def __init__(self, job: Job, density: float, swap: float) -> None:
        super().__init__(job, density, swap)
        self.optimizer = torch.optim.SGD(self.model.parameters(), **SGD, fused=True)

    def after(self, mark: Marks) -> bool:
        self.optimizer.step()
        mark("optimizer")
        mark("masks")
        return False


class Dstee(Implementation):
    rule = "DST-EE; SparseSGD, masks and updates inside the step"

    def __init__(self, job: Job, density: float, swap: float) -> None:
        super().__init__(job, density, swap)
        schedule = dstee.UpdateSchedule(every=GAP, drop=dstee.ConstantDrop(swap))
        self.sparse = dstee.sparsify(self.model, sparsity=1 - density, distribution="uniform", schedule=schedule)
        self.optimizer = dstee.SparseSGD(self.model.parameters(), self.sparse, **SGD)

    def after(self, mark: Marks) -> bool:
        updated = self.sparse.step(self.optimizer)
        mark("optimizer")
        mark("masks")
        return updated


class ByHand(Implementation):
    rule = "DST-EE; torch.optim.SGD foreach, products with float masks, torch.topk"

    def __init__(self, job: Job, density: float, swap: float) -> None:
        super().__init__(job, density, swap)
        self.swap = swap
        self.optimizer = torch.optim.SGD(self.model.parameters(), **SGD, foreach=True)
        self.weights = weights_of(self.model)
        self.masks = [torch.rand_like(w) < density for w in self.weights]
        self.products = [m.float() for m in self.masks]
        self.N = [m.int() for m in self.masks]
        self.bonus = torch.full((10_000,), 1e-5, device=self.weights[0].device)
        with torch.no_grad():
            torch._foreach_mul_(self.weights, self.products)

    @torch.no_grad()
    def after(self, mark: Marks) -> bool:
        self.optimizer.step()
        mark("optimizer")
        due = self.due()
        if due:
            for w, mask, N in zip(self.weights, self.masks, self.N, strict=True):
                assert w.grad is not None
                TopK.layer(self, w.view(-1), w.grad.view(-1), mask.view(-1), N.view(-1), int(self.swap * int(mask.sum())))  # type: ignore[arg-type]
            torch._foreach_copy_(self.products, self.masks)
        torch._foreach_mul_(self.weights, self.products)
        torch._foreach_mul_([self.optimizer.state[w]["momentum_buffer"] for w in self.weights], self.products)
        mark("masks")
        return due

    @property
    def setting(self) -> Any:
        return self


class RigLTorch(Implementation):
    rule = "RigL; rigl-torch: `if scheduler(): optimizer.step()`"

    def __init__(self, job: Job, density: float, swap: float) -> None:
        super().__init__(job, density, swap)
        from .peers import rigl_torch

        self.optimizer = torch.optim.SGD(self.model.parameters(), **SGD)
        self.scheduler = rigl_torch.attach(self.model, self.optimizer, density, swap, GAP, 10**9)

    def after(self, mark: Marks) -> bool:
        stepped = self.scheduler()
        if stepped:
            self.optimizer.step()
        mark("optimizer")
        mark("masks")
        return not stepped


class Sparsimony(Implementation):
    rule = "RigL; sparsimony: `optimizer.step(); sparsifier.step()`, masks applied in every forward"

    def __init__(self, job: Job, density: float, swap: float) -> None:
        super().__init__(job, density, swap)
        from .peers import sparsimony

        self.optimizer = torch.optim.SGD(self.model.parameters(), **SGD)
        names = {id(w) for w in weights_of(self.model)}
        self.sparsifier = sparsimony.attach(
            self.model,
            self.optimizer,
            density,
            swap,
            GAP,
            10**9,
            [n for n, p in self.model.named_parameters() if id(p) in names],
        )

    def after(self, mark: Marks) -> bool:
        self.optimizer.step()
        mark("optimizer")
        updated = self.sparsifier.step()
        mark("masks")
        return updated


IMPLEMENTATIONS: dict[str, type[Implementation]] = {
    "dense": Dense, "dstee": Dstee, "by hand": ByHand, "rigl-torch": RigLTorch, "sparsimony": Sparsimony,
}  # fmt: skip
NEEDS = {"rigl-torch": "rigl_torch", "sparsimony": "sparsimony"}


def weights_of(model: nn.Module) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def tasks(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One per model and density.

    Raises:
        UsageError: a model is not known, or not on this device.
    """
    from . import plan

    models = args.shapes or ["mlp", "gnn"]
    unknown = [m for m in models if m not in BATCH]
    if unknown:
        raise UsageError(f"--op step --shapes {' '.join(unknown)}: expected of {', '.join(BATCH)}")
    if args.device != "cpu":
        raise UsageError("--op step times a CPU: leave out --device")
    skipped = {
        name: f"{name} is not installed (make bench-peers)" for name, m in NEEDS.items() if importlib.util.find_spec(m) is None
    }
    names = [name for name in IMPLEMENTATIONS if name not in skipped]
    used = plan.threads(args)
    return [
        {
            "kind": "steps", "model": model, "density": density, "swap": args.swap, "every": args.every, "threads": used,
            "key": {"op": "step", "case": model, "density": density, "threads": used, "batch": BATCH[model]},
            "batch": BATCH[model], "contenders": names, "skipped": skipped, "plan": {"budget": args.budget},
            "steps": max(12, 4 * (args.repeats // 4)),
        }
        for model in models for density in args.density
    ]  # fmt: skip


def run_steps(task: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """The row of one model."""
    results: dict[str, Any] = {}
    running: dict[str, Implementation] = {}
    marks: dict[str, list[dict[str, float]]] = {}
    for name in task["contenders"]:
        emit(name, "set-up")
        kind = IMPLEMENTATIONS[name]
        results[name] = {"status": "ok", "rule": kind.rule, "ours": name == "dstee"}
        try:
            trim_memory()
            before = _resident("VmRSS")
            running[name] = kind(make_job(task["model"], task["batch"]), task["density"], task["swap"])
            _step(running[name])
            gc.collect()
            trim_memory()
            measurable = reset_peak()
            _step(running[name])
            peak = _resident("VmHWM")
            if measurable and before is not None and peak is not None:
                results[name]["peak_extra_bytes"] = max(0, peak - before)
            marks[name] = []
        except Exception as error:
            results[name] |= {"status": "failed", "reason": _words(error)}
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
        results[name] |= _figures(marks[name], task["every"])
    dense = results.get("dense", {})
    for one in results.values():
        if one["status"] == "ok" and dense.get("status") == "ok" and one is not dense:
            spent = one["phases_ms"]["optimizer"] + one["phases_ms"]["masks"] + one["update_ms"]
            one["sparse_share"] = (spent - dense["phases_ms"]["optimizer"]) / one["median_ms"]
    return {"n": sum(w.numel() for w in weights_of(make_job(task["model"], 1).model)), "contenders": results}


def _step(one: Implementation) -> dict[str, float]:
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


def _figures(steps: list[dict[str, float]], every: int) -> dict[str, Any]:
    """Phases are medians over ordinary steps; ``update_ms`` is what an update adds to its step, over ``every``."""
    plain = [s for s in steps if not s["updated"]]
    phases = {p: statistics.median(s[p] for s in plain) * 1e3 for p in PHASES}
    both = [1e3 * (s["optimizer"] + s["masks"]) for s in steps if s["updated"]]
    update = (statistics.median(both) - phases["optimizer"] - phases["masks"]) / every if both else 0.0
    whole = summary([sum(s[p] for p in PHASES) for s in plain])
    return whole | {"phases_ms": phases, "update_ms": update, "updates": len(both)}
