"""Many seeds at once: trainings of one shape, forward and backward by batched products, as one resumable training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from dstee import CheckpointError, SparseModel, backends, method_hooks
from dstee._console import UsageError
from dstee.experiments import processes
from dstee.experiments.checkpoint import MAX_HEADER
from dstee.experiments.config import Config, setting
from dstee.experiments.data.batch_order import BatchOrder
from dstee.experiments.data.images import Images
from dstee.experiments.many_seeds.shared_step import SharedStep
from dstee.experiments.many_seeds.stacked_mlp import StackedMLP
from dstee.experiments.records import Record, Result
from dstee.experiments.tasks.classification import Classification
from dstee.experiments.trial import Trial

__all__ = ["ManySeeds", "train_seeds"]

_RECORD = 512
"""Bytes of a record in a checkpoint, as a rule less."""


def train_seeds(config: Config, method: str, seeds: Sequence[int], data: Any) -> list[Trial]:
    """Trains ``method`` with all ``seeds`` at once, to the end. Of each there are then ``result()``, ``history``, ``model`` and
    the masks, as of a :class:`Trial` that was trained alone.

    Initial weights, initial masks, growth at random, data order and schedule are those of single trainings to the bit, and so
    are sums that are exact in float32. Batched products round others in another order: the first mask updates are the same as
    a rule, later weights agree within what rounding leaves, and masks in all but a few places. The bits may depend on how many
    train together.

    Raises:
        UsageError: as :class:`ManySeeds`.
    """
    together = ManySeeds.of(config, method, seeds, data)
    while not together.is_done:
        together.step()
    return together.trials


class ManySeeds:
    """``trials``, none of them begun, as one training. They may differ in seed, method and the settings of methods.

    At a step in which no mask changes all of them step in one call. Where a mask update is due, or a method has a hook in each
    step, the trial concerned makes its own step, so that all methods work here as they do alone. A trial that diverges
    ends there, and the others go on.

    Raises:
        UsageError: there is none; a model is no MLP; STR, whose weights are computed from others; settings of model, data or
            training differ, or cannot be met; the records of all would not fit a checkpoint.
    """

    def __init__(self, trials: Sequence[Trial]):
        _check(trials)
        self.trials = list(trials)
        self.tasks = [cast(Classification, trial.task) for trial in self.trials]
        self.config, self.method = trials[0].config, trials[0].method
        self.total, self.step_number = trials[0].total, 0
        self.mlp = StackedMLP([trial.model for trial in self.trials])
        self._parameters = [dict(trial.model.named_parameters()) for trial in self.trials]
        self._grads = [stack.grads.unbind() for stack in self.mlp.parameters]
        momenta = [torch.zeros_like(stack.values) for stack in self.mlp.parameters] if self.config.momentum else []
        self._momenta, self._buffers = momenta, [stack.unbind() for stack in momenta]
        self._updates = [frozenset(trial.updates) for trial in self.trials]
        self._never_shares = [_steps_by_itself(trial) for trial in self.trials]
        self._started = [not momenta for _ in self.trials]
        self._shared: dict[frozenset[int], SharedStep] = {}
        self._house()

    @classmethod
    def of(cls, config: Config, method: str, seeds: Sequence[int], data: Any) -> ManySeeds:
        """Trainings that differ in their seeds, over data that are on the device once."""
        if not isinstance(data, Images):
            raise UsageError(f"many seeds at once classify images, which {config.data} does not hold: train one by one")
        if processes.count() > 1:
            raise UsageError(f"many seeds at once train in one process, got {processes.count()}: start it without torchrun")
        if len(set(seeds)) < len(seeds):
            raise UsageError(f"a seed is given twice: {', '.join(map(str, seeds))}")
        there = data.to(processes.place(config.device))
        return cls([Trial(config, method, seed, there) for seed in seeds])

    @property
    def name(self) -> str:
        return f"{self.method}-{self.title.replace(' ', '')}"

    @property
    def title(self) -> str:
        """Which seeds they are, of one method."""
        seeds = [trial.seed for trial in self.trials]
        return f"seeds {min(seeds)}-{max(seeds)}"

    @property
    def is_done(self) -> bool:
        return self.step_number == self.total or not self._alive()

    def _alive(self) -> frozenset[int]:
        return frozenset(s for s, trial in enumerate(self.trials) if trial.diverged_at is None)

    def step(self) -> tuple[float, list[Record]]:
        """One step of all; the mean loss of those that made it (NaN for none), and what it adds to their histories. A trial
        that diverges has not made it, as its ``diverged_at`` says from then on."""
        t = self.step_number + 1
        losses = self._losses(t)
        for s in self._alive():
            if self.trials[s].ends_at(losses[s]):
                self.tasks[s].order = self._order_at(s, self.step_number)
        alive = self._alive()
        alone = frozenset(s for s in alive if self._steps_alone(s, t))
        changed = {s: self._step_alone(self.trials[s]) for s in sorted(alone)}
        if alone:
            self._house()
        self._step_together(t, alive - alone)
        records: list[Record] = []
        for s in sorted(alive):
            records += self.trials[s].advance(losses[s], changed.get(s, False))
        self.step_number = t
        return sum(losses[s] for s in sorted(alive)) / len(alive) if alive else math.nan, records

    def _losses(self, t: int) -> list[float]:
        """Of all on their next batches, with the gradients; of those that have ended something without meaning."""
        any_batch = torch.zeros(self.config.batch_size, dtype=torch.int64)
        indices = []
        for trial, task in zip(self.trials, self.tasks, strict=True):
            if trial.diverged_at is None:
                trial.set_lr()
            indices.append(task.order.next() if trial.diverged_at is None else any_batch)
        if self.config.augment:
            parts = [task.fetch(some, task.noise(t)) for task, some in zip(self.tasks, indices, strict=True)]
            x, y = (torch.cat(some) for some in zip(*parts, strict=True))
        else:
            x, y = self.tasks[0].fetch(torch.cat(indices))
        shape = len(self.trials), self.config.batch_size
        return self.mlp.gradients(x.reshape(*shape, -1), y.view(shape), self.config.label_smoothing).tolist()

    def _steps_alone(self, s: int, t: int) -> bool:
        return self._never_shares[s] or not self._started[s] or t in self._updates[s]

    def _step_alone(self, trial: Trial) -> bool:
        try:
            return trial.optimize()
        except RuntimeError as error:
            raise RuntimeError(f"{trial.name}: {error}") from error

    def _step_together(self, t: int, members: frozenset[int]) -> None:
        if not members:
            return
        if (step := self._shared.get(members)) is None:
            step = SharedStep(self.trials, sorted(members), self.mlp.parameters, self._momenta)
            self._shared[members] = step
        with backends.kernel_time() as timer:
            step.apply()
        for s in members:
            trial = self.trials[s]
            trial.kernel_seconds += timer.seconds / len(members)
            if isinstance(trial.sparse, SparseModel):
                trial.sparse.set_progress(t, trial.sparse.round)

    def _house(self) -> None:
        """Gradients and momenta that are elsewhere, as after a first step or a restored state, come into the stacks."""
        for s, (trial, parameters) in enumerate(zip(self.trials, self._parameters, strict=True)):
            started = True
            for k, stack in enumerate(self.mlp.parameters):
                p = parameters[stack.name]
                if p.grad is not self._grads[k][s]:
                    p.grad = self._grads[k][s]
                state = trial.optimizer.state.get(p) or {}
                buffer = state.get("momentum_buffer")
                if buffer is None:
                    started = False
                elif buffer is not self._buffers[k][s]:
                    state["momentum_buffer"] = self._buffers[k][s].copy_(buffer)
            self._started[s] = started or not self._momenta

    def _order_at(self, s: int, step: int) -> BatchOrder:
        """The order of the data of one trial, after so many steps."""
        there = BatchOrder(self.tasks[s].order.size, self.config.batch_size, self.trials[s].seed)
        for _ in range(step):
            there.next()
        return there

    def add_seconds(self, seconds: float) -> None:
        """Wall time; each trial gets its share."""
        for trial in self.trials:
            trial.seconds += seconds / len(self.trials)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds: the states of all, and when those that have ended did."""
        ended = [trial.diverged_at for trial in self.trials]
        return {"step": self.step_number, "diverged": ended, "trials": [trial.saved() for trial in self.trials]}

    def restore(self, path: Path, tree: Mapping[str, object]) -> None:
        """Continues from ``tree``, which ``path`` held; nothing in it is believed before it is checked.

        Raises:
            CheckpointError: as :meth:`Trial.restore`; it is of other seeds or methods, or not of one step.
        """
        step, ended, states = (tree.get(key) for key in ("step", "diverged", "trials"))
        if tree.keys() != {"step", "diverged", "trials"} or not isinstance(states, list) or not isinstance(ended, list):
            raise CheckpointError(f"{path}: does not hold many seeds at one step")
        if not len(states) == len(ended) == len(self.trials):
            raise CheckpointError(f"{path}: holds {len(states)} trainings, expected {len(self.trials)}")
        ends = [at for at in ended if at is not None]
        if not all(type(at) is int for at in (step, *ends)) or not all(0 < at <= step for at in ends):
            raise CheckpointError(f"{path}: its steps are not those of a training")
        for trial, state, at in zip(self.trials, states, ended, strict=True):
            if not isinstance(state, dict) or state.get("step") != (step if at is None else at - 1):
                raise CheckpointError(f"{path}: {trial.name} is not at step {step}, as the others are")
            trial.restore(path, state)
            trial.diverged_at, trial.ending = at, "" if at is None else "it diverged"
        self.step_number = cast(int, step)
        self._shared.clear()
        self._house()

    def results(self) -> list[Result]:
        """Of each, in the order of ``trials``. Seconds are shares of what all took together."""
        return [trial.result() for trial in self.trials]


def _steps_by_itself(trial: Trial) -> bool:
    """Whether each of its steps is more than SGD on the active weights."""
    if not isinstance(trial.sparse, SparseModel):
        return False
    hooked = any(method_hooks.overrides(trial.sparse.method, hook) for hook in ("before_step", "after_step"))
    return hooked or trial.cost is not None


def _check(trials: Sequence[Trial]) -> None:
    if not trials:
        raise UsageError("no seeds are given to train together")
    first = trials[0]
    for trial in trials:
        if trial.step_number:
            raise UsageError(f"{trial.name} has begun already: trainings start together")
        if trial.sparse is not None and not isinstance(trial.sparse, SparseModel):
            raise UsageError(f"{trial.method} computes its weights from others, which many seeds at once cannot: leave it out")
        for name, value in (("optimizer", "sgd"), ("precision", "float32")):
            if (got := getattr(trial.config, name)) != value:
                raise UsageError(f"many seeds at once train with {name}={value}, got {got}: train one by one")
        if not isinstance(trial.task, Classification):
            raise UsageError(f"many seeds at once classify images, got the task {trial.task.key}: train one by one")
        for field in dataclasses.fields(Config):
            here, there = getattr(trial.config, field.name), getattr(first.config, field.name)
            if (setting(field).group in ("data", "model", "training") or field.name == "device") and here != there:
                raise UsageError(f"trainings that run together need one {field.name}, got {there!r} and {here!r}")
        if trial.data.digest != first.data.digest:
            raise UsageError("trainings that run together need the same data")
    records = sum(len(trial.recorded) + trial.config.epochs for trial in trials)
    if records * _RECORD > MAX_HEADER:
        raise UsageError(
            f"{len(trials)} trainings at once leave {records} records, a checkpoint holds {MAX_HEADER // _RECORD}: train fewer "
            "seeds in a run"
        )
