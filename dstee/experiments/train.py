"""A run: its trainings one after the other, with checkpoints, resumption, signals and failing disks."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from dstee._console import Interrupted, UsageError
from dstee.experiments import ignored, processes
from dstee.experiments.checkpoint import CheckpointFolder
from dstee.experiments.config import Config
from dstee.experiments.kept_masks import save_masks
from dstee.experiments.loggers import Loggers
from dstee.experiments.records import MetricsLog, MetricsLogs, Record, Result
from dstee.experiments.run_folder import WriteRetries, refuse_link
from dstee.experiments.training import Training, make_training
from dstee.experiments.trial import Diverged, Trial

__all__ = ["Reporter", "run_trials"]


class Reporter(Protocol):
    """Where a run tells what it does."""

    def warn(self, text: str) -> None: ...
    def start(self, training: Training) -> None: ...
    def advance(self, training: Training, loss: float) -> None: ...
    def finish(self, training: Training) -> None: ...


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
    their task prepared them. One that diverges ends there, and says so.

    ``after_step`` is called with the number of steps this process has done.

    Raises:
        UsageError, CheckpointError: before the training concerned begins. Interrupted: after a signal, with the state saved.
        WriteError: checkpoints or metrics could not be written several times in a row.
    """
    results = []
    done = 0

    def count(steps: int) -> None:
        nonlocal done
        done += steps
        if after_step is not None:
            after_step(done)

    with _threads(config.threads), _deterministic(config.device), _Signals() as signals:
        loggers = Loggers(config.log.split(",") if config.log and processes.rank() == 0 else [], reporter.warn)
        for method, seeds in config.trainings():
            training = make_training(config, method, seeds, data)
            try:
                _train(training, folder, reporter, loggers, signals, count)
            finally:
                loggers.finish()
            results += [trial.result() for trial in training.trials]
    return sorted(results, key=lambda result: config.trials().index((result.method, result.seed)))


def _train(
    training: Training, run: Path, reporter: Reporter, loggers: Loggers, signals: _Signals, count: Callable[[int], None]
) -> None:
    trials, folder, first = training.trials, run / training.name, processes.rank() == 0
    config, device = trials[0].config, trials[0].task.device
    folders = {trial.name: run / trial.name for trial in trials}
    places = dict.fromkeys((folder, *folders.values()))
    for place in places:
        refuse_link(place)
    checkpoints = CheckpointFolder(folder, config.keep_checkpoints, reporter.warn)
    if (found := checkpoints.newest()) is not None:
        training.restore(*found)
    _check_alike(training, folder)
    logs = {(t.method, t.seed): MetricsLog(folders[t.name] / "metrics.jsonl", t.history) for t in trials}
    log = MetricsLogs(logs if first else {})
    saving, logging = WriteRetries("a checkpoint", reporter.warn), WriteRetries("the metrics", reporter.warn)
    if first:
        for place in places:
            saving.until_done(partial(place.mkdir, exist_ok=True))
    logging.attempt(log.flush)
    saved = training.step_number if found else None

    def save() -> None:
        if first:
            checkpoints.save(training.step_number, training.saved())

    def observe(records: Sequence[Record]) -> None:
        """What the settings ask for beside metrics; the training does not go on without it, a resumed one would lack it."""
        updated = {(record["method"], record["seed"]) for record in records if record["kind"] == "update"}
        for trial in trials:
            if trial.step_number < training.step_number:  # it has ended
                continue
            new = trial.step_number == 0 or (trial.method, trial.seed) in updated
            if (sparse := trial.masked) is not None and config.keep_masks and new and first:
                saving.until_done(partial(save_masks, folders[trial.name], sparse))
            if trial.step_number in config.ignored_at:  # all processes measure, one writes
                measured = ignored.measure(trial, reporter.warn)
                if measured is not None and first:
                    saving.until_done(partial(ignored.save, folders[trial.name], measured))

    if not training.is_done:
        loggers.start(training, run)
    reporter.start(training)
    if training.step_number == 0:
        observe([])
    told = _tell_of_divergence(trials, set(), reporter)
    whole = True
    while not training.is_done and not processes.any_of(signals.signum is not None, device):
        begin = time.perf_counter()
        try:
            loss, records = training.step()
        except Diverged:
            whole = False
            break
        training.add_seconds(time.perf_counter() - begin)
        told = _tell_of_divergence(trials, told, reporter)
        if records:
            logging.attempt(partial(log.flush, *records))
            loggers.log(records)
        observe(records)
        reporter.advance(training, loss)
        due = training.step_number % config.checkpoint_every == 0
        if due and not training.is_done and saving.attempt(save):
            saved = training.step_number
        count(len(trials))
    _tell_of_divergence(trials, told, reporter)
    if saved != training.step_number and whole:
        saving.until_done(save)
    logging.until_done(log.flush)
    if first:
        _save_each(training, folders, saving, reporter)
    reporter.finish(training)
    if processes.any_of(signals.signum is not None, device):
        raise Interrupted(signals.signum or signal.SIGTERM)


def _tell_of_divergence(trials: Sequence[Trial], told: set[str], reporter: Reporter) -> set[str]:
    """Returns the names of those whose divergence is told by now."""
    for trial in trials:
        if trial.diverged_at is not None and trial.name not in told:
            reporter.warn(f"{trial.name}: {trial.ending} at step {trial.diverged_at}, the training ends here")
            told = told | {trial.name}
    return told


def _save_each(training: Training, folders: Mapping[str, Path], saving: WriteRetries, reporter: Reporter) -> None:
    """The last states of trainings that were saved together, once more as those of trainings alone."""
    for trial in training.trials:
        own = CheckpointFolder(folders[trial.name], trial.config.keep_checkpoints, reporter.warn)
        if trial is not training and trial.step_number == trial.total and trial.total not in own.steps():
            saving.until_done(partial(own.save, trial.total, trial.saved()))


def _check_alike(training: Training, folder: Path) -> None:
    """All processes go on from the same step.

    Raises:
        UsageError: they do not see the same checkpoints.
    """
    steps = torch.tensor(training.step_number, device=training.trials[0].task.device)
    if int(processes.total(steps)) != training.step_number * processes.count():
        raise UsageError(f"the processes see different checkpoints in {folder}: it must be one folder for all of them")
