"""Starts the ranks of a run as processes of this machine, which meet at a file, and collects what they write."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cases import Task

__all__ = ["RanksFailed", "run"]

_POLL = 0.1  # seconds


class RanksFailed(RuntimeError):
    """A rank ended without its figures, or all were silent for too long; the text says which and why."""


def run(task: Task, ranks: int, limit: float, advance: Callable[[], object] = lambda: None) -> list[list[dict[str, Any]]]:
    """What each rank wrote, a dict for each update, by rank. ``advance`` is called whenever a rank has written.

    Raises:
        RanksFailed: after all ranks have been ended.
    """
    with tempfile.TemporaryDirectory(prefix="dstee-ranks-") as name:
        folder = Path(name)
        (folder / "task.json").write_text(json.dumps(task))
        processes = [_start(folder, rank, ranks) for rank in range(ranks)]
        try:
            _wait(processes, folder, limit, advance)
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return [_lines(folder / f"{rank}.jsonl") for rank in range(ranks)]


def _start(folder: Path, rank: int, ranks: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # also where the machine's own name cannot be resolved
    with open(folder / f"{rank}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", str(folder), str(rank), str(ranks)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip


def _wait(processes: list[subprocess.Popen[bytes]], folder: Path, limit: float, advance: Callable[[], object]) -> None:
    written, since = 0, time.monotonic()
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            raise RanksFailed("; ".join(f"rank {r} ended with status {codes[r]}{_last_line(folder, r)}" for r in failed))
        if None not in codes:
            return
        now = sum(path.stat().st_size for path in folder.glob("*.jsonl"))
        if now != written:
            written, since = now, time.monotonic()
            advance()
        elif time.monotonic() - since > limit:
            raise RanksFailed(f"no rank wrote anything for {limit:g} s")
        time.sleep(_POLL)


def _last_line(folder: Path, rank: int) -> str:
    lines = (folder / f"{rank}.log").read_text(errors="replace").strip().splitlines()
    return f" ({lines[-1][:300]})" if lines else ""


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
