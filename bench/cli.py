"""``dstee bench``: measures, shows, compares. Importing this costs nothing; torch is imported when a command runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .options import add_arguments, misplaced

__all__ = ["add_arguments", "main", "make_parser", "run"]


def make_parser(prog: str = "python -m bench") -> argparse.ArgumentParser:
    from dstee._parser import Parser

    parser = Parser(
        prog=prog, description="How long a mask update and a masked step take, and how far that is from the machine's limit."
    )
    add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench") -> int:
    """Runs the command line and returns the exit status: 0 done, 1 a backend of dstee has no figure (of ``compare``: it is
    slower), 2 the command line or a file cannot be used, 3 ``compare`` cannot tell, 130 interrupted."""
    from dstee._console import exit_status

    return exit_status(lambda: run(make_parser(prog).parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    """Runs what :func:`add_arguments` has parsed and returns the exit status.

    Raises:
        UsageError, OSError: an option or a file cannot be used.
    """
    from dstee._console import complain

    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        complain("stopped", "interrupted; what was measured is kept where --json was given: go on with --resume")
        return 130


def _dispatch(args: argparse.Namespace) -> int:
    from dstee._console import UsageError

    if args.action is None:
        return _measure(args)
    option = misplaced(args)
    if option:
        raise UsageError(f"{option} is an option of measuring, which bench {args.action} does not do: leave it out")
    if args.action == "compare":
        from . import compare

        return compare.run(args.a, args.b, args.margin, args.all, sys.stdout)
    if args.action == "report":
        return _report(args.file, args.html)
    if args.action == "model":
        return _predict(args)
    from .ranks import command

    return command.run(args)


def _report(path: Path, html: Path | None) -> int:
    from dstee._console import UsageError

    from . import report, results_file, scaling_report, table

    document = results_file.read(path)
    if results_file.find(document, op="ranks"):
        from .ranks import report as ranks_report

        if html:
            raise UsageError("--html: what ranks send has no page, its tables are plain text: leave it out")
        _print(ranks_report.text(document))
        return 0
    _print(table.document_text(document), scaling_report.text(document))
    if html:
        report.write(html, document)
        _print(f"\nreport   {html}")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from . import predict_report

    measured = predict_report.read_measured(args.measured) if args.measured else None
    _print(predict_report.text(args.gpu, args.shapes or predict_report.CASES, args.density, measured))
    return 0


def _measure(args: argparse.Namespace) -> int:
    from dstee._console import UsageError, complain

    from . import environment, plan, report, results_file, scaling_report, sweep, table
    from .progress import Bar
    from .tasks import threads

    if args.from_model or args.plugin:
        _find_modules_here()
    tasks = plan.tasks(args)
    if args.html:
        report.require()
    path = args.resume or args.json
    if args.resume and args.json and args.resume != args.json:
        raise UsageError("--resume FILE writes to that file: leave out --json")
    document = results_file.new(environment.describe(threads(args), args.device), plan.options(args))
    kept = sweep.resume_from(path) if args.resume else []
    load = document["stamp"]["load"]
    if load is not None and load > 0.5:
        complain("warning", f"the machine is busy (load {load:.1f}): another process on a core stalls every parallel loop")
    bar = Bar(len(tasks))

    def show(row: results_file.Row) -> None:
        bar.row_done()
        with bar.aside():
            _print(table.row_text(row))

    with bar:
        sweep.run(tasks, document, path, limit=args.limit, say=lambda text: complain("note", text), show=show, kept=kept,
                  advance=bar.advance)  # fmt: skip
    words = table.roof_words(document["rows"])
    _print(f"\nof roof: {words}" if words else "", scaling_report.text(document))
    if args.html:
        report.write(args.html, document)
        _print(f"\nreport   {args.html}")
    if path:
        _print(f"figures  {path}")
    bad = [name for row in document["rows"] for name, one in row.get("contenders", {}).items()
           if one.get("ours") and one["status"] not in ("ok", "skipped")]  # fmt: skip
    return 1 if bad or any("error" in row for row in document["rows"]) else 0


def _find_modules_here() -> None:
    """Modules of the working directory can be imported, as under ``python -m``; by the workers as well."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)


def _print(*texts: str) -> None:
    for text in texts:
        if text:
            print(text, flush=True)
