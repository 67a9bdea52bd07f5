"""sparsimony 0.1: ``RigL(...).step()`` after ``optimizer.step()``; masks are parametrizations, gradients come by a hook.

Grown weights start at 0, dropped ones keep their value behind the mask. The number to grow is what a layer lacks of its target.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dstee.compat.sparsimony import accelerate

from .. import expected
from ..contenders import STEP, Contender, Session, Setting, check_update, copy_into
from ..expected import Expected, array
from ..steppers import TorchSGD
from ._model import backward, installed, model_of

DELTA, T_END = 100, 10**9


def attach(
    model: nn.Module, optimizer: torch.optim.Optimizer, density: float, swap: float, delta: int, end: int,
    names: list[str] | None = None,
):  # fmt: skip
    """A prepared sparsifier; ``names``: the weights that are sparse, by default all of two or more dimensions."""
    from sparsimony.distributions.base import UniformDistribution
    from sparsimony.dst.rigl import RigL
    from sparsimony.schedulers.base import CosineDecayScheduler

    names = names or [name for name, p in model.named_parameters() if p.ndim >= 2]
    sparsifier = RigL(
        CosineDecayScheduler(swap, end, delta), UniformDistribution(), optimizer, sparsity=1 - density, init_method=None
    )
    sparsifier.prepare(model, [{"tensor_fqn": name} for name in names])
    return sparsifier


class Prepared(Session):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.model = model_of(setting.before)
        self.optimizer = torch.optim.SGD(self.model.parameters(), **STEP)
        self.sparsifier = attach(self.model, self.optimizer, setting.density, setting.swap, DELTA, T_END)
        lists = [module.parametrizations["weight"] for module in self.model]
        self.originals = [one.original for one in lists]
        self.hooks = [one[0] for one in lists]

    @property
    def masks(self) -> list[Tensor]:
        return [hook.mask for hook in self.hooks]

    def close(self) -> None:
        del self.model, self.optimizer, self.sparsifier, self.originals, self.hooks


class Update(Prepared):
    """``sparsifier.step()`` at a step where an update is due."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        backward([module.weight for module in self.model], setting.before.grads)
        copy_into([hook.dense_grad for hook in self.hooks], setting.before.grads)

    @torch.no_grad()
    def restore(self) -> None:
        before = self.setting.before
        copy_into([w.data for w in self.originals], before.params)
        copy_into([mask.data for mask in self.masks], before.masks)
        self.sparsifier._step_count = DELTA - 1

    def call(self) -> None:
        if not self.sparsifier.step():
            raise RuntimeError("the sparsifier did no update")

    def outputs(self) -> list[Tensor]:
        return self.masks + [w.detach() for w in self.originals]

    def check(self) -> str | None:
        fraction = self.sparsifier.scheduler(DELTA)
        return check_update(self.setting, outcome(self.setting, fraction), self.masks, self.originals)


class AcceleratedUpdate(Update):
    """The same live sparsifier after ``dstee.compat.sparsimony.accelerate``."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        accelerate(self.sparsifier)


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
            copy_into(self.params, [module.weight for module in self.peer.model])
        return super().check()


def why_not(device: str, dtype: str) -> str | None:
    reason = installed("sparsimony", "0.1.0")
    if reason is None and (device, dtype) != ("cpu", "float32"):
        return "run on CPU tensors in float32 only"
    return reason


CONTENDERS = [
    Contender("sparsimony", "drop_grow", "RigL; two top-k of the size of the swap; grows up to the target count", Update,
              step="sparsimony", slow=True, why_not=why_not),
    Contender("sparsimony, accelerated", "drop_grow", "the same sparsifier after dstee.compat.sparsimony.accelerate",
              AcceleratedUpdate, why_not=why_not),
    Contender("sparsimony", "masked_sgd", "dense SGD, then momenta times float masks; weights are masked at each forward",
              Step, why_not=why_not),
]  # fmt: skip
