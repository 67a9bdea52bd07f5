"""From the command line to the rows that are to be measured."""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch

from . import layers
from .contenders import Contender, registry
from .layers import UsageError
from .shapes import Shape

Task = dict[str, Any]
STEP_MODELS = ("vgg19", "resnet50", "mlp", "gnn")


def threads(args: argparse.Namespace) -> int:
    return args.threads or torch.get_num_threads()


def options(args: argparse.Namespace) -> dict[str, Any]:
    """What goes into the result file."""
    names = ("op", "shapes", "from_model", "density", "dtype", "device", "swap", "every", "backends", "against", "repeats",
             "budget", "limit", "largest")  # fmt: skip
    return {name: getattr(args, name) for name in names}


def check(args: argparse.Namespace) -> None:
    if not all(0 < d < 1 for d in args.density):
        raise UsageError(f"--density {' '.join(map(str, args.density))}: shares lie between 0 and 1")
    if not 0 < args.swap < 1:
        raise UsageError(f"--swap {args.swap}: expected a share between 0 and 1")
    for name, least in (("repeats", 3), ("every", 1)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name} {getattr(args, name)}: expected {least} or more")
    if args.threads is not None and not 1 <= args.threads <= 4096:
        raise UsageError(f"--threads {args.threads}: expected 1 to 4096")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device cuda: torch {torch.__version__} sees no GPU")
    if not (args.limit > 0 and args.budget > 0):
        raise UsageError("--limit and --budget are seconds, more than 0")


def cases(args: argparse.Namespace) -> dict[str, list[Shape]]:
    """Name -> shapes."""
    if args.from_model:
        if args.shapes:
            raise UsageError("--shapes and --from-model both say which layers: pass one")
        return {args.from_model: list(layers.of_model(args.from_model).values())}
    return {name: list(layers.by_name(name).values()) for name in args.shapes or ["resnet50"]}


def tasks(args: argparse.Namespace) -> list[Task]:
    """One per row.

    Raises:
        UsageError: an option cannot be used.
    """
    check(args)
    try:
        found = registry(args.plugin)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--plugin: {error}") from error
    others = {c.name for c in found} - set(layers_of_ours(found))
    unknown = set(args.against or ()) - others
    if unknown:
        raise UsageError(f"--against {', '.join(sorted(unknown))}: expected of {', '.join(sorted(others))}")
    out: list[Task] = []
    ops = [op for op in ("masked_sgd", "drop_grow") if op in args.op]  # the update shows its cost per step, so it comes last
    for name, shapes in cases(args).items() if ops else ():
        for dtype in args.dtype:
            for i, density in enumerate(args.density):
                out += [row(args, found, op, name, shapes, density, dtype, i == 0) for op in ops]
    if "step" in args.op:
        from .steps import tasks as step_tasks

        out += step_tasks(args)
    if "scaling" in args.op:
        from .scaling import tasks as scaling_tasks

        out += scaling_tasks(args, found)
    return out


def layers_of_ours(found: list[Contender]) -> list[str]:
    return [c.name for c in found if c.ours]


def row(
    args: argparse.Namespace, found: list[Contender], op: str, case: str, shapes: list[Shape], density: float, dtype: str,
    first: bool = True, n_threads: int | None = None, key: dict[str, Any] | None = None,
) -> Task:  # fmt: skip
    """The task of one row. ``first``: slow contenders take part."""
    used = n_threads or threads(args)
    chosen, skipped = [], {}
    for c in found:
        if c.op != op or (c.name not in args.backends if c.ours else args.against is not None and c.name not in args.against):
            continue
        reason = c.why_not(args.device, dtype)
        if reason is None and c.slow and not first and not args.slow_everywhere:
            reason = "slow: measured at the first density only (--slow-everywhere)"
        if reason is None:
            chosen.append(c.name)
        else:
            skipped[c.name] = reason
    return {
        "key": {"op": op, "case": case, "density": density, "dtype": dtype, "swap": args.swap, "threads": used,
                "device": args.device, **(key or {})},
        "op": op, "shapes": [list(s) for s in shapes], "density": density, "dtype": dtype, "swap": args.swap,
        "device": args.device, "threads": used, "contenders": chosen, "skipped": skipped, "plugins": args.plugin,
        "plan": {"repeats": args.repeats, "budget": args.budget, "least": 3},
    }  # fmt: skip


def all_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
