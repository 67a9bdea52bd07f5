"""Functions on several gloo ranks: real processes, without the seconds that importing torch costs each of them.

A server process imports everything once, never runs an op and forks the ranks of one call after the other: some 0.1 s for four.
It lives in a session of its own, so that Ctrl-C reaches pytest alone; when pytest goes, however it goes, the server kills its
ranks and ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

__all__ = ["Launcher", "Outcome", "RanksFailed"]

# What layouts, optimizers and checkpoints import late, in each rank anew unless the server has it.
IMPORTS = (
    "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.distributed.checkpoint.state_dict",
    "torch.distributed.optim", "fsspec", "numpy.random", "dstee",
)  # fmt: skip
TIMEOUT = 30.0
"""Seconds after which a collective that some rank does not join fails."""
LIMIT = 60.0
"""Seconds after which a rank that has not answered hangs."""


@dataclass(frozen=True)
class Outcome:
    """What became of one rank: its value, or an error (type, text); ("dead", signal) and ("hangs", where) for those without.
    ``log``: the traceback, and what the rank printed."""

    value: Any = None
    error: tuple[str, str] | None = None
    log: str = ""


class RanksFailed(AssertionError):
    """Names every rank that did not return, with its error, and with the log of the first that failed so."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        errors = [o.error for o in outcomes]
        bad = [
            f"rank {r}: {': '.join(o.error)}" + f"\n{o.log}" * (errors.index(o.error) == r)
            for r, o in enumerate(outcomes)
            if o.error
        ]
        super().__init__(f"{len(bad)} of {len(outcomes)} ranks failed\n" + "\n".join(bad))


@dataclass(frozen=True)
class _Job:
    """One call. ``call``: the function with its arguments, pickled; the server needs ``path`` first to find its module."""

    n: int
    call: bytes
    path: list[str]
    folder: str
    timeout: float
    limit: float


class Launcher:
    """Runs functions on ranks, one call at a time. ``folder``: for where the ranks meet and what they print."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._calls = 0
        self._server: subprocess.Popen | None = None
        self._pipe: Connection | None = None

    def run(
        self, n: int, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT, limit: float = LIMIT
    ) -> list[Any]:
        """``function(rank, *args)`` on ``n`` ranks of a new gloo group: the values by rank.

        Function, arguments and values are pickled. Warnings are errors.

        Raises:
            RanksFailed: a rank raised, died or did not answer within ``limit`` seconds.
        """
        outcomes = self.outcomes(n, function, *args, timeout=timeout, limit=limit)
        if any(o.error for o in outcomes):
            raise RanksFailed(outcomes)
        return [o.value for o in outcomes]

    def outcomes(
        self, n: int, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT, limit: float = LIMIT
    ) -> list[Outcome]:
        """As :meth:`run`, errors by rank instead of raised. No rank lives on."""
        self._calls += 1
        folder = self.folder / str(self._calls)
        folder.mkdir()
        job = _Job(n, pickle.dumps((function, args)), sys.path, str(folder), timeout, limit)
        answer = self._ask(pickle.dumps(job), limit + 30)
        if isinstance(answer, str):
            raise RuntimeError(f"the server could not start the ranks\n{answer}")
        return [self._read(folder / f"{rank}.log", *answer[rank]) for rank in range(n)]

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._server is not None:
            try:
                self._server.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._server.pid, signal.SIGKILL)
                self._server.wait()
        self._server = self._pipe = None

    def _ask(self, job: bytes, seconds: float) -> Any:
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send_bytes(job)
            if not self._pipe.poll(seconds):
                raise TimeoutError(f"the server of the ranks has not answered within {seconds:.0f} s")
            return pickle.loads(self._pipe.recv_bytes())
        except BaseException:  # an interrupt too: the next call starts with a new server
            self.close()
            raise

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        fd = theirs.fileno()
        path = os.pathsep.join(str(p) for p in (Path(__file__).parents[1], Path(__file__).parents[2]))
        settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-c", f"from support import processes; processes._serve({fd})"]
        self._server = subprocess.Popen(command, env=os.environ | settings, pass_fds=[fd], start_new_session=True)
        theirs.close()

    @staticmethod
    def _read(log: Path, kind: str, value: Any) -> Outcome:
        text = log.read_text(errors="replace") if log.exists() else ""
        if kind == "value":
            return Outcome(pickle.loads(value), None, text)
        return Outcome(None, (kind, value), text)


# --- in the server ---------------------------------------------------------------------------------------------------------


def _serve(fd: int) -> NoReturn:
    _die_with_parent()
    for name in IMPORTS:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    tests = Connection(fd)
    while True:
        try:
            job: _Job = pickle.loads(tests.recv_bytes())
        except EOFError:
            os._exit(0)
        try:
            answer: Any = _run(job, tests)
        except EOFError:
            os._exit(0)
        except Exception:
            answer = traceback.format_exc()
        tests.send_bytes(pickle.dumps(answer))


def _run(job: _Job, tests: Connection) -> list[tuple[str, Any]]:
    """(kind, value) by rank. Raises EOFError when the tests are gone; the ranks are then too."""
    sys.path[:] = job.path
    function, args = pickle.loads(job.call)
    pids: list[int] = []
    waiting: dict[Any, int] = {}
    found: dict[int, tuple[str, Any]] = {}
    try:
        for rank in range(job.n):
            ours, theirs = Pipe(duplex=False)
            pids.append(os.fork())
            if not pids[-1]:
                _rank(rank, job, theirs, function, args)
            theirs.close()
            waiting[ours] = rank
        end = time.monotonic() + job.limit
        while waiting and (left := end - time.monotonic()) > 0:
            for ready in wait([*waiting, tests], left):
                if ready is tests:
                    raise EOFError
                rank = waiting.pop(ready)
                found[rank] = _answer(ready, pids[rank])
        for rank in waiting.values():
            os.kill(pids[rank], signal.SIGUSR1)  # faulthandler writes to the log where it is
        if waiting:
            time.sleep(0.3)
            found |= {rank: ("hangs", f"no answer within {job.limit:g} s") for rank in waiting.values()}
        return [found[rank] for rank in range(job.n)]
    finally:
        for pid in pids:
            with contextlib.suppress(ChildProcessError, ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _answer(pipe: Connection, pid: int) -> tuple[str, Any]:
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return "dead", signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _die_with_parent() -> None:
    """Linux kills this process when the one that started it is gone; elsewhere the closed pipe must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


# --- in a rank -------------------------------------------------------------------------------------------------------------


def _rank(rank: int, job: _Job, pipe: Connection, function: Callable[..., Any], args: tuple) -> NoReturn:
    try:
        _die_with_parent()
        log = os.open(f"{job.folder}/{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        faulthandler.register(signal.SIGUSR1, sys.stderr, all_threads=False)
        torch.set_num_threads(1)
        warnings.simplefilter("error")
        try:
            limit = timedelta(seconds=job.timeout)
            dist.init_process_group("gloo", f"file://{job.folder}/meet", rank=rank, world_size=job.n, timeout=limit)
            answer = "value", pickle.dumps(function(rank, *args))
        except BaseException as error:
            traceback.print_exc()
            answer = type(error).__name__, str(error)
        sys.stdout.flush()
        pipe.send_bytes(pickle.dumps(answer))
    finally:
        os._exit(0)  # without the group's farewell, for which others may be missing
