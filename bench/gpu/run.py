"""Runs stages one after the other, each within its limit, and keeps on disk what is known so far."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

__all__ = ["ROOT", "TOTAL", "Report", "Stage", "run_all"]

ROOT = Path(__file__).resolve().parents[2]
TOTAL = 510.0  # seconds of all stages
TAIL = 30  # lines of a stage's output that the report has; the log has all


@dataclass(frozen=True)
class Stage:
    """One command.

    log: which log file its output goes to. needs: stages without whose success it is left out. leaves: seconds that it leaves
    to those after it. optional: its failure is no failure of the run. figures: the JSON file it writes, taken into the report
    however it ended; parse: makes figures of what it printed. shown: lines of its output to print although it went well.
    """

    name: str
    command: Sequence[str]
    limit: float
    log: str
    needs: tuple[str, ...] = ()
    leaves: float = 0
    optional: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    figures: Path | None = None
    parse: Callable[[str], object] | None = None
    shown: int = 0


class Report:
    """What is known so far, on disk at all times."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        self.path = path
        self.data: dict[str, Any] = {"machine": machine, "complete": False, "stages": {}}

    def log(self, kind: str) -> Path:
        return self.path.with_name(f"{self.path.stem}-{kind}.log")

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=1, allow_nan=False) + "\n")
        os.replace(part, self.path)

    def ok(self, name: str) -> bool:
        return self.data["stages"].get(name, {}).get("status") == "ok"

    def add(self, stage: Stage, printed: str = "", **record: object) -> None:
        self.data["stages"][stage.name] = record
        with contextlib.suppress(OSError, ValueError):  # not written, or not whole
            if stage.figures is not None:
                self.data[stage.name] = json.loads(stage.figures.read_text())
            elif stage.parse is not None and printed:
                self.data[stage.name] = stage.parse(printed)
        self.save()


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the command and what it started, a sanitizer's target say."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return


def execute(stage: Stage, limit: float, log: IO[bytes]) -> tuple[str, int | None]:
    """Runs the command, its output to the log; ok, failed or timeout, and its own exit status, if any."""
    try:
        process = subprocess.Popen(
            stage.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=os.environ | dict(stage.environment), start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        log.write(f"{error}\n".encode())
        log.flush()
        return "failed", None
    try:
        return "ok" if process.wait(limit) == 0 else "failed", process.returncode
    except subprocess.TimeoutExpired:
        return "timeout", None
    finally:
        if process.poll() is None:
            end(process)


def run_stage(stage: Stage, report: Report, deadline: float) -> str:
    """Runs it within its limit and the time that is left; returns ok, failed, timeout, left out or stopped."""
    missing = [name for name in stage.needs if not report.ok(name)]
    limit = min(stage.limit, deadline - time.monotonic() - stage.leaves)
    if missing or limit <= 0:
        excused = stage.optional or any(report.data["stages"].get(name, {}).get("optional") for name in missing)
        reason = f"{missing[0]} did not succeed" if missing else "no time left"
        report.add(stage, status="left out", reason=reason, optional=excused)
        return "left out"
    start = time.monotonic()
    path = report.log(stage.log)
    with open(path, "ab") as log:
        settings = [f"{name}={value}" for name, value in stage.environment.items()]
        log.write(f"\n=== {stage.name}: {shlex.join([*settings, *stage.command])}\n".encode())
        log.flush()
        begin = log.tell()
        status, code = "stopped", None
        try:
            status, code = execute(stage, limit, log)
        finally:
            printed = path.read_bytes()[begin:].decode(errors="replace")
            lines = [line.rstrip() for line in printed.splitlines()]
            report.add(stage, printed, status=status, seconds=round(time.monotonic() - start, 1), exit=code,
                       optional=stage.optional, log=path.name, tail=lines[-TAIL:])  # fmt: skip
    for line in lines[-2 * TAIL :] if status != "ok" else lines[len(lines) - stage.shown :]:
        print("    " + line, flush=True)
    return status


def last_line(record: Mapping[str, Any]) -> str:
    """Of a stage's output: pytest's counts, mostly; else why there is none."""
    tail: Sequence[str] = record.get("tail", [])
    return next((line.strip("= ") for line in reversed(tail) if line.strip()), record.get("reason", ""))


def run_all(todo: Sequence[Stage], report: Report, total: float = TOTAL) -> int:
    """0 when every stage that must succeed did."""
    deadline = time.monotonic() + total
    report.save()
    good = True
    for stage in todo:
        status = run_stage(stage, report, deadline)
        record = report.data["stages"][stage.name]
        print(f"{stage.name:14} {status:8} {record.get('seconds', 0):6.1f} s  {last_line(record)[:150]}", flush=True)
        good = good and (status == "ok" or record["optional"])
    report.data["complete"] = True
    report.data["good"] = good
    report.save()
    return 0 if good else 1
