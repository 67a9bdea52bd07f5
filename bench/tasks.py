"""What a worker is told to measure: one :class:`Task` a row, as it goes to the worker's process in JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TypedDict

import torch

from .before import Build
from .results_file import Key
from .session import Contender
from .shapes import Shape

__all__ = ["PlanOptions", "Task", "choose", "op_task", "threads"]


class PlanOptions(TypedDict, total=False):
    """Fields of :class:`measure.Plan`; whole steps know the budget only."""

    repeats: int
    budget: float
    least: int
    roof: bool


class _Common(TypedDict):
    key: Key
    density: float
    swap: float
    threads: int
    contenders: list[str]
    skipped: dict[str, str]
    plugins: list[str]
    plan: PlanOptions


class Task(_Common, total=False):
    """``kind``: "row", an op on layers, which is the default, "steps", whole training steps of a model, or "host", what
    follows ``backward()`` in one. ``data``: of :data:`adversarial.KINDS`. ``keep``: the worker makes the next row, too."""

    kind: str
    op: str
    shapes: list[list[int]]
    dtype: str
    device: str
    data: str
    keep: bool
    before: list[Build]
    flush_bytes: int
    roof_bytes: int
    model: str
    every: int
    batch: int
    steps: int


def threads(args: argparse.Namespace) -> int:
    return args.threads or torch.get_num_threads()


def choose(
    args: argparse.Namespace, found: Sequence[Contender], op: str, dtype: str, first: bool
) -> tuple[list[str], dict[str, str]]:
    """Names of those who take part, and why the others of those asked for do not. ``first``: the slow ones may."""
    chosen, skipped = [], {}
    for c in found:
        asked = c.asked or (c.name in args.backends if c.ours else args.against is None or c.name in args.against)
        if c.op != op or not asked:
            continue
        reason = c.why_not(args.device, dtype)
        if reason is None and c.slow and not first and not args.slow_everywhere:
            reason = "slow: measured at the first density only (--slow-everywhere)"
        if reason is None:
            chosen.append(c.name)
        else:
            skipped[c.name] = reason
    return chosen, skipped


def op_task(
    args: argparse.Namespace, found: Sequence[Contender], op: str, case: str, shapes: Sequence[Shape], density: float,
    dtype: str, first: bool,
) -> Task:  # fmt: skip
    """One op on the layers of a case. ``first``: slow contenders take part."""
    chosen, skipped = choose(args, found, op, dtype, first)
    return {
        "key": {"op": op, "case": case, "density": density, "dtype": dtype, "swap": args.swap, "threads": threads(args),
                "device": args.device},
        "op": op, "shapes": [list(s) for s in shapes], "density": density, "dtype": dtype, "swap": args.swap,
        "device": args.device, "threads": threads(args), "contenders": chosen, "skipped": skipped, "plugins": args.plugin,
        "plan": {"repeats": args.repeats, "budget": args.budget, "least": 3},
    }  # fmt: skip
