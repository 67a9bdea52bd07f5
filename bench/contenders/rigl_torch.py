"""rigl-torch 0.5: ``RigLScheduler``, called after ``backward()`` as its README shows.

Its uniform distribution keeps the first layer dense, so a layer of one weight stands in front. It imports torchvision only to
compare classes with two of its own; where torchvision does not import, two empty classes stand in for them.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from typing import Protocol

import torch
from torch import Tensor, nn

from dstee import compat

from .. import expected
from ..expected import Expected, array
from ..models import Job
from ..session import STEP, Contender, Session, Setting, check_update, copy_into
from ..training import GAP, SGD, Mark, Trainer, Training
from ._model import Holder, backward, installed, model_of
from .registry import register
from .torch_steps import TorchSGD

__all__ = ["PatchedUpdate", "RigLTraining", "Step", "Update", "load"]

VERSION = "0.5.2"  # of rigl-torch, that this is written for
DELTA, T_END = 100, 10**9  # so far from the end the cosine is 1


class Hook(Protocol):
    dense_grad: Tensor | None


class Scheduler(Protocol):
    """What is used of a ``RigLScheduler``. Called, it says whether the optimizer is to step: False after an update."""

    step: int
    W: list[Tensor]
    backward_masks: list[Tensor]
    backward_hook_objects: list[Hook]

    def __call__(self) -> bool: ...

    def cosine_annealing(self) -> float: ...


def load() -> types.ModuleType:
    try:
        return importlib.import_module("rigl_torch.RigL")
    except (ImportError, RuntimeError):  # no torchvision, or one that does not fit this torch
        for name in [m for m in sys.modules if m.split(".")[0] in ("torchvision", "rigl_torch")]:
            del sys.modules[name]
        vision, models, resnet = (types.ModuleType(f"torchvision{end}") for end in ("", ".models", ".models.resnet"))
        resnet.Bottleneck, resnet.BasicBlock = type("Bottleneck", (), {}), type("BasicBlock", (), {})  # type: ignore[attr-defined]
        vision.models, models.resnet = models, resnet  # type: ignore[attr-defined]
        stand_in = {m.__name__: m for m in (vision, models, resnet)}
        sys.modules.update(stand_in)
        try:
            return importlib.import_module("rigl_torch.RigL")
        finally:
            for name in stand_in:
                del sys.modules[name]


def attach(model: nn.Module, optimizer: torch.optim.Optimizer, density: float, swap: float, delta: int) -> Scheduler:
    scheduler: Scheduler = load().RigLScheduler(
        model, optimizer, dense_allocation=density, T_end=T_END, delta=delta, alpha=swap, ignore_linear_layers=False
    )
    return scheduler


class Update(Session):
    """``scheduler()`` at a step where an update is due. Weights, masks and dense gradients are those of the case."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        before = setting.before
        self.model = model_of(before, first=nn.Linear(1, 1, bias=False, device=setting.device))
        self.optimizer = torch.optim.SGD(self.model.parameters(), **STEP)
        self.scheduler = attach(self.model, self.optimizer, setting.density, setting.swap, DELTA)
        self.scheduler.step = DELTA - 1  # the hooks keep the dense gradient of the backward pass before an update
        self.weights = self.scheduler.W[1:]
        backward(self.weights, before.grads)
        self.grads = [g * m for g, m in zip(before.grads, before.masks, strict=True)]

    @torch.no_grad()
    def restore(self) -> None:
        before = self.setting.before
        copy_into([w.data for w in self.weights], before.params)
        copy_into(self.scheduler.backward_masks[1:], before.masks)
        copy_into([w.grad for w in self.weights if w.grad is not None], self.grads)
        self.scheduler.step = DELTA - 1

    def call(self) -> None:
        if self.scheduler():
            raise RuntimeError("the scheduler did no update")

    def outputs(self) -> list[Tensor]:
        return self.scheduler.backward_masks[1:] + [w.detach() for w in self.weights]

    def check(self) -> str | None:
        fraction = self.scheduler.cosine_annealing()
        return check_update(self.setting, outcome(self.setting, fraction), self.outputs()[: len(self.weights)], self.weights)


class PatchedUpdate(Update):
    """The same live scheduler after ``dstee.compat.patch``."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        compat.patch(self.scheduler)

    def restore(self) -> None:
        super().restore()
        for hook, g in zip(self.scheduler.backward_hook_objects[1:], self.setting.before.grads, strict=True):
            hook.dense_grad = g.clone()  # the patched update lets go of it


def outcome(setting: Setting, fraction: float) -> list[Expected]:
    b = setting.before
    found = []
    for mask_t, w, g in zip(b.masks, b.params, b.grads, strict=True):
        mask = array(mask_t)
        k = int(int(mask.sum()) * fraction)
        found.append(expected.update(mask, expected.rank(array(w)), expected.rank(array(g)), k, whole=True))
    return found


class Step(TorchSGD):
    """``optimizer.step()`` as the scheduler wraps it: SGD, momenta times masks, weights times masks."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        holder = nn.Sequential(nn.Linear(1, 1, bias=False, device=setting.device), *(Holder(p) for p in self.params))
        self.scheduler = attach(holder, self.optimizer, setting.density, setting.swap, DELTA)
        copy_into(self.scheduler.backward_masks[1:], setting.before.masks)

    def call(self) -> None:
        self.optimizer.step()


class RigLTraining(Training):
    def __init__(self, job: Job, density: float, swap: float) -> None:
        super().__init__(job, density, swap)
        self.optimizer = torch.optim.SGD(self.model.parameters(), **SGD)
        self.scheduler = attach(self.model, self.optimizer, density, swap, GAP)

    def after(self, mark: Mark) -> bool:
        stepped = self.scheduler()
        if stepped:
            self.optimizer.step()
        mark("optimizer")
        mark("masks")
        return not stepped


def why_not(device: str, dtype: str) -> str | None:
    reason = installed("rigl-torch", VERSION)
    if reason is None and dtype != "float32":
        return "its masks and scores are made for float32"
    return reason


register(
    Contender("rigl-torch", "drop_grow", "RigL; two top-k over all n weights; masks applied to all layers after each layer",
              Update, step="rigl-torch", slow=True, why_not=why_not),
    Contender("rigl-torch, patched", "drop_grow", "the same scheduler after dstee.compat.patch: RigL on dstee's kernels",
              PatchedUpdate, why_not=why_not),
    Contender("rigl-torch", "masked_sgd", "SGD, then weights and momenta times bool masks", Step, why_not=why_not),
    Trainer("rigl-torch", "RigL; rigl-torch: `if scheduler(): optimizer.step()`", RigLTraining,
            why_not=functools.partial(installed, "rigl-torch", VERSION)),
)  # fmt: skip
