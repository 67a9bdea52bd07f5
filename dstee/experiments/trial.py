"""One training: a task's network under one method and seed, resumable to the bit from any step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.parallel import DistributedDataParallel

import dstee
from dstee import CheckpointError, backends, metrics
from dstee._console import UsageError
from dstee.encoding import MAX_ROUNDS
from dstee.experiments import checkpoint, processes
from dstee.experiments.config import STR, Config
from dstee.experiments.data import find_source
from dstee.experiments.method_settings import soft_settings
from dstee.experiments.records import EpochRecord, Record, Result, UpdateRecord
from dstee.experiments.tasks import Task, find_task
from dstee.experiments.trial_state import Course, SavedState, TrialState, misfits
from dstee.methods import Method
from dstee.schedule import UpdateSchedule, known_drops
from dstee.selection import select
from dstee.training_cost import TrainingCost

__all__ = ["Diverged", "Trial", "task_of"]


_MOST_STEPS = 10**7
"""Lists of all updates are kept, up to one a step; more would fill the memory before the first."""


class Diverged(Exception):
    """The loss is not finite any more, or a mask update is due and all gradients are 0: there is nothing left to train."""


def task_of(config: Config) -> type[Task]:
    """The task of the data set.

    Raises:
        UsageError: there is no such data set, or it names an unknown task.
    """
    return find_task(find_source(config.data).task)


def _schedule(config: Config, total: int) -> UpdateSchedule:
    stop = max(1, round(config.stop_fraction * total))
    kind = known_drops()[config.drop_schedule]
    given = {"initial": config.drop_fraction, "fraction": config.drop_fraction, "floor": config.drop_floor}
    names = {field.name for field in dataclasses.fields(kind)}
    return UpdateSchedule(config.every, stop, kind(**{name: value for name, value in given.items() if name in names}))


def _maskable(task: Task) -> int:
    """Weights that a sparse method would give masks."""
    rules = task.sparse_arguments()
    return sum(c.param.numel() for c in select(task.model, rules.get("include"), rules.get("exclude")).chosen)


class Trial:
    """One training: model, optimizer, place in the data and history, at a step; ``data`` as its task prepared them.

    Raises:
        UsageError: the configuration cannot be met (a batch larger than the data, a budget that no distribution meets).
    """

    def __init__(self, config: Config, method: str, seed: int, data: Any):
        torch.manual_seed(seed)
        self.config, self.method, self.seed, self.data = config, method, seed, data
        self.task = task_of(config)(config, seed, data, processes.place(config.device))
        self.model = self.task.model
        if processes.count() > 1:
            self._parallelise()
        self.maskable = _maskable(self.task)
        self.total = config.epochs * self.task.steps_per_epoch
        if self.total > _MOST_STEPS:
            raise UsageError(f"{config.epochs} epochs of {self.task.steps_per_epoch} steps are more than {_MOST_STEPS:,} steps")
        self.step_number, self.loss_sum = 0, 0.0
        self.diverged_at: int | None = None
        self.ending = ""  # why it ended there
        self.history: list[Record] = []
        self.seconds = self.kernel_seconds = 0.0
        self.sparse: dstee.SparseModel | dstee.SoftThreshold | None = None
        self.optimizer: torch.optim.Optimizer
        self.updates: Sequence[int] = ()
        self.recorded: frozenset[int] = frozenset()
        self.counted = True  # whether it is known which weights were ever active
        schedule = _schedule(config, self.total)
        groups: list[dict[str, Any]] = [{"params": list(self.model.named_parameters())}]
        try:
            if method == STR:
                groups = self._put_thresholds(schedule)
            elif (made := config.make(method)) is not None:
                self.sparse = self._sparsified(made, schedule)
        except ValueError as error:
            raise UsageError(f"{method}: {error}" if config.compare else str(error)) from error
        self._parameters = {name: p for group in groups for name, p in group["params"]}
        self.optimizer = self._make_optimizer(groups)
        self.cost = self._fresh_cost()

    def _parallelise(self) -> None:
        """The order is: build, parallelise, make sparse."""
        if self.config.batch_size % processes.count():
            raise UsageError(
                f"batch_size must be a multiple of the {processes.count()} processes, got {self.config.batch_size}: it is that "
                "of all of them together"
            )
        if self.method == STR:
            raise UsageError("STR trains thresholds that processes do not average: train it in one process")
        self.task.network = DistributedDataParallel(self.model)

    def _make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        config = self.config
        if config.optimizer == "adam":
            return torch.optim.Adam(groups, lr=config.lr, weight_decay=config.weight_decay)
        sgd: dict[str, Any] = {name: getattr(config, name) for name in ("lr", "momentum", "weight_decay", "nesterov")}
        if isinstance(self.sparse, dstee.SparseModel):
            return dstee.SparseSGD(groups, self.sparse, **sgd)
        return torch.optim.SGD(groups, **sgd)

    def _sparsified(self, method: Method, schedule: UpdateSchedule) -> dstee.SparseModel:
        config = self.config
        self.updates = method.update_steps(schedule, self.total)
        self.counted = len(self.updates) <= MAX_ROUNDS - 2
        if method.needs_counter and not self.counted:
            raise UsageError(
                f"every {config.every} makes {len(self.updates)} mask updates, at most {MAX_ROUNDS - 2} are counted"
            )
        scheduled = range(schedule.every, self.total + 1, schedule.every)
        more = len(self.updates) > max(1, len(scheduled))  # a method with an update at every step
        self.recorded = frozenset(self.updates) & frozenset(scheduled) if more else frozenset(self.updates)
        with torch.random.fork_rng(devices=[]):
            return dstee.sparsify(
                self.task.network, config.sparsity, distribution=config.distribution, seed=self.seed, method=method,
                schedule=schedule, track_exploration=self.counted, loss_fn=self.task.loss_of,
                batches=self.task.samples() if method.needs_batches else None, **self.task.sparse_arguments(),
            )  # fmt: skip

    def _put_thresholds(self, schedule: UpdateSchedule) -> list[dict[str, Any]]:
        """STR: its thresholds become masks where others stop to change them. Returns the optimizer's groups."""
        settings, stop = soft_settings(self.config.settings_of(STR)), schedule.stop
        assert stop is not None
        self.sparse = dstee.SoftThreshold(
            self.model, self.config.sparsity, init=settings.init, freeze_at=stop, seed=self.seed, schedule=schedule,
            track_exploration=True, **self.task.sparse_arguments(),
        )  # fmt: skip
        self.updates, self.recorded = (stop,), frozenset((stop,))
        return self.sparse.parameter_groups(settings.decay)

    def _fresh_cost(self) -> TrainingCost | None:
        """None where the density of every layer stays what it is, which says it all."""
        if isinstance(self.sparse, dstee.SoftThreshold):
            return TrainingCost({row.name: row.numel for row in self.sparse.summary().layers})
        if self.sparse is None or not (self.sparse.method.starts_denser or self.sparse.method.moves_budgets):
            return None
        return TrainingCost(self.sparse)

    @property
    def name(self) -> str:
        return f"{self.method}-seed{self.seed}"

    @property
    def title(self) -> str:
        """What tells it from others of its method."""
        return f"seed {self.seed}"

    @property
    def trials(self) -> list[Trial]:
        """Itself, as others train many at once."""
        return [self]

    @property
    def is_done(self) -> bool:
        return self.step_number == self.total or self.diverged_at is not None

    def add_seconds(self, seconds: float) -> None:
        """Wall time."""
        self.seconds += seconds

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.step_number // self.task.steps_per_epoch

    @property
    def masked(self) -> dstee.SparseModel | None:
        """Who has the masks, where there are any: none for dense, nor for STR before they are."""
        return self.sparse.sparse if isinstance(self.sparse, dstee.SoftThreshold) else self.sparse

    def exploration(self) -> float | None:
        """R: share of the maskable weights that were ever active; 1 for dense, None where counters could not hold it."""
        if self.masked is None:
            return 1.0
        return metrics.exploration(self.masked).total if self.counted else None

    def accuracy(self) -> float | None:
        """Test accuracy of the last completed epoch, in 0..1."""
        return next((r["accuracy"] for r in reversed(self.history) if r["kind"] == "epoch"), None)

    def step(self) -> tuple[float, list[Record]]:
        """One step of the optimizer; its loss, and what it adds to the history.

        Raises:
            Diverged: as :attr:`diverged_at` says from then on, and :attr:`ending`; the step was not made.
        """
        self.set_lr()
        self.optimizer.zero_grad()
        loss = self.task.loss(self.step_number + 1)
        value = processes.mean(loss)
        if math.isfinite(value):
            loss.backward()
        if self.ends_at(value):
            raise Diverged
        return value, self.advance(value, self.optimize())

    def ends_at(self, loss: float) -> bool:
        """Whether the step to come, with its loss and the gradients that there are, cannot be made; the training ends then."""
        t, sparse = self.step_number + 1, self.sparse
        if not math.isfinite(loss):
            self.ending = "the loss is not finite"
        elif isinstance(sparse, dstee.SparseModel) and sparse.method.needs_gradients and t in self.updates:
            grads = [layer.param.grad for layer in sparse.layers.values() if layer.param.grad is not None]
            if grads and not any(bool(grad.any()) for grad in grads):  # units are dead, and growth would be by index alone
                self.ending = "all gradients of the sparse weights are 0"
        self.diverged_at = t if self.ending else None
        return bool(self.ending)

    def set_lr(self) -> None:
        """The learning rate of the step to come."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(self.step_number)

    def optimize(self) -> bool:
        """The step of weights and masks with the gradients that there are; True when the masks changed."""
        if self.sparse is not None:
            return self._sparse_step(self.sparse)
        self.optimizer.step()
        return False

    def advance(self, loss: float, changed: bool) -> list[Record]:
        """Counts a step that was made, with its loss and whether the masks changed; what it adds to the history."""
        t = self.step_number + 1
        records: list[Record] = []
        if changed and t in self.recorded and self.masked is not None:
            records.append(self._update_record(self.masked, t))
        self.step_number = t
        self.loss_sum += loss
        if t % self.task.steps_per_epoch == 0:
            records.append(self._epoch_record(t, self.loss_sum / self.task.steps_per_epoch))
            self.loss_sum = 0.0
        self.history += records
        return records

    def _lr(self, step: int) -> float:
        """That of the step after ``step`` steps."""
        config, warm = self.config, self.config.warmup_epochs * self.task.steps_per_epoch
        if step < warm:
            return config.lr * (step + 1) / warm
        if config.lr_schedule == "constant":
            return config.lr
        return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (self.total - warm)))

    def _sparse_step(self, sparse: dstee.SparseModel | dstee.SoftThreshold) -> bool:
        before = self._nnz() if self.cost is not None else {}
        with backends.kernel_time() as timer:
            changed = sparse.step(self.optimizer)
        self.kernel_seconds += timer.seconds
        if self.cost is not None:
            method = sparse.method
            self.cost.add(before, method.needs_every_gradient or (changed and method.needs_gradients))
        return changed

    def _nnz(self) -> dict[str, int]:
        """Active weights by layer; of STR, those beyond the thresholds."""
        if self.masked is not None:
            return TrainingCost.nnz_of(self.masked)
        return {} if self.sparse is None else {row.name: row.nnz for row in self.sparse.summary().layers}

    def _update_record(self, sparse: dstee.SparseModel, t: int) -> UpdateRecord:
        return {
            "kind": "update", "method": self.method, "seed": self.seed, "step": t, "round": sparse.round,
            "exploration": self.exploration(), "churn": metrics.churn(sparse),
            "exploration_limit": 1.0 if self.method == STR else metrics.exploration_limit(sparse).total,
            "layers": list(metrics.exploration(sparse).per_layer.values()) if self.counted else None,
            "dead_units": metrics.dead_units(sparse).total,
        }  # fmt: skip

    def _epoch_record(self, t: int, loss: float) -> EpochRecord:
        scores = self.task.scores()
        return {
            "kind": "epoch", "method": self.method, "seed": self.seed, "step": t, "epoch": self.epoch,
            "loss": loss if math.isfinite(loss) else None, "accuracy": scores.pop("accuracy"),
            "exploration": self.exploration(), "scores": scores,
        }  # fmt: skip

    def state(self) -> TrialState:
        """Equal states have equal :func:`checkpoint.digest`."""
        state: TrialState = {
            "step": self.step_number,
            "config": self._settings(),
            "trial": {"method": self.method, "seed": self.seed},
            "data": self.data.digest,
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "sparse": self._sparse_state(),
            "order": self.task.state_dict(),
            "rng": torch.get_rng_state(),
            "loss_sum": self.loss_sum,
            "history": self.history,
        }
        if self.config.device == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        return state if self.cost is None else {**state, "cost": self.cost.state_dict()}

    def _settings(self) -> dict[str, object]:
        """What decides the bits of this training: with the processes that make it, where there are several."""
        settings = self.config.of_training(self.method)
        return settings if processes.count() == 1 else {**settings, "processes": processes.count()}

    def _sparse_state(self) -> dict[str, Any] | None:
        if isinstance(self.sparse, dstee.SparseModel):
            return self.sparse.state_dict(full=True)  # an eighth of the size
        return None if self.sparse is None else self.sparse.state_dict()

    def saved(self) -> SavedState:
        return {**self.state(), "seconds": [self.seconds, self.kernel_seconds]}

    def restore(self, path: Path, tree: Mapping[str, Any]) -> None:
        """Continues from ``tree``, which ``path`` held; nothing in it is believed before it is checked.

        Raises:
            CheckpointError: it is another training's, or its names, shapes or values do not fit (all differences at once).
        """
        try:
            course = Course(self.total, self.task.steps_per_epoch, self._parameters, self.updates, self.recorded)
            if wrong := misfits(cast(SavedState, tree), self.state(), course):
                raise ValueError("; ".join(wrong))
            if self.sparse is not None:
                self.sparse.load_state_dict(tree["sparse"] or {})
            self.model.load_state_dict(tree["model"])
            if self.cost is not None:
                self.cost.load_state_dict(tree["cost"])
            if self.masked is not None:
                if self.counted and any(layer.counts is None for layer in self.masked.layers.values()):
                    raise ValueError("counts are missing")
                for name, mask in self.masked.masks().items():
                    if self.model.get_parameter(name)[~mask].count_nonzero():
                        raise ValueError(f"{name} has weights outside its mask")
            self.optimizer.load_state_dict(tree["optimizer"])
            self.task.load_state_dict(tree["order"])
            torch.set_rng_state(tree["rng"])
            if self.config.device == "cuda":
                torch.cuda.set_rng_state(tree["cuda_rng"])
            self.step_number, self.loss_sum, self.history = tree["step"], tree["loss_sum"], tree["history"]
            self.seconds, self.kernel_seconds = tree["seconds"]
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise CheckpointError(f"{path}: does not fit this training: {' '.join(str(reason).split())}") from error

    def result(self) -> Result:
        sparse = self.masked
        numel = nnz = self.maskable
        inference = training = density = limit = 1.0
        dead = 0.0
        if sparse is not None and self.step_number:
            nnz, example = sparse.nnz, self.task.example()
            if self.cost is None:
                flops, density = metrics.flops(sparse, example, steps=self.total), metrics.density(sparse)
            else:
                flops, density = self.cost.flops(sparse, example), self.cost.mean_density()
            inference, training = flops.inference_ratio, flops.training_ratio
            limit = 1.0 if self.method == STR else metrics.exploration_limit(sparse).total
            dead = metrics.dead_units(sparse).total
        accuracy, scores = self._reported()
        return Result(
            self.method, self.seed, accuracy, self.exploration(), limit, dead, nnz, numel, density, inference,
            training, self.seconds, self.kernel_seconds, checkpoint.digest(self.state()), scores, self.diverged_at,
        )  # fmt: skip

    def _reported(self) -> tuple[float | None, dict[str, float]]:
        """Accuracy and other scores of the epoch that the task says, and of the last one if it may be another; none after a
        divergence."""
        epochs = [r for r in self.history if r["kind"] == "epoch"]
        if self.diverged_at is not None or not epochs:
            return None, {}
        last = epochs[-1]
        if self.task.reported == "last":
            return last["accuracy"], dict(last.get("scores", {}))
        best = max(epochs, key=lambda r: r.get("scores", {}).get("validation", 0.0))  # the first of equals
        final = {"accuracy": last["accuracy"], **last.get("scores", {})}
        return best["accuracy"], {**best.get("scores", {}), **{f"last_{name}": score for name, score in final.items()}}
