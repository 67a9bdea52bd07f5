"""``dstee table``: its options, and what it does with them."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dstee._console import UsageError, complain, one_line
from dstee._files import write_atomic

if TYPE_CHECKING:
    from dstee.experiments.results.row import Row
    from dstee.experiments.tables.table import Table

__all__ = ["add_options", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", type=Path, metavar="RUNS", help="run folders, folders of them, results files")
    parser.add_argument("--format", choices=("md", "csv", "latex", "json"),
                        help="json: the rows themselves, for dstee table and dstee figure (default: md; on a terminal a table "
                        "that fits it)")  # fmt: skip
    parser.add_argument("--baseline", metavar="LABEL", help="compare with this label or method, paired by seed")
    parser.add_argument("--score", default="accuracy", metavar="NAME", help="accuracy, or another score of the results, as auc")
    parser.add_argument("--columns", metavar="SETTING,SETTING", help="what the columns stand for (default: sparsity)")
    parser.add_argument("--only", action="append", default=[], metavar="SETTING=VALUE,VALUE",
                        help="leave out rows of other values; as often as needed")  # fmt: skip
    parser.add_argument("--choose", action="append", default=[], metavar="SETTING",
                        help="of trainings that differ in it alone keep those best on the validation data")  # fmt: skip
    parser.add_argument("--no-curves", action="store_true", help="json: without epochs and updates")
    parser.add_argument("--command", dest="made_with", metavar="TEXT", help="json: the command that made the runs, to be kept")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there (default: the standard output)")


def run(args: argparse.Namespace) -> int:
    warn = partial(complain, "warning")
    if args.format is None and args.output is None and sys.stdout.isatty():
        from dstee.experiments.tables.formats import on_terminal

        on_terminal(_table(args, _rows(args, warn)), sys.stdout)
        return 0
    text = _text(args, warn)
    if args.output is None:
        sys.stdout.write(text)
    else:
        write_atomic(args.output, [text.encode()])
        print(f"table  {one_line(args.output)}")
    return 0


def _text(args: argparse.Namespace, warn: Callable[[str], None]) -> str:
    from dstee.experiments.results.file import dump_rows
    from dstee.experiments.tables.formats import FORMATS

    rows = _rows(args, warn)
    if args.format == "json":
        return dump_rows(rows.rows, _made_with(args, rows.rows)).decode()
    return FORMATS[args.format or "md"](_table(args, rows))


class _Rows(NamedTuple):
    """``notes``: what was left out of them."""

    rows: Sequence[Row]
    notes: list[str]


def _rows(args: argparse.Namespace, warn: Callable[[str], None]) -> _Rows:
    from dstee.experiments.results.choice import choose, only
    from dstee.experiments.results.rows import read_rows

    if args.format != "json" and (args.no_curves or args.made_with is not None):
        raise UsageError("--no-curves and --command are for --format json")
    if args.format == "json" and (args.baseline is not None or args.columns is not None or args.score != "accuracy"):
        raise UsageError("--format json has the rows: --baseline, --columns and --score are for the tables made of them")
    rows: Sequence[Row] = only(read_rows(args.run, warn, curves=args.format == "json" and not args.no_curves), args.only)
    notes: list[str] = []
    for name in args.choose:
        rows, more = choose(rows, name)
        notes += more
    return _Rows(rows, notes)


def _table(args: argparse.Namespace, found: _Rows) -> Table:
    from dstee.experiments.tables.table import make_table

    columns = None if args.columns is None else args.columns.split(",")
    return make_table(found.rows, args.score, columns, args.baseline, found.notes)


def _made_with(args: argparse.Namespace, rows: Sequence[object]) -> str:
    """What made the runs: as said, as the results files say, or this command."""
    if args.made_with is not None:
        return str(args.made_with)
    commands = {getattr(row, "command", "") for row in rows}
    if len(commands) == 1 and (command := commands.pop()):
        return str(command)
    return shlex.join(["dstee", "table", *map(str, args.run), "--format", "json"])
