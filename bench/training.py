"""What a whole training step is, and what of it follows ``backward()``: the bases of their implementations, which each train a
copy of one model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypedDict

import torch
from torch import Tensor, nn

from .models import Job

__all__ = [
    "GAP", "PHASES", "SGD", "Mark", "Stepper", "Stepping", "Trainer", "Training", "runs_anywhere", "weights_of",
]  # fmt: skip


class SGDOptions(TypedDict):
    lr: float
    momentum: float
    weight_decay: float


SGD: SGDOptions = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
GAP = 4  # steps between updates while timing; the first steps warm up
PHASES = ("forward", "backward", "optimizer", "masks")
Mark = Callable[[str], None]


class Training(ABC):
    """A model in training. ``steps`` runs forward and backward, ``after`` does the rest of the step."""

    def __init__(self, job: Job, density: float, swap: float) -> None:
        self.job = job
        self.model = job.model
        self.density = density
        self.swap = swap
        self.steps = 0

    @abstractmethod
    def after(self, mark: Mark) -> bool:
        """What follows ``backward()``; marks the end of ``optimizer`` and of ``masks``. True: the masks were updated."""

    def due(self) -> bool:
        """Whether an update belongs to this step; called once a step by those who count steps themselves."""
        self.steps += 1
        return self.steps % GAP == 0


def runs_anywhere() -> str | None:
    """An implementation that can run anywhere."""
    return None


@dataclass(frozen=True)
class Trainer:
    """A contender for whole training steps.

    ``computes``: its rule in words, for the report. ``ours``: dstee's own. ``why_not()``: why it cannot run here, or None.
    """

    op: ClassVar[str] = "step"

    name: str
    computes: str
    open: Callable[[Job, float, float], Training]
    ours: bool = False
    why_not: Callable[[], str | None] = runs_anywhere


class Stepping(ABC):
    """A model whose gradients are there. Its weights are 0 outside ``masks``, which name some of its parameters."""

    optimizer: torch.optim.Optimizer

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.model = model

    @abstractmethod
    def step(self) -> object:
        """What follows ``backward()`` in a step without an update."""


@dataclass(frozen=True)
class Stepper:
    """A contender for what follows ``backward()``. ``masked``: its weights stay 0 outside the masks. Others as in
    :class:`Trainer`."""

    op: ClassVar[str] = "host"

    name: str
    computes: str
    open: Callable[[nn.Module, Mapping[str, Tensor]], Stepping]
    ours: bool = False
    masked: bool = True
    why_not: Callable[[], str | None] = runs_anywhere


def weights_of(model: nn.Module) -> list[Tensor]:
    """The weights that are made sparse."""
    return [m.weight for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
