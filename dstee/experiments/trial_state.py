"""The state of a training, and every way in which what a file holds is not one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from dstee.experiments.config import differences
from dstee.experiments.records import Record, as_record
from dstee.methods import method_from_dict
from dstee.schedule import UpdateSchedule

__all__ = ["Course", "SavedState", "TrialState", "misfits", "tensor_differences"]


_STATE = {
    "sgd": {"momentum_buffer": "momentum"},
    "adam": {"step": "step of", "exp_avg": "mean gradient of", "exp_avg_sq": "mean squared gradient of"},
}
"""What the state of an optimizer holds for each parameter, and what errors call it."""


class _Always(TypedDict):
    step: int
    config: dict[str, object]
    trial: dict[str, object]
    data: str
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    sparse: dict[str, Any] | None
    order: Mapping[str, Any]
    rng: Tensor
    loss_sum: float
    history: list[Record]


class TrialState(_Always, total=False):
    """Everything that the rest of a training depends on. ``cost``: of methods whose density changes; ``cuda_rng``: on GPUs."""

    cost: dict[str, Any]
    cuda_rng: Tensor


class SavedState(TrialState):
    """What a checkpoint holds: the state, and the wall time and the time in dstee's ops until then."""

    seconds: list[float]


@dataclass(frozen=True)
class Course:
    """What a training does from its first step to its last, beside its settings.

    ``parameters``: those of the optimizer, in its order. ``updates``: the steps that change the masks; ``recorded``: those of
    them that the history tells of.
    """

    total: int
    batches: int
    parameters: Mapping[str, Tensor]
    updates: Sequence[int]
    recorded: frozenset[int]


def misfits(tree: SavedState, fresh: TrialState, course: Course) -> list[str]:
    """Every way in which ``tree`` is not a state of the training that begins at ``fresh``."""
    if odd := tree.keys() ^ (fresh.keys() | {"seconds"}):
        return [f"{name!r} is missing or unknown" for name in sorted(map(str, odd))]
    wrong = differences(fresh["config"], tree["config"]) + differences(fresh["trial"], tree["trial"])
    if tree["data"] != fresh["data"]:
        wrong.append("it was trained on other data")
    wrong += tensor_differences("weights", _weights(fresh, tree["sparse"]), tree["model"])
    config, state = fresh["config"], tree["optimizer"]
    groups = [{k: v for k, v in g.items() if k != "lr"} for g in fresh["optimizer"]["param_groups"]]
    names = _STATE[str(config.get("optimizer", "sgd"))]
    if [{k: v for k, v in g.items() if k != "lr"} for g in state["param_groups"]] != groups:
        wrong.append("the optimizer's groups have other settings")
    lr: Any = config["lr"]
    low = 0.0 if config["lr_schedule"] == "cosine" or config.get("warmup_epochs") else lr
    if not all(type(g["lr"]) is float and low <= g["lr"] <= lr for g in state["param_groups"]):
        wrong.append("the learning rate is not that of this training")
    if any(s.keys() - set(names) for s in state["state"].values()):
        wrong.append("the optimizer's state holds other things than momenta")
    params = course.parameters
    for name, what in names.items():
        found = {i: s[name] for i, s in state["state"].items() if s.get(name) is not None}
        named = {p: found.pop(i) for i, p in enumerate(params) if i in found} | found
        expected = dict.fromkeys(params, torch.zeros(())) if name == "step" else params
        wrong += tensor_differences(what, expected if named or _has_stepped(tree, course) else {}, named)
    return wrong or _contradictions(tree, fresh, course)


def _has_stepped(tree: SavedState, course: Course) -> bool:
    """Whether the optimizer has made a step, and keeps something of it."""
    step, keeps = tree["step"], any(g.get("momentum", 1) for g in tree["optimizer"]["param_groups"])
    return keeps and type(step) is int and step > sum(t <= step for t in course.updates)  # updates may replace steps


def _weights(fresh: TrialState, sparse: Any) -> Mapping[str, Tensor]:
    """The weights that a state has; those of STR lose their thresholds and get their own names again when it freezes."""
    if fresh["sparse"] is None or "freeze_at" not in fresh["sparse"] or sparse["sparse"] is None:
        return fresh["model"]
    named = {name.replace(".parametrizations", "").removesuffix(".original"): w for name, w in fresh["model"].items()}
    return {name: w for name, w in named.items() if not name.endswith(".logit")}


def _contradictions(tree: SavedState, fresh: TrialState, course: Course) -> list[str]:
    """What a whole checkpoint of this training never holds: numbers that do not belong together."""
    step, history = tree["step"], tree["history"]
    if type(step) is not int or not 0 <= step <= course.total:
        return [f"step {step!r} is not in 0..{course.total}"]
    if not isinstance(history, list):
        return ["the history is no list"]
    for record in history:
        as_record(record)
    wrong = []
    if any({"method": r["method"], "seed": r["seed"]} != fresh["trial"] for r in history):
        wrong.append("the history is of another training")
    if tree["order"]["position"] != ((step - 1) % course.batches + 1 if step else 0):
        wrong.append("the position in the data is not that of its step")
    if [r["epoch"] for r in history if r["kind"] == "epoch"] != list(range(1, step // course.batches + 1)):
        wrong.append("the history is not that of its step")
    if type(tree["loss_sum"]) is not float:
        wrong.append("loss_sum is not a number")
    seconds = tree["seconds"]
    if not (isinstance(seconds, list) and len(seconds) == 2 and all(type(s) is float and 0 <= s < math.inf for s in seconds)):
        wrong.append("seconds are not two times")
    if not all(0 < s["step"] <= step and s["step"] == s["step"].round() for s in _adam(tree)):
        wrong.append("the optimizer's steps are not those of its step")
    if "cost" in fresh and tree["cost"]["steps"] != step:
        wrong.append("the cost is not that of its step")
    if fresh["sparse"] is not None:
        wrong += _sparse_contradictions(step, history, tree["sparse"] or {}, fresh["sparse"], course)
    return wrong


def _adam(tree: SavedState) -> list[dict[str, Tensor]]:
    """What Adam keeps of each parameter; of SGD nothing."""
    return [state for state in tree["optimizer"]["state"].values() if "step" in state]


def _sparse_contradictions(
    step: int, history: list[Record], got: dict[str, Any], fresh: dict[str, Any], course: Course
) -> list[str]:
    rounds = {t: round for round, t in enumerate(course.updates, 1) if t <= step}
    if "freeze_at" in fresh:
        same = {key: got[key] == fresh[key] for key in ("freeze_at", "sparsity")}
        made = int(got["sparse"] is not None)
    else:
        same = {
            "method": method_from_dict(got["method"]) == method_from_dict(fresh["method"]),
            "schedule": UpdateSchedule.from_dict(got["schedule"]) == UpdateSchedule.from_dict(fresh["schedule"]),
            "seed": got["seed"] == fresh["seed"],
        }
        made = got["round"]
    wrong = [f"the sparse {key} is another" for key in same if not same[key]]
    told = [(r["step"], r["round"]) for r in history if r["kind"] == "update"]
    if got["t"] != step or made != len(rounds) or told != [(t, n) for t, n in rounds.items() if t in course.recorded]:
        wrong.append("the mask updates are not those of its step")
    return wrong


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
