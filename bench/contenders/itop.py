"""ITOP's ``Masking``: what its code does, written anew, since it has no licence; and dstee's class of the same name.

An ordinary step is ``optimizer.step()`` and ``apply_mask()``, which makes new tensors of weights and momenta. An update then
drops in all layers, grows in all layers, masks again and notes which weights were ever active; counts go to the host each time.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dstee.compat import sparselearning

from .. import expected
from ..expected import Expected
from ..models import Job
from ..session import STEP, Contender, Session, Setting, check_update, copy_into
from ..training import GAP, SGD, Mark, Stepper, Stepping, Trainer, Training, weights_of
from ._model import Holder, backward, model_of
from .registry import register
from .torch_steps import TorchSGD

__all__ = ["Masking", "MaskingSession", "SwapIn", "SwapInStep"]


class Masking:
    """Float masks by name. Drops what is not above the k-th of all sorted ``abs(w)``, grows by a sort of all ``abs(g)``."""

    def __init__(
        self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, rate: float
    ):
        self.weights = dict(weights)
        self.optimizer = optimizer
        self.death_rate = rate
        self.take(masks)

    def take(self, masks: Mapping[str, Tensor]) -> None:
        """Begins with these masks."""
        self.masks = {name: mask.to(self.weights[name].dtype, copy=True) for name, mask in masks.items()}
        self.fired_masks = {name: mask.clone() for name, mask in self.masks.items()}

    def apply_mask(self) -> None:
        for name, w in self.weights.items():
            w.data = w.data * self.masks[name]
            state = self.optimizer.state[w]
            if "momentum_buffer" in state:
                state["momentum_buffer"] = state["momentum_buffer"] * self.masks[name]

    @torch.no_grad()
    def truncate_weights(self) -> None:
        removed = {}
        for name, w in self.weights.items():
            active = int(self.masks[name].sum().item())
            self.masks[name] = self._death(w, self.masks[name], active)
            removed[name] = active - int(self.masks[name].sum().item())
        for name, w in self.weights.items():
            assert w.grad is not None
            mask = self.masks[name]
            candidates = w.grad.clone() * (mask == 0).to(w.dtype)
            order = torch.sort(candidates.abs().flatten(), descending=True).indices
            mask.view(-1)[order[: removed[name]]] = 1.0
            mask.sum().item()
        self.apply_mask()

    def _death(self, w: Tensor, mask: Tensor, active: int) -> Tensor:
        k = math.ceil(self.death_rate * active)
        if k == 0:
            return (w.data != 0).to(mask.dtype)
        ordered = torch.sort(w.data.abs().view(-1)).values
        return (w.data.abs() > ordered[mask.numel() - active + k - 1].item()).to(mask.dtype)

    def fired_masks_update(self) -> float:
        """The share of weights that were ever active."""
        ever, size = 0.0, 0.0
        for name, mask in self.masks.items():
            self.fired_masks[name] = mask.byte() | self.fired_masks[name].byte()
            ever += float(self.fired_masks[name].sum().item())
            size += float(self.fired_masks[name].numel())
        return ever / size


class MaskingSession(Session):
    """A mask update by :class:`Masking`, all of it."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        work = setting.work
        self.params: list[Tensor] = [nn.Parameter(p) for p in work.params]
        for p, g in zip(self.params, work.grads, strict=True):
            p.grad = g
        self.optimizer = torch.optim.SGD(self.params, **STEP)
        self.names = [str(i) for i in range(len(self.params))]
        self.masking = Masking(self.by_name(self.params), self.by_name(setting.before.masks), self.optimizer, setting.swap)

    def by_name(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.names, tensors, strict=True))

    @torch.no_grad()
    def restore(self) -> None:
        work, before = self.setting.work, self.setting.before
        for p, w, m in zip(self.params, work.params, work.momenta, strict=True):
            p.data = w
            self.optimizer.state[p]["momentum_buffer"] = m
        copy_into(work.params, before.params)
        copy_into(work.momenta, before.momenta)
        self.masking.take(self.by_name(before.masks))

    def call(self) -> None:
        self.masking.truncate_weights()
        self.masking.fired_masks_update()

    def outputs(self) -> list[Tensor]:
        return [self.masking.masks[name] for name in self.names] + [p.detach() for p in self.params]

    def check(self) -> str | None:
        masks = [self.masking.masks[name] for name in self.names]
        return check_update(self.setting, self.setting.outcome(two_sorts(self.setting.swap)), masks, self.params)


@functools.cache
def two_sorts(rate: float) -> expected.Algorithm:
    """Everything up to the threshold goes, ties too; as many come."""

    def rule(mask: expected.Bools, w: expected.Numbers, g: expected.Numbers, N: expected.Numbers, bonus: expected.Numbers,
             k: int) -> Expected:  # fmt: skip
        return expected.by_threshold(mask, w, expected.rank(g), math.ceil(rate * int(mask.sum())), grow_ties=False)

    return rule


@functools.cache
def exact(rate: float) -> expected.Algorithm:
    """Exact numbers go and come."""

    def rule(mask: expected.Bools, w: expected.Numbers, g: expected.Numbers, N: expected.Numbers, bonus: expected.Numbers,
             k: int) -> Expected:  # fmt: skip
        return expected.update(mask, expected.rank(w), expected.rank(g), math.ceil(rate * int(mask.sum())))

    return rule


def swap_in(optimizer: torch.optim.Optimizer, rate: float, every: int | None) -> sparselearning.Masking:
    """dstee's Masking; ``every``: steps between updates, None for none."""
    args = argparse.Namespace(fix=every is None, update_frequency=every)
    return sparselearning.Masking(
        optimizer, rate, death_mode="magnitude", growth_mode="gradient", redistribution_mode="none", args=args, seed=0
    )


@torch.no_grad()
def masked_by(masking: sparselearning.Masking, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Gives the model the masks that are wanted: ``add_module`` draws others, and zeroes the weights outside them."""
    before = [p.clone() for p in model.parameters()]
    masking.add_module(model, 0.5, "uniform")
    masking.masks = masks
    copy_into(list(model.parameters()), before)


class SwapIn(Session):
    """The same update by dstee's Masking."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.model = model_of(setting.before)
        self.weights = weights_of(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), **STEP)
        self.masking = swap_in(self.optimizer, setting.swap, every=100)
        backward(self.weights, setting.work.grads)
        for w, m in zip(self.weights, setting.work.momenta, strict=True):
            self.optimizer.state[w]["momentum_buffer"] = m
        self.masks = {f"{i}.weight": mask.view(w.shape) for i, (w, mask) in enumerate(zip(self.weights, setting.before.masks,
                                                                                        strict=True))}  # fmt: skip
        masked_by(self.masking, self.model, self.masks)

    @torch.no_grad()
    def restore(self) -> None:
        copy_into(self.weights, self.setting.before.params)
        copy_into(self.setting.work.momenta, self.setting.before.momenta)
        self.masking.masks = self.masks
        self.masking.fired_masks = self.masks

    def call(self) -> None:
        self.masking.truncate_weights()
        self.masking.fired_masks_update()

    def outputs(self) -> list[Tensor]:
        return [w.detach() for w in self.weights] + [layer.mask_bits for layer in self.masking.masks.layers()]

    def check(self) -> str | None:
        masks = [self.masking.masks[name] for name in self.masks]
        return check_update(self.setting, self.setting.outcome(exact(self.setting.swap)), masks, self.weights)


class SwapInStep(TorchSGD):
    """A step without an update by dstee's Masking."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.masking = swap_in(self.optimizer, setting.swap, every=None)
        model = nn.Sequential(*map(Holder, self.params))
        masked_by(self.masking, model, {f"{i}.weight": mask for i, mask in enumerate(setting.before.masks)})

    def restore(self) -> None:
        super().restore()  # the weights are 0 outside the masks, as a step before would have left them
        self.masking.clean_versions = {name: p._version for name, p in self.masking.params().items()}

    def call(self) -> None:
        self.masking.step()


class MaskingTraining(Training):
    def __init__(self, job: Job, density: float, swap: float) -> None:
        super().__init__(job, density, swap)
        self.optimizer = torch.optim.SGD(self.model.parameters(), **SGD)
        weights = {str(i): w for i, w in enumerate(weights_of(self.model))}
        masks = {name: torch.rand_like(w) < density for name, w in weights.items()}
        self.masking = Masking(weights, masks, self.optimizer, swap)
        self.masking.apply_mask()

    def after(self, mark: Mark) -> bool:
        self.optimizer.step()
        mark("optimizer")
        self.masking.apply_mask()
        due = self.due()
        if due:
            self.masking.truncate_weights()
            self.masking.fired_masks_update()
        mark("masks")
        return due


class SwapInTraining(Training):
    def __init__(self, job: Job, density: float, swap: float) -> None:
        super().__init__(job, density, swap)
        self.masking = swap_in(torch.optim.SGD(self.model.parameters(), **SGD), swap, every=GAP)
        self.masking.add_module(self.model, density, "uniform")

    def after(self, mark: Mark) -> bool:
        self.masking.step()
        mark("optimizer")
        mark("masks")
        return self.masking.steps % GAP == 0


class MaskingStepping(Stepping):
    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        super().__init__(model, masks)
        self.optimizer = torch.optim.SGD(model.parameters(), **SGD)
        self.masking = Masking({name: model.get_parameter(name) for name in masks}, masks, self.optimizer, 0.3)

    def step(self) -> object:
        self.optimizer.step()
        self.masking.apply_mask()
        return None


class SwapInStepping(Stepping):
    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        super().__init__(model, masks)
        self.optimizer = torch.optim.SGD(model.parameters(), **SGD)
        self.masking = swap_in(self.optimizer, 0.3, every=None)
        masked_by(self.masking, model, masks)

    def step(self) -> object:
        self.masking.step()
        return None


def float32_only(device: str, dtype: str) -> str | None:
    return None if dtype == "float32" else "its masks count their own ones, which only float32 holds exactly"


ITOP, OURS = "ITOP Masking", "ITOP Masking, dstee's"
register(
    Contender(ITOP, "drop_grow", "RigL as ITOP's Masking: two sorts a layer, new tensors, counts on the host",
              MaskingSession, step="ITOP apply_mask", slow=True, why_not=float32_only),
    Contender(OURS, "drop_grow", "RigL by dstee.compat.sparselearning.Masking, for which scripts change an import", SwapIn),
    Contender(OURS, "masked_sgd", "step() of dstee.compat.sparselearning.Masking", SwapInStep),
    Trainer(ITOP, "RigL as ITOP's Masking: SGD, then new tensors weight * mask, momentum * mask; two sorts", MaskingTraining),
    Trainer(OURS, "RigL; step() of dstee.compat.sparselearning.Masking", SwapInTraining),
    Stepper(ITOP, "SGD, then new tensors weight * mask, momentum * mask", MaskingStepping),
    Stepper(OURS, "step() of dstee.compat.sparselearning.Masking", SwapInStepping),
)  # fmt: skip
