"""``python -m bench.gpu --out folder``."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .machine import facts, file_stem, problems
from .run import Report, Stage, run_all
from .stages import stages

__all__ = ["Stopped", "go", "main"]


class Stopped(BaseException):
    """Somebody wants this run to end."""


def _stop(number: int, frame: object) -> None:
    raise Stopped


def go(todo: Sequence[Stage], report: Report) -> int:
    """The stages, until a signal comes; the exit status."""
    previous = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return run_all(todo, report)
    except Stopped:
        print(f"gpu: stopped; what there is lies in {report.path}", file=sys.stderr)
        return 130
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Build, test and time on this machine's GPU.")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder of the JSON file and the logs")
    options = parser.parse_args(arguments)
    found = problems()
    for problem in found:
        print(f"gpu: {problem}", file=sys.stderr)
    if found:
        return 1
    machine = facts()
    report = Report(options.out.resolve() / f"{file_stem(machine)}.json", machine)
    versions = f"driver {machine['driver']}, torch {machine['torch']}, nvcc {machine['nvcc']}"
    print(f"{machine['gpu']}, {versions}; writing {report.path}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        return go(stages(Path(folder), machine), report)


if __name__ == "__main__":
    sys.exit(main())
