"""Runs rows one after the other, each in a process of its own; a contender that dies or hangs is left out and named."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from . import results_file
from .results_file import Document, Environment, Result, Row
from .tasks import Task

__all__ = ["WorkerError", "made_by", "resume_from", "run", "run_row"]

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
    for task in tasks:
        mine = made_by(document["stamp"], task)
        old = [r for r in kept or [] if r["key"] == task["key"]]
        if old and old[0].get("made_by") == mine and "error" not in old[0]:
            row = old[0]
            say(f"kept: {results_file.title(row)}")
        else:
            if old:
                say(f"measured again, since code, machine or options differ: {results_file.title(old[0])}")
            row = {"key": task["key"], "made_by": mine, **run_row(task, limit, advance)}
        document["rows"].append(row)
        results_file.amortised(document, document["options"].get("every", 100))
        if path is not None:
            results_file.write(path, document)
        show(row)
    document["complete"] = True
    if path is not None:
        results_file.write(path, document)


def run_row(task: Task, limit: float, advance: Callable[[str], None] = lambda text: None) -> Row:
    """The row of ``task``; tried again without the contender that ended or stalled the worker."""
    skipped: dict[str, Result] = {name: {"status": "skipped", "reason": why} for name, why in task["skipped"].items()}
    lost: dict[str, Result] = {}
    while True:
        left = [name for name in task["contenders"] if name not in lost]
        try:
            row = _attempt({**task, "contenders": left}, limit, advance)
        except WorkerError as error:
            if error.contender is None:
                return {"error": f"{error.status}, {error}", "contenders": {**lost, **skipped}}
            lost[error.contender] = {"status": error.status, "reason": str(error)}
            continue
        found = {**row["contenders"], **lost, **skipped}
        order = [*task["contenders"], *skipped]
        return {**row, "contenders": {name: found[name] for name in order if name in found}}


def _attempt(task: Task, limit: float, advance: Callable[[str], None]) -> Row:
    """The row, by one worker.

    Raises:
        WorkerError: the worker ended without a row, or said nothing for ``limit`` seconds.
    """
    with tempfile.TemporaryFile("w+") as errors, _worker(errors) as process:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            json.dump(task, process.stdin)
            process.stdin.close()
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True).start()
        running: str | None = None
        phase = "start"
        while True:
            try:
                line = lines.get(timeout=limit if phase != "start" else max(limit, START))
            except queue.Empty:
                raise WorkerError(running, "timed out", f"{phase}: nothing for {limit:g} s{_last_line(errors)}") from None
            if line is None:
                raise WorkerError(running, "crashed", f"{phase}: {_ending(process.wait())}{_last_line(errors)}")
            event = json.loads(line)
            if "row" in event:
                row: Row = event["row"]
                return row
            running, phase = event["running"], event["phase"]
            advance(f"{running or 'set-up'}: {phase}")


def _last_line(errors: IO[str]) -> str:
    """Of what the worker wrote to stderr, in brackets."""
    errors.seek(0)
    tail = [line.strip() for line in errors.read()[-4000:].splitlines() if line.strip()]
    return f" ({tail[-1][:200]})" if tail else ""


def _forward(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


@contextlib.contextmanager
def _worker(errors: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """A process group, so that what a contender starts ends with it."""
    package = __package__ or "bench"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path), "DSTEE_BACKEND": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", f"{package}.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _ending(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with status {code}"


def resume_from(path: Path) -> list[Row]:
    """Rows of an earlier run; none if there is no such file yet."""
    return results_file.read(path)["rows"] if path.exists() else []
