"""``bench ranks``: measures, shows, writes."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from dstee._console import UsageError, complain

from .. import environment, plan, results_file
from ..environment import all_cores
from ..progress import Bar
from ..results_file import Document, Row, Traffic
from . import launcher, model_report, report
from .cases import METHODS, Case, Task, case

__all__ = ["check", "measure", "run"]

CASES = ("resnet50", "llama-1b")
WARMUP = 1


def check(args: argparse.Namespace) -> None:
    """Whether the options make sense.

    Raises:
        UsageError: one does not.
    """
    plan.check(args)
    unknown = set(args.methods or ()) - METHODS.keys()
    if unknown:
        raise UsageError(f"--methods {', '.join(sorted(unknown))}: expected of {', '.join(METHODS)}")
    if not args.ranks or not all(1 <= ranks <= 64 for ranks in args.ranks):
        raise UsageError(f"--ranks {' '.join(map(str, args.ranks))}: expected 1 to 64 processes")
    if args.updates < 1:
        raise UsageError(f"--updates {args.updates}: expected 1 or more")
    for name in ("tokens", "flops", "step_seconds"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected more than 0")
    model_report.links(args.link)


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 1 where ranks failed, or what they did depends on their number."""
    check(args)
    args.dtype = args.dtype or ["float32"]
    if args.model_only:
        print(model_report.text(args))
        return 0
    names = ("shapes", "density", "dtype", "ranks", "methods", "updates", "largest", "limit")
    cases = [case(name, args.largest) for name in args.shapes or CASES]
    document = results_file.new(
        environment.describe(args.threads or all_cores()), {name: getattr(args, name) for name in names}
    )
    load = document["stamp"]["load"]
    if load is not None and load > 0.5:
        complain("warning", f"the machine is busy (load {load:.1f}): counts do not mind, times do")
    bar = Bar(len(cases) * len(args.density) * len(args.dtype) * len(args.ranks))
    with bar:
        for one in cases:
            for density in args.density:
                for dtype in args.dtype:
                    for ranks in args.ranks:
                        bar.advance(f"{one.name} {dtype}: {ranks} ranks")
                        document["rows"] += measure(args, one, density, dtype, ranks)
                        bar.row_done()
                        _write(args.json, document)
    document["complete"] = True
    _write(args.json, document)
    print(report.text(document))
    print(model_report.text(args, document))
    if args.json:
        print(f"\nfigures  {args.json}")
    return 1 if any(report.faults(rows) for rows in report.groups(document)) else 0


def _write(path: Path | None, document: Document) -> None:
    if path is not None:
        results_file.write(path, document)


def measure(args: argparse.Namespace, one: Case, density: float, dtype: str, ranks: int) -> list[Row]:
    """A row for each method."""
    methods = [name for name in METHODS if name in (args.methods or METHODS)]
    threads = max(1, (args.threads or all_cores()) // ranks)
    task: Task = {
        "layers": list(one.layers.items()), "density": density, "dtype": dtype, "methods": methods, "warmup": WARMUP,
        "updates": args.updates, "threads": threads, "timeout": args.limit,
    }  # fmt: skip
    rows: list[Row] = [
        {
            "key": {
                "op": "ranks", "case": one.name, "of": method, "dtype": dtype, "density": density, "ranks": ranks,
                "threads": threads,
            },
            "n": one.n, "layers": len(one.layers), "divisor": one.divisor,
        }
        for method in methods
    ]  # fmt: skip
    try:
        by_rank = launcher.run(task, ranks, args.limit)
        for row in rows:
            row["traffic"] = _traffic([[x for x in lines if x["method"] == row["key"]["of"]] for lines in by_rank], one)
    except launcher.RanksFailed as error:
        for row in rows:
            row["error"] = str(error)
            row.pop("traffic", None)
    return rows


def _traffic(by_rank: list[list[dict[str, Any]]], one: Case) -> Traffic:
    """What all ranks wrote about the updates of one method.

    Raises:
        launcher.RanksFailed: they did not send the same.
    """
    sent = [[{name: x[name] for name in ("rounds", "other")} for x in lines] for lines in by_rank]
    if any(other != sent[0] for other in sent):
        raise launcher.RanksFailed("ranks have not sent the same")
    digest = hashlib.blake2b(digest_size=16)
    for of_update in zip(*by_rank, strict=True):
        for parts in zip(*(x["prints"] for x in of_update), strict=True):
            digest.update((sum(parts) % 2**64).to_bytes(8, "little"))
    of_layers = zip(*(x["layer_bytes"] for x in by_rank[0]), strict=True)
    return {
        "updates": sent[0], "seconds": [max(x["seconds"] for x in of_update) for of_update in zip(*by_rank, strict=True)],
        "digest": digest.hexdigest(), "layer_bytes": dict(zip(one.layers, map(max, of_layers), strict=True)),
    }  # fmt: skip
