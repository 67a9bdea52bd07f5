"""sparsimony 0.1: ``RigL(...).step()`` after ``optimizer.step()``; masks are parametrizations, gradients come by a hook.

Grown weights start at 0, dropped ones keep their value behind the mask. The number to grow is what a layer lacks of its target.
"""

from __future__ import annotations

import functools
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from dstee.compat.sparsimony import accelerate

from .. import expected
from ..expected import Expected, array
from ..models import Job
from ..session import STEP, Contender, Session, Setting, check_update, copy_into
from ..training import GAP, SGD, Mark, Trainer, Training, weights_of
from ._model import backward, installed, model_of, parametrized_weights
from .registry import register
from .torch_steps import TorchSGD

__all__ = ["AcceleratedUpdate", "RigLTraining", "Step", "Update"]

VERSION = "0.1.0"  # of sparsimony, that this is written for
DELTA, T_END = 100, 10**9


class Hook(Protocol):
    mask: Tensor
    dense_grad: Tensor


class Sparsifier(Protocol):
    """What is used of sparsimony's ``RigL``."""

    _step_count: int

    def scheduler(self, step: int) -> float: ...

    def step(self) -> bool: ...

    def prepare(self, model: nn.Module, config: list[dict[str, str]]) -> None: ...


def attach(
    model: nn.Module, optimizer: torch.optim.Optimizer, density: float, swap: float, delta: int, names: list[str] | None = None
) -> Sparsifier:
    """A prepared sparsifier; ``names``: the weights that are sparse, by default all of two or more dimensions."""
    from sparsimony.distributions.base import UniformDistribution
    from sparsimony.dst.rigl import RigL
    from sparsimony.schedulers.base import CosineDecayScheduler

    names = names or [name for name, p in model.named_parameters() if p.ndim >= 2]
    sparsifier: Sparsifier = RigL(
        CosineDecayScheduler(swap, T_END, delta), UniformDistribution(), optimizer, sparsity=1 - density, init_method=None
    )
    sparsifier.prepare(model, [{"tensor_fqn": name} for name in names])
    return sparsifier


class Prepared:
    """A model with the layers of a setting, made sparse."""

    def __init__(self, setting: Setting) -> None:
        self.model = model_of(setting.before)
        self.optimizer = torch.optim.SGD(self.model.parameters(), **STEP)
        self.sparsifier = attach(self.model, self.optimizer, setting.density, setting.swap, DELTA)
        self.originals, hooks = parametrized_weights(self.model)
        self.hooks = cast(list[Hook], hooks)

    @property
    def masks(self) -> list[Tensor]:
        return [hook.mask for hook in self.hooks]


class Update(Session):
    """``sparsifier.step()`` at a step where an update is due."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.peer = Prepared(setting)
        backward(weights_of(self.peer.model), setting.before.grads)
        copy_into([hook.dense_grad for hook in self.peer.hooks], setting.before.grads)

    @torch.no_grad()
    def restore(self) -> None:
        before = self.setting.before
        copy_into([w.data for w in self.peer.originals], before.params)
        copy_into([mask.data for mask in self.peer.masks], before.masks)
        self.peer.sparsifier._step_count = DELTA - 1

    def call(self) -> None:
        if not self.peer.sparsifier.step():
            raise RuntimeError("the sparsifier did no update")

    def outputs(self) -> list[Tensor]:
        return self.peer.masks + [w.detach() for w in self.peer.originals]

    def check(self) -> str | None:
        fraction = self.peer.sparsifier.scheduler(DELTA)
        return check_update(self.setting, outcome(self.setting, fraction), self.peer.masks, self.peer.originals)


class AcceleratedUpdate(Update):
    """The same live sparsifier after ``dstee.compat.sparsimony.accelerate``."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        accelerate(self.peer.sparsifier)


def outcome(setting: Setting, fraction: float) -> list[Expected]:
    b = setting.before
    found = []
    for mask_t, w, g in zip(b.masks, b.params, b.grads, strict=True):
        mask = array(mask_t)
        active = int(mask.sum())
        k = int(torch.tensor(float(active)) * fraction)  # its mask, and so the product, is float32
        grow = int(mask.size * (1 - (1 - setting.density))) - (active - k)
        found.append(expected.update(mask, expected.rank(array(w)), expected.rank(array(g)), k, grow))
    return found


class Step(TorchSGD):
    """``optimizer.step()`` as the sparsifier wraps it: dense SGD, momenta times masks; each forward masks weights."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.peer = Prepared(setting)
        self.peer.optimizer.param_groups[0]["params"] = self.params
        self.params, self.optimizer = list(self.peer.originals), self.peer.optimizer
        self.optimizer.param_groups[0]["params"] = self.params
        for p, g, m in zip(self.params, setting.work.grads, setting.work.momenta, strict=True):
            p.grad = g.view(p.shape)
            self.optimizer.state[p]["momentum_buffer"] = m
        copy_into([mask.data for mask in self.peer.masks], setting.before.masks)

    def call(self) -> None:
        self.optimizer.step()

    def check(self) -> str | None:
        with torch.no_grad():  # what the model sees: the products of the parametrizations
            copy_into(self.params, weights_of(self.peer.model))
        return super().check()


class RigLTraining(Training):
    def __init__(self, job: Job, density: float, swap: float) -> None:
        super().__init__(job, density, swap)
        self.optimizer = torch.optim.SGD(self.model.parameters(), **SGD)
        sparse = {id(w) for w in weights_of(self.model)}
        names = [name for name, p in self.model.named_parameters() if id(p) in sparse]
        self.sparsifier = attach(self.model, self.optimizer, density, swap, GAP, names)

    def after(self, mark: Mark) -> bool:
        self.optimizer.step()
        mark("optimizer")
        updated = self.sparsifier.step()
        mark("masks")
        return updated


def why_not(device: str, dtype: str) -> str | None:
    reason = installed("sparsimony", VERSION)
    if reason is None and (device, dtype) != ("cpu", "float32"):
        return "run on CPU tensors in float32 only"
    return reason


register(
    Contender("sparsimony", "drop_grow", "RigL; two top-k of the size of the swap; grows up to the target count", Update,
              step="sparsimony", slow=True, why_not=why_not),
    Contender("sparsimony, accelerated", "drop_grow", "the same sparsifier after dstee.compat.sparsimony.accelerate",
              AcceleratedUpdate, why_not=why_not),
    Contender("sparsimony", "masked_sgd", "dense SGD, then momenta times float masks; weights are masked at each forward",
              Step, why_not=why_not),
    Trainer("sparsimony", "RigL; sparsimony: `optimizer.step(); sparsifier.step()`, masks applied in every forward",
            RigLTraining, why_not=functools.partial(installed, "sparsimony", VERSION)),
)  # fmt: skip
