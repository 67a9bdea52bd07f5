"""Runs rows one after the other, each in a process of its own unless its task says that it may follow others in theirs; a
contender that dies or hangs is left out and named."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from . import results_file
from .results_file import Document, Environment, Result, Row
from .tasks import Task

__all__ = ["WorkerError", "Workers", "made_by", "resume_from", "run", "run_row"]

START = 120.0  # seconds that a worker may take to import torch
Say = Callable[[str], None]


class WorkerError(RuntimeError):
    """The worker gave no row. ``status``: crashed or timed out; ``contender``: who was at work, None for the worker itself."""

    def __init__(self, contender: str | None, status: str, text: str) -> None:
        super().__init__(text)
        self.contender = contender
        self.status = status


def made_by(stamp: Environment, task: Task) -> dict[str, object]:
    """What must be equal for a row to be kept by ``--resume``."""
    code = {name: value for name, value in stamp.items() if name in ("commit", "dirty", "torch", "dstee", "cpu", "peers")}
    return {**code, "plan": task.get("plan"), "contenders": sorted(task["contenders"]), "skipped": sorted(task["skipped"])}


def run(
    tasks: list[Task], document: Document, path: Path | None, *, limit: float, say: Say, show: Callable[[Row], None],
    kept: list[Row] | None = None, advance: Callable[[str], None] = lambda text: None,
) -> None:  # fmt: skip
    """Fills ``document["rows"]``, writing the file after each. ``kept``: rows of an earlier run that may be taken over."""
    with Workers() as workers:
        for task in tasks:
            mine = made_by(document["stamp"], task)
            old = [r for r in kept or [] if r["key"] == task["key"]]
            if old and old[0].get("made_by") == mine and "error" not in old[0]:
                row = old[0]
                say(f"kept: {results_file.title(row)}")
            else:
                if old:
                    say(f"measured again, since code, machine or options differ: {results_file.title(old[0])}")
                row = {"key": task["key"], "made_by": mine, **run_row(task, limit, advance, workers)}
            document["rows"].append(row)
            results_file.amortised(document, document["options"].get("every", 100))
            if path is not None:
                results_file.write(path, document)
            show(row)
    document["complete"] = True
    if path is not None:
        results_file.write(path, document)


def run_row(
    task: Task, limit: float, advance: Callable[[str], None] = lambda text: None, workers: Workers | None = None
) -> Row:
    """The row of ``task``; tried again without the contender that ended or stalled the worker."""
    if workers is None:
        with Workers() as workers:
            return run_row(task, limit, advance, workers)
    skipped: dict[str, Result] = {name: {"status": "skipped", "reason": why} for name, why in task["skipped"].items()}
    lost: dict[str, Result] = {}
    while True:
        left = [name for name in task["contenders"] if name not in lost]
        try:
            row = workers.attempt({**task, "contenders": left}, limit, advance)
        except WorkerError as error:
            if error.contender is None:
                return {"error": f"{error.status}, {error}", "contenders": {**lost, **skipped}}
            lost[error.contender] = {"status": error.status, "reason": str(error)}
            continue
        found = {**row["contenders"], **lost, **skipped}
        order = [*task["contenders"], *skipped]
        return {**row, "contenders": {name: found[name] for name in order if name in found}}


class Workers:
    """The worker at work, which is ended after its row unless the task has ``keep``."""

    def __init__(self) -> None:
        self._kept: Worker | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def attempt(self, task: Task, limit: float, advance: Callable[[str], None]) -> Row:
        """The row, by one worker.

        Raises:
            WorkerError: the worker ended without a row, or said nothing for ``limit`` seconds.
        """
        if not task.get("keep"):
            self._end()
        if self._kept is None:
            self._kept = Worker()
        done = False
        try:
            row = self._kept.row(task, limit, advance)
            done = bool(task.get("keep"))
        finally:
            if not done:
                self._end()
        return row

    def _end(self) -> None:
        if self._kept is not None:
            self._kept.end()
        self._kept = None


class Worker:
    """A process group, so that what a contender starts ends with it."""

    def __init__(self) -> None:
        package = __package__ or "bench"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path), "DSTEE_BACKEND": ""}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by end()
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{package}.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        assert self._process.stdout is not None
        threading.Thread(target=_forward, args=(self._process.stdout, self._lines), daemon=True).start()

    def row(self, task: Task, limit: float, advance: Callable[[str], None]) -> Row:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        running: str | None = None
        phase = "start"
        while True:
            try:
                line = self._lines.get(timeout=limit if phase != "start" else max(limit, START))
            except queue.Empty:
                raise WorkerError(running, "timed out", f"{phase}: nothing for {limit:g} s{_last_line(self._errors)}") from None
            if line is None:
                ending = _ending(self._process.wait())
                raise WorkerError(running, "crashed", f"{phase}: {ending}{_last_line(self._errors)}")
            event = json.loads(line)
            if "row" in event:
                row: Row = event["row"]
                return row
            running, phase = event["running"], event["phase"]
            advance(f"{running or 'set-up'}: {phase}")

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _last_line(errors: IO[str]) -> str:
    """Of what the worker wrote to stderr, in brackets."""
    errors.seek(0)
    tail = [line.strip() for line in errors.read()[-4000:].splitlines() if line.strip()]
    return f" ({tail[-1][:200]})" if tail else ""


def _forward(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _ending(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with status {code}"


def resume_from(path: Path) -> list[Row]:
    """Rows of an earlier run; none if there is no such file yet."""
    return results_file.read(path)["rows"] if path.exists() else []
