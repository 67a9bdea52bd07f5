"""What a sweep will cost: a few steps of each distinct network, here and now, times their number."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dstee.experiments.config import DENSE, Config
from dstee.experiments.sweep.grid import GridRun
from dstee.experiments.sweep.progress import duration
from dstee.experiments.training import make_training
from dstee.experiments.trial import task_of

__all__ = ["cost_lines", "seconds_of_an_epoch"]

_LARGE = 1_000_000
"""Weights from which a step on a CPU is timed with few samples: a whole one takes minutes."""
_FEW = 8
_STEPS = 5
_ENOUGH = 2.0  # seconds


def cost_lines(runs: Sequence[GridRun], loaded: Mapping[str, Any], jobs: int) -> list[str]:
    """A line for each kind of training, and one for all; ``loaded`` are data sets by name, as their sources read them."""
    kinds: dict[tuple[object, ...], list[GridRun]] = {}
    for run in runs:
        config = run.config
        key = (config.data, config.model, config.hidden, config.batch_size, config.device, config.batch_seeds)
        kinds.setdefault(key, []).append(run)
    lines, total = [], 0.0
    for same in kinds.values():
        config = same[0].config
        dataset = task_of(config).prepare(loaded[config.data], config)
        epoch = seconds_of_an_epoch(config, dataset)
        seconds = sum(epoch * run.config.epochs * len(run.config.trainings()) for run in same)
        total += seconds * (1 if config.device == "cuda" else config.threads)
        where = "a GPU" if config.device == "cuda" else f"{config.threads} core{'s' * (config.threads > 1)}"
        together = f", {config.seeds} seeds at once" if config.batch_seeds else ""
        what = f"{len(same)} runs of {config.model} on {config.data}{together}"
        lines.append(f"cost     {what}: about {duration(seconds / len(same))} each on {where}")
    gpu = runs[0].config.device == "cuda"
    threads = 1 if gpu else max(run.config.threads for run in runs)
    at_once = f"{_hours(total / jobs / threads)} with {jobs} at once" + ("" if gpu else " on cores of their own")
    lines.append(f"cost     about {_hours(total)} of one {'GPU' if gpu else 'core'} in all, {at_once}")
    lines.append("cost     timed just now on a few steps of dense networks; updates of masks come on top")
    return lines


def _hours(seconds: float) -> str:
    return duration(seconds) if seconds < 36_000 else f"{seconds / 3600:,.0f} hours"


def seconds_of_an_epoch(config: Config, dataset: Any) -> float:
    """Of all that ``config`` trains at once, as dense networks, with its evaluation at the end."""
    config = dataclasses.replace(config, method=DENSE, method_settings=(), compare=False, ignored_at=())
    seeds = config.trainings()[0][1]
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        training = make_training(config, DENSE, seeds, dataset)
        whole = config.device == "cuda" or training.trials[0].maskable <= _LARGE
        if not whole:
            few = dataclasses.replace(config, batch_size=min(_FEW, config.batch_size))
            training = make_training(few, DENSE, seeds, dataset)
        training.step()  # the first one allocates
        steps: list[float] = []
        while len(steps) < min(_STEPS, training.total - 1) and sum(steps) < _ENOUGH:
            steps.append(_seconds(config, training.step))
        epoch = min(steps) * training.trials[0].task.steps_per_epoch
        if whole:
            return epoch + len(seeds) * _seconds(config, training.trials[0].task.scores)
        judged = dataset.size("test") + dataset.size("validation")
        return epoch * (1 + judged / dataset.size("train") / 3)  # forward alone
    finally:
        torch.set_num_threads(before)


def _seconds(config: Config, call: Callable[[], object]) -> float:
    """On a CPU those of a core that does nothing else, over the cores; others may be at work here just now."""
    clock = time.perf_counter if config.device == "cuda" else time.process_time
    begin = clock()
    call()
    return (clock() - begin) / (1 if config.device == "cuda" else config.threads)
