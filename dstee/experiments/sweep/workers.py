"""Processes that make the runs of a sweep: started, given work, listened to, and replaced when they die."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

__all__ = ["Worker", "Workers"]

_TAIL = 2000


class Worker:
    """One process of :mod:`dstee.experiments.sweep.worker`, in a session of its own: Ctrl-C in a terminal does not reach it,
    so that it is asked to stop once and not twice.

    Attributes:
        job: the name of what it works at, None where it waits. ready: it has started up.
    """

    COMMAND = (sys.executable, "-m", "dstee.experiments.sweep.worker")

    def __init__(self, environment: Mapping[str, str]):
        self.job: str | None = None
        self.ready = False
        self._rest = b""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        self.process = subprocess.Popen(
            self.COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, start_new_session=True, env={**os.environ, **environment},
        )  # fmt: skip

    def give(self, name: str, job: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        self.job = name
        with contextlib.suppress(BrokenPipeError):  # it has died, as the end of its output will say
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()

    def read(self) -> list[dict[str, Any]] | None:
        """What it has said since; None at its end."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def stop(self) -> None:
        """Asks it to save its state and end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> str:
        """Waits for its end; how it died, in words."""
        status = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _TAIL))
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        self._errors.close()
        if status < 0:
            name = signal.Signals(-status).name
            how = f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        else:
            how = f"its process ended with status {status}"
        return ": ".join([how, *last])


class Workers:
    """Up to ``count`` of them, started as there is work; those of a GPU each see that one only.

    Args:
        gpus: values of CUDA_VISIBLE_DEVICES, dealt out in turn; empty: as it is.
    """

    def __init__(self, count: int, gpus: list[str]):
        self.count, self.gpus = count, gpus
        self.running: list[Worker | None] = [None] * count
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        """No process is left: those that still run are killed."""
        for worker in filter(None, self.running):
            worker.process.kill()
            worker.end()
        self._selector.close()

    def waiting(self) -> Iterator[Worker]:
        """Those without work, started where there are less than ``count``."""
        for place, held in enumerate(self.running):
            if held is None:
                held = self.running[place] = Worker(
                    {"CUDA_VISIBLE_DEVICES": self.gpus[place % len(self.gpus)]} if self.gpus else {}
                )
                self._selector.register(held.process.stdout, selectors.EVENT_READ, held)  # type: ignore[arg-type]  # a pipe
            if held.job is None:
                yield held

    @property
    def alive(self) -> bool:
        return any(self.running)

    def events(self, timeout: float) -> Iterator[tuple[Worker, dict[str, Any]]]:
        """What they say, after at most ``timeout`` seconds; {"event": "died", "reason"} of one that has ended."""
        for key, _ in self._selector.select(timeout):
            worker: Worker = key.data
            said = worker.read()
            if said is not None:
                yield from ((worker, event) for event in said)
                continue
            self._selector.unregister(key.fileobj)
            self.running[self.running.index(worker)] = None
            yield worker, {"event": "died", "reason": worker.end()}

    def stop(self) -> None:
        """Asks all to save their state and end."""
        for worker in filter(None, self.running):
            worker.stop()
