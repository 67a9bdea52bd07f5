"""From the command line to the rows that are to be measured."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from dstee._console import UsageError, complain

from . import before, host, layers, scaling, steps
from .contenders import _before
from .contenders.registry import contenders, steppers, trainers
from .session import Contender
from .shapes import Shape
from .tasks import Task, op_task

__all__ = ["check", "options", "tasks"]

OPS = ("masked_sgd", "drop_grow")  # on layers; the update shows its cost per step, so it comes last


def options(args: argparse.Namespace) -> dict[str, Any]:
    """What goes into the result file."""
    names = ("op", "shapes", "from_model", "density", "dtype", "device", "swap", "every", "backends", "against", "repeats",
             "budget", "limit", "largest", "before")  # fmt: skip
    return {name: getattr(args, name) for name in names}


def check(args: argparse.Namespace) -> None:
    """Whether the options make sense.

    Raises:
        UsageError: one does not, or there is no such device.
    """
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
    others = [op for op in args.op if op not in OPS]
    if args.from_model and others:
        raise UsageError(f"--from-model gives layers for {' and '.join(OPS)}: leave out --op {' '.join(others)}")
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
        found, for_steps, for_host = contenders(args.plugin), trainers(args.plugin), steppers(args.plugin)
    except (Exception, SystemExit) as error:  # whatever a plugin does as it is imported
        raise UsageError(f"--plugin: {type(error).__name__}: {error}") from error
    others = {c.name for c in found if not c.ours}
    unknown = set(args.against or ()) - others
    if unknown:
        raise UsageError(f"--against {', '.join(sorted(unknown))}: expected of {', '.join(sorted(others))}")
    builds = [before.build(revision, lambda text: complain("note", text)) for revision in args.before]
    found += _before.contenders(list({one["commit"]: one for one in builds}.values()))
    out = _op_tasks(args, found)
    if "step" in args.op:
        out += steps.tasks(args, for_steps)
    if "host" in args.op:
        out += host.tasks(args, for_host)
    if "scaling" in args.op:
        out += scaling.tasks(args, found)
    for task in out:
        task["before"] = builds
    return out


def _op_tasks(args: argparse.Namespace, found: list[Contender]) -> list[Task]:
    ops = [op for op in OPS if op in args.op]
    return [
        op_task(args, found, op, name, shapes, density, dtype, first=i == 0)
        for name, shapes in (cases(args) if ops else {}).items()
        for dtype in args.dtype or ["float32"]
        for i, density in enumerate(args.density)
        for op in ops
    ]
