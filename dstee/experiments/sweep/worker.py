"""A process of a sweep: it makes one run after the other, and keeps torch and the data from one to the next.

``python -m dstee.experiments.sweep.worker`` reads jobs as JSON lines from its standard input and tells what it does as JSON
lines on its standard output. When its input ends, whoever gave it work is gone: it stops as after SIGTERM, with its state
saved.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from dstee._console import Interrupted, one_line
from dstee._files import CheckpointError, WriteError, write_atomic
from dstee.experiments import data, processes
from dstee.experiments.commands import make_manifest
from dstee.experiments.config import Config
from dstee.experiments.final_state import drop_checkpoints, keep_final
from dstee.experiments.records import Result, write_results
from dstee.experiments.run_folder import RunFolder, WriteRetries
from dstee.experiments.train import run_trials
from dstee.experiments.training import Training
from dstee.experiments.trial import task_of

__all__ = ["make_run"]

_INTERVAL = 0.5
"""Seconds between two reports of a training's place."""
_EXPECTED = (ValueError, CheckpointError, WriteError, OSError)
"""Errors whose text says enough (UsageError is a ValueError)."""


class _Events:
    """A :class:`~dstee.experiments.train.Reporter` that tells the process which gave the work."""

    def __init__(self, fd: int):
        self._file = os.fdopen(fd, "w", encoding="utf-8")
        self._next = 0.0

    def send(self, event: str, **values: Any) -> None:
        try:
            self._file.write(json.dumps({"event": event, **values}) + "\n")
            self._file.flush()
        except BrokenPipeError:  # nobody listens; the end of the input says so, too
            pass

    def warn(self, text: str) -> None:
        self.send("warning", text=one_line(text))

    def start(self, training: Training) -> None:
        self.send("step", step=training.step_number, total=training.total)

    def advance(self, training: Training, loss: float) -> None:
        if (now := time.monotonic()) >= self._next:
            self._next = now + _INTERVAL
            accuracy = training.trials[0].accuracy()
            self.send("step", step=training.step_number, total=training.total, accuracy=accuracy)

    def finish(self, training: Training) -> None:
        pass


@functools.lru_cache(maxsize=2)
def _load(name: str, data_dir: str | None) -> Any:
    return data.load(name, data_dir)


def make_run(config: Config, folder: Path, data_dir: str | None, reporter: Any, keep_final_states: bool) -> list[Result]:
    """The run ``config`` in ``folder``, continued where it was; as ``dstee train`` makes it, but for the picture.

    Raises:
        UsageError, CheckpointError, WriteError, Interrupted: as :func:`~dstee.experiments.train.run_trials`.
    """
    dataset = task_of(config).prepare(_load(config.data, data_dir), config)
    held = RunFolder(folder, make_manifest(config, dataset.digest), "resume")
    try:
        with processes.joined(config.device):
            results = run_trials(config, dataset, folder, reporter)
        retries = WriteRetries("the results", reporter.warn)
        retries.until_done(lambda: write_results(folder, results))
        if keep_final_states:
            retries.until_done(lambda: keep_final(folder, config, reporter.warn))
        else:
            retries.until_done(lambda: drop_checkpoints(folder, config))
    finally:
        held.close()
    return results


def _do(job: dict[str, Any], events: _Events) -> bool:
    """Whether there is more to do afterwards."""
    folder = Path(job["folder"])
    trace = folder.with_name(folder.name + ".error.txt")
    begin = time.monotonic()
    try:
        results = make_run(Config.resolve(job["config"]), folder, job["data_dir"], events, job["keep_final_states"])
    except Interrupted:
        events.send("stopped")
        return False
    except Exception as error:
        reason = str(error) if isinstance(error, _EXPECTED) and str(error) else f"{type(error).__name__}: {error}"
        if not isinstance(error, _EXPECTED):
            with suppress(OSError):
                write_atomic(trace, [traceback.format_exc().encode(errors="replace")])
                reason += f" (see {trace})"
        events.send("failed", reason=one_line(reason))
    else:
        trace.unlink(missing_ok=True)
        accuracies = [result.accuracy for result in results]
        events.send("done", seconds=time.monotonic() - begin, accuracies=accuracies)
    gc.collect()
    return True


def main() -> None:
    faulthandler.enable()
    events = _Events(os.dup(1))
    os.dup2(2, 1)  # what a user's own functions print is no event
    jobs: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(json.loads(line))
        jobs.put(None)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=read, daemon=True).start()
    events.send("ready")
    while (job := jobs.get()) is not None and _do(job, events):
        pass


if __name__ == "__main__":
    main()
