"""A run: its trainings one after the other, with checkpoints, resumption, signals and failing disks."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast

import torch

from dstee._console import Interrupted, UsageError
from dstee.experiments import ignored, processes
from dstee.experiments.checkpoint import CheckpointFolder
from dstee.experiments.config import Config
from dstee.experiments.kept_masks import save_masks
from dstee.experiments.records import MetricsLog, Record, Result
from dstee.experiments.run_folder import WriteRetries, refuse_link
from dstee.experiments.trial import Diverged, Trial
from dstee.experiments.trial_state import SavedState

__all__ = ["Reporter", "run_trials"]


class Reporter(Protocol):
    """Where a run tells what it does."""

    def warn(self, text: str) -> None: ...
    def start(self, trial: Trial) -> None: ...
    def advance(self, trial: Trial, loss: float) -> None: ...
    def finish(self, trial: Trial) -> None: ...


class _Signals:
    """Remembers the first SIGTERM or SIGINT; the second one acts as if this were not here."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> _Signals:
        for signum in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[signum] = signal.signal(signum, self._catch)
            except ValueError:  # not the main thread: signals are somebody else's
                break
        return self

    def _catch(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self.__exit__()

    def __exit__(self, *exception: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _deterministic(device: str) -> Iterator[None]:
    """On a GPU: the same bits each time, where torch has such kernels; it warns of those that it has not."""
    if device != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


def run_trials(
    config: Config, data: Any, folder: Path, reporter: Reporter, *, after_step: Callable[[int], None] | None = None
) -> list[Result]:
    """All trainings of ``config`` in ``folder``, each continued from its newest whole checkpoint, if it has one; ``data`` as
    their task prepared them. One whose loss is not finite any more ends there, and says so.

    ``after_step`` is called with the number of steps this process has done.

    Raises:
        UsageError, CheckpointError: before the training concerned begins. Interrupted: after a signal, with the state saved.
        WriteError: checkpoints or metrics could not be written several times in a row.
    """
    results = []
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if after_step is not None:
            after_step(done)

    with _threads(config.threads), _deterministic(config.device), _Signals() as signals:
        for method, seed in config.trials():
            trial = Trial(config, method, seed, data)
            _train_one(trial, folder / trial.name, reporter, signals, count)
            results.append(trial.result())
    return results


def _train_one(trial: Trial, folder: Path, reporter: Reporter, signals: _Signals, count: Callable[[], None]) -> None:
    config, first = trial.config, processes.rank() == 0
    refuse_link(folder)
    checkpoints = CheckpointFolder(folder, config.keep_checkpoints, reporter.warn)
    if (found := checkpoints.newest()) is not None:
        trial.restore(found[0], cast(SavedState, found[1]))
    _check_alike(trial, folder)
    log = MetricsLog(folder / "metrics.jsonl", trial.history) if first else None
    saving, logging = WriteRetries("a checkpoint", reporter.warn), WriteRetries("the metrics", reporter.warn)
    if first:
        saving.until_done(lambda: folder.mkdir(exist_ok=True))
    if log is not None:
        logging.attempt(log.flush)
    saved = trial.step_number if found else None

    def save() -> None:
        if first:
            checkpoints.save(trial.step_number, trial.saved())

    def observe(records: Sequence[Record]) -> None:
        """What the settings ask for beside metrics; the training does not go on without it, a resumed one would lack it."""
        updated = trial.step_number == 0 or any(record["kind"] == "update" for record in records)
        if (sparse := trial.masked) is not None and config.keep_masks and updated and first:
            saving.until_done(partial(save_masks, folder, sparse))
        if trial.step_number in config.ignored_at:  # all processes measure, one writes
            measured = ignored.measure(trial, reporter.warn)
            if measured is not None and first:
                saving.until_done(partial(ignored.save, folder, measured))

    reporter.start(trial)
    if trial.step_number == 0:
        observe([])
    device = trial.task.device
    while trial.step_number < trial.total and not processes.any_of(signals.signum is not None, device):
        begin = time.perf_counter()
        try:
            loss, records = trial.step()
        except Diverged:
            reporter.warn(f"{trial.name}: the loss is not finite at step {trial.diverged_at}, the training ends here")
            break
        trial.seconds += time.perf_counter() - begin
        if records and log is not None:
            logging.attempt(partial(log.flush, *records))
        observe(records)
        reporter.advance(trial, loss)
        if trial.step_number % config.checkpoint_every == 0 and trial.step_number < trial.total and saving.attempt(save):
            saved = trial.step_number
        count()
    if saved != trial.step_number and trial.diverged_at is None:
        saving.until_done(save)
    if log is not None:
        logging.until_done(log.flush)
    reporter.finish(trial)
    if processes.any_of(signals.signum is not None, device):
        raise Interrupted(signals.signum or signal.SIGTERM)


def _check_alike(trial: Trial, folder: Path) -> None:
    """All processes go on from the same step.

    Raises:
        UsageError: they do not see the same checkpoints.
    """
    steps = torch.tensor(trial.step_number, device=trial.task.device)
    if int(processes.total(steps)) != trial.step_number * processes.count():
        raise UsageError(f"the processes see different checkpoints in {folder}: it must be one folder for all of them")
