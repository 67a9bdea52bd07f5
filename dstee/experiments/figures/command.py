"""``dstee figure``: its options, the kinds of pictures, and what it does with them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dstee._console import UsageError, complain, one_line
from dstee._files import write_atomic
from dstee._lookup import did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dstee.experiments.ignored import Measurement
    from dstee.experiments.results.row import Row

__all__ = ["KINDS", "add_options", "run"]


class Kind(NamedTuple):
    """``options``: those of :func:`add_options` that it takes."""

    help: str
    draw: Callable[[argparse.Namespace, Callable[[str], None]], Figure]
    options: tuple[str, ...] = ()


def add_options(parser: argparse.ArgumentParser) -> None:
    kinds = "; ".join(f"{name}: {kind.help}" for name, kind in KINDS.items())
    parser.add_argument("kind", metavar="KIND", help=kinds)
    parser.add_argument("run", nargs="+", type=Path, metavar="RUNS", help="run folders, folders of them, results files")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="picture to write: .png, .svg or .pdf; "
                        "of fig1 also .json, the measurements themselves")  # fmt: skip
    parser.add_argument("--only", action="append", default=[], metavar="SETTING=VALUE,VALUE",
                        help="leave out rows of other values; as often as needed")  # fmt: skip
    parser.add_argument("--command", dest="made_with", metavar="TEXT", help="fig1 to .json: the command that made the runs")
    parser.add_argument("--by", metavar="SETTING", help="fig3, c: the setting that varies (default: c or c_rel)")
    parser.add_argument("--score", default="accuracy", metavar="NAME", help="c, cost: another score of the results, as auc")
    parser.add_argument(
        "--between", metavar="rounds,seeds,methods", help="overlap: some of these (default: all that there are)"
    )


def run(args: argparse.Namespace) -> int:
    from dstee.experiments.figures.canvas import FORMATS, render

    warn = partial(complain, "warning")
    if args.kind not in KINDS:
        raise UsageError(
            f"unknown kind of figure {args.kind!r}{did_you_mean(args.kind, KINDS)}, expected one of {', '.join(KINDS)}"
        )
    for option, default in (("by", None), ("score", "accuracy"), ("between", None)):
        if getattr(args, option) != default and option not in KINDS[args.kind].options:
            takers = ", ".join(name for name, kind in KINDS.items() if option in kind.options)
            raise UsageError(f"--{option} is for {takers}, not for {args.kind}")
    ending = args.output.suffix.lower()
    if args.made_with is not None and (args.kind, ending) != ("fig1", ".json"):
        raise UsageError("--command is for fig1 to a .json file, which keeps it")
    if ending == ".json" and args.kind == "fig1":
        from dstee.experiments.ignored import dump_measurements

        content = dump_measurements(_measurements(args), args.made_with or "")
    elif ending in FORMATS:
        content = render(KINDS[args.kind].draw(args, warn), args.output)
    else:
        raise UsageError(
            f"--output {one_line(args.output)} must end in {', '.join(FORMATS)}{' or .json' * (args.kind == 'fig1')}"
        )
    write_atomic(args.output, [content])
    print(f"figure  {one_line(args.output)}")
    return 0


def _rows(args: argparse.Namespace, warn: Callable[[str], None], curves: bool = False) -> list[Row]:
    from dstee.experiments.results.choice import only
    from dstee.experiments.results.rows import read_rows

    return only(read_rows(args.run, warn, curves=curves), args.only)


def _fig3(args: argparse.Namespace, warn: Callable[[str], None]) -> Figure:
    from dstee.experiments.figures.exploration import over_time

    return over_time(_rows(args, warn, curves=True), args.by)


def _c(args: argparse.Namespace, warn: Callable[[str], None]) -> Figure:
    from dstee.experiments.figures.exploration import over_setting

    return over_setting(_rows(args, warn), args.by, args.score)


def _measurements(args: argparse.Namespace) -> list[Measurement]:
    from dstee.experiments.ignored import read_measurements
    from dstee.experiments.results.choice import only

    return only(read_measurements(args.run), args.only)


def _fig1(args: argparse.Namespace, warn: Callable[[str], None]) -> Figure:
    from dstee.experiments.figures.fig1 import ignored_bars

    return ignored_bars(_measurements(args))


def _layers(args: argparse.Namespace, warn: Callable[[str], None]) -> Figure:
    from dstee.experiments.figures.layers import by_layer

    return by_layer(_rows(args, warn, curves=True))


def _overlap(args: argparse.Namespace, warn: Callable[[str], None]) -> Figure:
    from dstee.experiments.figures.overlap import mask_overlap

    return mask_overlap(_rows(args, warn), args.between, warn)


def _cost(args: argparse.Namespace, warn: Callable[[str], None]) -> Figure:
    from dstee.experiments.figures.cost import accuracy_by_cost

    return accuracy_by_cost(_rows(args, warn), args.score)


KINDS = {
    "fig1": Kind("what updates ignored of the weights that matter later (dstee train --ignored-at)", _fig1),
    "fig3": Kind("R per update and accuracy per epoch, over c or another setting", _fig3, ("by",)),
    "c": Kind("final accuracy and R against c, paired with c = 0", _c, ("by", "score")),
    "layers": Kind("R of each layer over the updates", _layers),
    "overlap": Kind("what masks have in common between rounds, seeds and methods", _overlap, ("between",)),
    "cost": Kind("accuracy against training FLOPs", _cost, ("score",)),
}
