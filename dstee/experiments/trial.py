"""One training of ``dstee train``: an MLP under one method and seed, resumable to the bit from any step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dstee
from dstee import CheckpointError, backends, metrics
from dstee._console import UsageError
from dstee.encoding import MAX_ROUNDS
from dstee.experiments import checkpoint
from dstee.experiments.config import DENSE, Config, differences, setting
from dstee.experiments.data import BatchOrder, BatchOrderState, Dataset
from dstee.experiments.records import EpochRecord, Record, Result, UpdateRecord, as_record
from dstee.methods import METHODS, Method, method_from_dict
from dstee.schedule import DROPS, UpdateSchedule

__all__ = ["SavedState", "Trial", "TrialState", "mlp", "tensor_differences"]


class TrialState(TypedDict):
    """Everything that the rest of a training depends on."""

    step: int
    config: dict[str, object]
    trial: dict[str, object]
    data: str
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    sparse: dict[str, Any] | None
    order: BatchOrderState
    rng: Tensor
    loss_sum: float
    history: list[Record]


class SavedState(TrialState):
    """What a checkpoint holds: the state, and the wall time and the time in dstee's ops until then."""

    seconds: list[float]


def mlp(features: int, hidden: tuple[int, ...], classes: int = 10) -> nn.Sequential:
    """Linear and ReLU per hidden layer, then a linear classifier; PyTorch's default initial weights."""
    model = nn.Sequential()
    for i, (inputs, outputs) in enumerate(zip((features, *hidden), hidden, strict=False), 1):
        model.add_module(f"hidden{i}", nn.Linear(inputs, outputs))
        model.add_module(f"relu{i}", nn.ReLU())
    model.add_module("output", nn.Linear(hidden[-1], classes))
    return model


def _method(config: Config, key: str) -> Method:
    """The method with what the configuration says of its parameters."""
    kind = METHODS[key]
    said = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if setting(f).group == "method"}
    if config.order == "default":
        del said["order"]
    del said["c" if config.c_rel else "c_rel"]
    return kind(**{f.name: said[f.name] for f in dataclasses.fields(kind) if f.init and f.name in said})


def _schedule(config: Config, total: int) -> UpdateSchedule:
    stop = max(1, round(config.stop_fraction * total))
    if (stop - 1) // config.every > MAX_ROUNDS - 2:
        raise UsageError(
            f"every {config.every} makes {(stop - 1) // config.every} mask updates, at most {MAX_ROUNDS - 2} are counted"
        )
    floor = {} if config.drop_schedule == "constant" else {"floor": min(config.drop_floor, config.drop_fraction)}
    return UpdateSchedule(config.every, stop, DROPS[config.drop_schedule](config.drop_fraction, **floor))


class Trial:
    """One training: model, optimizer, data order and history, at a step.

    Raises:
        UsageError: the configuration cannot be met (a batch larger than the data, a budget that no distribution meets).
    """

    def __init__(self, config: Config, method: str, seed: int, data: Dataset):
        torch.manual_seed(seed)
        self.config, self.method, self.seed, self.data = config, method, seed, data
        self.model = mlp(data.x_train.shape[1], config.hidden)
        self.batch_order = BatchOrder(len(data.y_train), config.batch_size, seed)
        self.total = config.epochs * self.batch_order.batches
        self.step_number, self.loss_sum = 0, 0.0
        self.history: list[Record] = []
        self.seconds = self.kernel_seconds = 0.0
        sgd: dict[str, Any] = {name: getattr(config, name) for name in ("lr", "momentum", "weight_decay", "nesterov")}
        self.sparse: dstee.SparseModel | None = None
        self.optimizer: torch.optim.Optimizer
        if method == DENSE:
            self.optimizer = torch.optim.SGD(self.model.named_parameters(), **sgd)
            return
        try:
            self.sparse = dstee.sparsify(
                self.model, config.sparsity, distribution=config.distribution, seed=seed,
                method=_method(config, method), schedule=_schedule(config, self.total), track_exploration=True,
            )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from error
        self.optimizer = dstee.SparseSGD(self.model.named_parameters(), self.sparse, **sgd)

    @property
    def name(self) -> str:
        return f"{self.method}-seed{self.seed}"

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.step_number // self.batch_order.batches

    def exploration(self) -> float:
        """R: share of the maskable weights that were ever active; 1 for dense."""
        return 1.0 if self.sparse is None else metrics.exploration(self.sparse).total

    def accuracy(self) -> float | None:
        """Test accuracy of the last completed epoch, in 0..1."""
        return next((r["accuracy"] for r in reversed(self.history) if r["kind"] == "epoch"), None)

    def step(self) -> tuple[float, list[Record]]:
        """One step of the optimizer; its loss, and what it adds to the history."""
        t = self.step_number + 1
        if self.config.lr_schedule == "cosine":
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * 0.5 * (1 + math.cos(math.pi * self.step_number / self.total))
        batch = self.batch_order.next()
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(self.data.x_train[batch]), self.data.y_train[batch])
        loss.backward()
        records: list[Record] = []
        if self.sparse is None:
            self.optimizer.step()
        elif self._sparse_step(self.sparse):
            records.append(self._update_record(self.sparse, t))
        self.step_number = t
        value = loss.item()
        self.loss_sum += value
        if t % self.batch_order.batches == 0:
            records.append(self._epoch_record(t, self.loss_sum / self.batch_order.batches))
            self.loss_sum = 0.0
        self.history += records
        return value, records

    def _sparse_step(self, sparse: dstee.SparseModel) -> bool:
        with backends.kernel_time() as timer:
            changed = sparse.step(self.optimizer)
        self.kernel_seconds += timer.seconds
        return changed

    def _update_record(self, sparse: dstee.SparseModel, t: int) -> UpdateRecord:
        return {
            "kind": "update", "method": self.method, "seed": self.seed, "step": t, "round": sparse.round,
            "exploration": self.exploration(), "churn": metrics.churn(sparse),
        }  # fmt: skip

    def _epoch_record(self, t: int, loss: float) -> EpochRecord:
        return {
            "kind": "epoch", "method": self.method, "seed": self.seed, "step": t, "epoch": self.epoch,
            "loss": loss if math.isfinite(loss) else None, "accuracy": self._test(), "exploration": self.exploration(),
        }  # fmt: skip

    @torch.no_grad()
    def _test(self) -> float:
        self.model.eval()
        hits = sum(
            int((self.model(x).argmax(1) == y).sum())
            for x, y in zip(self.data.x_test.split(2000), self.data.y_test.split(2000), strict=True)
        )
        self.model.train()
        return hits / len(self.data.y_test)

    def state(self) -> TrialState:
        """Equal states have equal :func:`checkpoint.digest`."""
        return {
            "step": self.step_number,
            "config": self.config.of_training(),
            "trial": {"method": self.method, "seed": self.seed},
            "data": self.data.digest,
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "sparse": None if self.sparse is None else self.sparse.state_dict(),
            "order": self.batch_order.state_dict(),
            "rng": torch.get_rng_state(),
            "loss_sum": self.loss_sum,
            "history": self.history,
        }

    def saved(self) -> SavedState:
        return {**self.state(), "seconds": [self.seconds, self.kernel_seconds]}

    def restore(self, path: Path, tree: SavedState) -> None:
        """Continues from ``tree``, which ``path`` held; nothing in it is believed before it is checked.

        Raises:
            CheckpointError: it is another training's, or its names, shapes or values do not fit (all differences at once).
        """
        try:
            if wrong := self._misfits(tree):
                raise ValueError("; ".join(wrong))
            self.model.load_state_dict(tree["model"])
            if self.sparse is not None:
                self.sparse.load_state_dict(tree["sparse"] or {})
                for name, mask in self.sparse.masks().items():
                    if self.model.get_parameter(name)[~mask].count_nonzero():
                        raise ValueError(f"{name} has weights outside its mask")
            self.optimizer.load_state_dict(tree["optimizer"])
            self.batch_order.load_state_dict(tree["order"])
            torch.set_rng_state(tree["rng"])
            self.step_number, self.loss_sum, self.history = tree["step"], tree["loss_sum"], tree["history"]
            self.seconds, self.kernel_seconds = tree["seconds"]
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise CheckpointError(f"{path}: does not fit this training: {' '.join(str(reason).split())}") from error

    def _misfits(self, tree: SavedState) -> list[str]:
        """Every way in which ``tree`` is not a state of this training."""
        if odd := tree.keys() ^ (TrialState.__annotations__.keys() | SavedState.__annotations__.keys()):
            return [f"{name!r} is missing or unknown" for name in sorted(map(str, odd))]
        wrong = differences(self.config.of_training(), tree["config"]) + differences(self.state()["trial"], tree["trial"])
        if tree["data"] != self.data.digest:
            wrong.append("it was trained on other data")
        wrong += tensor_differences("weights", self.model.state_dict(), tree["model"])
        fresh, state = self.optimizer.state_dict(), tree["optimizer"]
        groups = [{k: v for k, v in g.items() if k != "lr"} for g in fresh["param_groups"]]
        if [{k: v for k, v in g.items() if k != "lr"} for g in state["param_groups"]] != groups:
            wrong.append("the optimizer's groups have other settings")
        low = 0.0 if self.config.lr_schedule == "cosine" else self.config.lr
        if not all(type(g["lr"]) is float and low <= g["lr"] <= self.config.lr for g in state["param_groups"]):
            wrong.append("the learning rate is not that of this training")
        if any(s.keys() - {"momentum_buffer"} for s in state["state"].values()):
            wrong.append("the optimizer's state holds other things than momenta")
        params = dict(self.model.named_parameters())
        momenta = {i: s["momentum_buffer"] for i, s in state["state"].items() if s.get("momentum_buffer") is not None}
        named = {name: momenta.pop(i) for i, name in enumerate(params) if i in momenta} | momenta
        wrong += tensor_differences("momentum", params if named else {}, named)
        return wrong or self._contradictions(tree)

    def _contradictions(self, tree: SavedState) -> list[str]:
        """What a whole checkpoint of this training never holds: numbers that do not belong together."""
        step, history, batches = tree["step"], tree["history"], self.batch_order.batches
        if type(step) is not int or not 0 <= step <= self.total:
            return [f"step {step!r} is not in 0..{self.total}"]
        if not isinstance(history, list):
            return ["the history is no list"]
        for record in history:
            as_record(record)
        wrong = []
        if tree["order"]["position"] != ((step - 1) % batches + 1 if step else 0):
            wrong.append("the position in the data is not that of its step")
        if [r["epoch"] for r in history if r["kind"] == "epoch"] != list(range(1, step // batches + 1)):
            wrong.append("the history is not that of its step")
        if type(tree["loss_sum"]) is not float:
            wrong.append("loss_sum is not a number")
        seconds = tree["seconds"]
        if not (
            isinstance(seconds, list) and len(seconds) == 2 and all(type(s) is float and 0 <= s < math.inf for s in seconds)
        ):
            wrong.append("seconds are not two times")
        if self.sparse is not None:
            got = tree["sparse"] or {}
            same = {
                "method": method_from_dict(got["method"]) == self.sparse.method,
                "schedule": UpdateSchedule.from_dict(got["schedule"]) == self.sparse.schedule,
                "seed": got["seed"] == self.sparse.seed,
            }
            wrong += [f"the sparse {key} is another" for key in same if not same[key]]
            updates = [r["round"] for r in history if r["kind"] == "update"]
            if got["t"] != step or updates != list(range(1, got["round"] + 1)):
                wrong.append("the mask updates are not those of its step")
        return wrong

    def result(self) -> Result:
        numel = nnz = sum(m.weight.numel() for m in self.model.modules() if isinstance(m, nn.Linear))
        inference = training = limit = 1.0
        dead = 0.0
        if self.sparse is not None:
            nnz = self.sparse.nnz
            flops = metrics.flops(self.sparse, self.data.x_train[:1], steps=self.total)
            inference, training = flops.inference_ratio, flops.training_ratio
            limit, dead = metrics.exploration_limit(self.sparse).total, metrics.dead_units(self.sparse).total
        return Result(
            self.method, self.seed, self.accuracy() or 0.0, self.exploration(), limit, dead, nnz, numel, inference, training,
            self.seconds, self.kernel_seconds, checkpoint.digest(self.state()),
        )  # fmt: skip


def tensor_differences(what: str, expected: Mapping[Any, Tensor | None], got: Mapping[Any, Tensor]) -> list[str]:
    """One line for every name that is missing or too many, and every shape or dtype that differs."""

    def kind(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

    wrong = [f"{what} {name} is missing" for name in expected if name not in got]
    for name, tensor in got.items():
        wanted = expected.get(name)
        if wanted is None:
            wrong.append(f"{what} {name} is unknown")
        elif kind(tensor) != kind(wanted):
            wrong.append(f"{what} {name} is {kind(tensor)}, expected {kind(wanted)}")
    return wrong
