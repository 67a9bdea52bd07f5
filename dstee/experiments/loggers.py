"""What a training records, sent to TensorBoard and to Weights & Biases as well; its JSON lines stay what they are.

A logger that fails is said once and left alone: it never ends a training. A resumed training logs no point twice.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dstee._console import UsageError, needs
from dstee._files import dump_json, parse_json, read_file, write_atomic
from dstee.experiments.records import Record
from dstee.experiments.training import Training
from dstee.experiments.trial import Trial

__all__ = ["LOGGERS", "Loggers", "check_installed", "scalars"]

WANDB_STATE = "wandb.json"
"""Beside the metrics: under which id W&B knows the training, and the last step that it was told of."""
_MAX_STATE = 1 << 16


class Logger(Protocol):
    """Of one training; each method may raise whatever the package behind it does."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def scalars(records: Sequence[Record]) -> dict[str, float]:
    """The numbers of the records of one step, by the names that loggers show: ``train/loss``, ``test/accuracy`` and other
    scores, ``masks/exploration`` (R), ``masks/exploration_limit`` (R_max), ``masks/churn``, ``masks/dead_units``."""
    found: dict[str, float | None] = {}
    for record in records:
        found["masks/exploration"] = record["exploration"]
        if record["kind"] == "epoch":
            found |= {"train/loss": record["loss"], "test/accuracy": record["accuracy"], "epoch": float(record["epoch"])}
            found |= {f"test/{name}": value for name, value in record.get("scores", {}).items()}
        else:
            found["masks/churn"] = record["churn"]
            found["masks/exploration_limit"] = record.get("exploration_limit")
            found["masks/dead_units"] = record.get("dead_units")
    return {name: value for name, value in found.items() if value is not None}


class TensorBoard:
    """Event files in the training's folder, which ``tensorboard --logdir`` shows under its name."""

    def __init__(self, trial: Trial, folder: Path, several: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier process wrote beyond the checkpoint is not shown.
        self._writer = SummaryWriter(str(folder), purge_step=trial.step_number + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of the project "dstee" (or WANDB_PROJECT's), in the group of the run's folder; offline where there is no key."""

    def __init__(self, trial: Trial, folder: Path, several: bool) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._file = folder / WANDB_STATE
        self._id, self._last = self._held() or (secrets.token_hex(8), 0)
        options: dict[str, Any] = {"reinit": "create_new"} if several else {}
        if not os.environ.get("WANDB_MODE") and not _has_key(wandb):
            options["mode"] = "offline"
        self._write()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "dstee"), group=folder.parent.name, name=trial.name, id=self._id,
            resume="allow", dir=str(folder), config={"method": trial.method, **trial.config.to_dict(), "seed": trial.seed},
            **options,
        )  # fmt: skip

    def _held(self) -> tuple[str, int] | None:
        """What an earlier process left; None where there was none, or it is not what it should be."""
        try:
            held = parse_json(read_file(self._file, _MAX_STATE))
            name, step = held["id"], held["step"]
        except (OSError, ValueError, TypeError, LookupError):
            return None
        return (name, step) if isinstance(name, str) and name.isalnum() and type(step) is int and step >= 0 else None

    def _write(self) -> None:
        write_atomic(self._file, [dump_json({"id": self._id, "step": self._last})])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step <= self._last:  # told by an earlier process, which went on beyond the checkpoint
            return
        self._run.log(dict(values), step=step)
        self._last = step
        self._write()

    def close(self) -> None:
        self._run.finish()


def _has_key(wandb: Any) -> bool:
    try:
        return bool(wandb.api.api_key)
    except AttributeError:
        return bool(os.environ.get("WANDB_API_KEY"))


LOGGERS: dict[str, tuple[str, Callable[[Trial, Path, bool], Logger]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", Wandb),
}
"""By the name that ``--log`` takes: the package that must be installed, and how a logger of a training is made."""


def check_installed(names: Sequence[str]) -> None:
    """Raises UsageError where the package behind one of ``names`` is missing."""
    for name in names:
        package = LOGGERS[name][0]
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(needs(f"--log {name}", package, name)) from error


class Loggers:
    """All loggers of a run, for one training after the other."""

    def __init__(self, names: Sequence[str], warn: Callable[[str], None]) -> None:
        self._names, self._warn = list(names), warn
        self._open: dict[tuple[str, str, int], Logger] = {}

    def start(self, training: Training, folder: Path) -> None:
        """``folder``: the run's, in which those of the training's trials are."""
        several = len(training.trials) > 1
        for name in list(self._names):
            for trial in training.trials:
                if name in self._names:
                    make = LOGGERS[name][1]
                    found = self._guard(name, partial(make, trial, folder / trial.name, several))
                    if found is not None:
                        self._open[name, trial.method, trial.seed] = found

    def log(self, records: Sequence[Record]) -> None:
        """Records of one step, of some of the training's trials."""
        for (name, method, seed), logger in list(self._open.items()):
            own = [record for record in records if (record["method"], record["seed"]) == (method, seed)]
            if own and name in self._names:
                self._guard(name, partial(logger.log, own[-1]["step"], scalars(own)))

    def finish(self) -> None:
        while self._open:
            (name, *_), logger = self._open.popitem()
            self._guard(name, logger.close, name in self._names)

    def _guard(self, name: str, call: Callable[[], Any], warn: bool = True) -> Any:
        try:
            return call()
        except Exception as error:
            if warn:
                self._warn(f"logging to {name} failed and ends here, the training goes on: {type(error).__name__}: {error}")
            self._names = [other for other in self._names if other != name]
            return None
