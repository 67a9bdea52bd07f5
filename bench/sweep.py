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
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from . import results_file
from .layers import UsageError
from .results_file import Document, Row

START = 120.0  # seconds that a worker may take to import torch
Say = Callable[[str], None]
Task = dict[str, Any]


class WorkerError(RuntimeError):
    """The worker ended without a row while no contender was running."""


def made_by(stamp: dict[str, Any], task: Task) -> dict[str, Any]:
    """What must be equal for a row to be kept by ``--resume``."""
    code = {name: stamp[name] for name in ("commit", "dirty", "torch", "dstee", "cpu", "peers")}
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
    skipped = {name: {"status": "skipped", "reason": reason} for name, reason in task["skipped"].items()}
    lost: dict[str, Any] = {}
    while True:
        left = [name for name in task["contenders"] if name not in lost]
        try:
            row, culprit, status, reason = _attempt({**task, "contenders": left}, limit, advance)
        except WorkerError as error:
            return {"error": str(error), "contenders": {**lost, **skipped}}
        if row is not None:
            found = {**row["contenders"], **lost, **skipped}
            order = [*task["contenders"], *skipped]
            return {**row, "contenders": {name: found[name] for name in order if name in found}}
        lost[culprit] = {"status": status, "reason": reason}


def _attempt(task: Task, limit: float, advance: Callable[[str], None]) -> tuple[Row | None, str, str, str]:
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
                return _blame(running, "timed out", f"{phase}: nothing for {limit:g} s", errors)
            if line is None:
                return _blame(running, "crashed", f"{phase}: {_ending(process.wait())}", errors)
            event = json.loads(line)
            if "row" in event:
                return event["row"], "", "", ""
            running, phase = event["running"], event["phase"]
            advance(f"{running or 'set-up'}: {phase}")


def _blame(running: str | None, status: str, reason: str, errors: IO[str]) -> tuple[None, str, str, str]:
    errors.seek(0)
    tail = [line.strip() for line in errors.read()[-4000:].splitlines() if line.strip()]
    text = reason + (f" ({tail[-1][:200]})" if tail else "")
    if running is None:
        raise WorkerError(f"{status}, {text}")
    return None, running, status, text


def _forward(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


@contextlib.contextmanager
def _worker(errors: IO[str]):
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
    if not path.exists():
        return []
    rows: list[Row] = results_file.read(path)["rows"]
    if not rows:
        return []
    return rows


__all__ = ["UsageError", "WorkerError", "made_by", "resume_from", "run", "run_row"]
