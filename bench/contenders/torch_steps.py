"""Masked SGD as people write it around torch.optim.SGD: the step alone, and in a whole training."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from .. import expected
from ..expected import array
from ..models import Job
from ..session import STEP, Contender, Session, Setting, copy_into
from ..training import SGD, Mark, Stepper, Stepping, Trainer, Training, weights_of
from .registry import register
from .torch_updates import top_k_update

__all__ = ["ApplyMask", "DenseTraining", "HandWrittenTraining", "TorchSGD", "TorchStepping"]

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


class TorchSGD(Session):
    """torch.optim.SGD, then weights and momenta multiplied by float masks (``masked``), as training code does."""

    def __init__(self, setting: Setting, masked: bool = True, foreach: bool | None = None, fused: bool | None = None) -> None:
        super().__init__(setting)
        self.masked = masked
        work = setting.work
        self.masks = setting.float_masks
        self.params: list[Tensor] = [torch.nn.Parameter(p) for p in work.params]
        for p, g in zip(self.params, work.grads, strict=True):
            p.grad = g
        self.optimizer = torch.optim.SGD(self.params, **STEP, foreach=foreach, fused=fused)
        for p, m in zip(self.params, work.momenta, strict=True):
            self.optimizer.state[p]["momentum_buffer"] = m

    def momenta(self) -> list[Tensor]:
        return [self.optimizer.state[p]["momentum_buffer"] for p in self.params]

    @torch.no_grad()
    def restore(self) -> None:
        copy_into(self.params, self.setting.before.params)
        copy_into(self.momenta(), self.setting.before.momenta)

    @torch.no_grad()
    def call(self) -> None:
        self.optimizer.step()
        if self.masked:
            torch._foreach_mul_(self.params, self.masks)
            torch._foreach_mul_(self.momenta(), self.masks)

    def outputs(self) -> list[Tensor]:
        return [p.detach() for p in self.params] + self.momenta()

    def check(self) -> str | None:
        """Within rounding of one step in float64 (torch may fuse multiply and add), 0 where the mask is False."""
        before = self.setting.before
        for i, (p, m) in enumerate(zip(self.params, self.momenta(), strict=True)):
            mask = array(before.masks[i])
            values = (array(before.params[i]), array(before.grads[i]), array(before.momenta[i]))
            for name, actual, exact in zip(
                ("weights", "momenta"), (array(p), array(m)), expected.sgd(*values, **STEP), strict=True
            ):
                want = np.where(mask, exact, 0) if self.masked else exact
                allowed = TOLERANCE[p.dtype] * (np.abs(want) + np.abs(values[0]) + np.abs(values[2]))
                bad = ~(np.abs(actual - want) <= allowed)
                if bad.any():
                    return f"layer {i}: {int(bad.sum())} {name} differ, first at {int(np.flatnonzero(bad)[0])}"
        return None


class ApplyMask(TorchSGD):
    """ITOP's apply_mask after the step: new tensors for weights and momenta, layer by layer."""

    @torch.no_grad()
    def restore(self) -> None:
        work = self.setting.work
        for p, w, m in zip(self.params, work.params, work.momenta, strict=True):
            p.data = w
            self.optimizer.state[p]["momentum_buffer"] = m
        super().restore()

    def call(self) -> None:
        self.optimizer.step()
        for p, mask in zip(self.params, self.masks, strict=True):
            p.data = p.data * mask
            state = self.optimizer.state[p]
            if "momentum_buffer" in state:
                state["momentum_buffer"] = state["momentum_buffer"] * mask


class DenseTraining(Training):
    def __init__(self, job: Job, density: float, swap: float) -> None:
        super().__init__(job, density, swap)
        self.optimizer = torch.optim.SGD(self.model.parameters(), **SGD, fused=True)

    def after(self, mark: Mark) -> bool:
        self.optimizer.step()
        mark("optimizer")
        mark("masks")
        return False


class HandWrittenTraining(Training):
    """DST-EE around torch.optim.SGD: weights and momenta times float masks, updates by torch.topk."""

    def __init__(self, job: Job, density: float, swap: float) -> None:
        super().__init__(job, density, swap)
        self.optimizer = torch.optim.SGD(self.model.parameters(), **SGD, foreach=True)
        self.weights = weights_of(self.model)
        self.masks = [torch.rand_like(w) < density for w in self.weights]
        self.float_masks = [m.float() for m in self.masks]
        self.N = [m.int() for m in self.masks]
        self.bonus = torch.full((10_000,), 1e-5, device=self.weights[0].device)
        with torch.no_grad():
            torch._foreach_mul_(self.weights, self.float_masks)

    @torch.no_grad()
    def after(self, mark: Mark) -> bool:
        self.optimizer.step()
        mark("optimizer")
        due = self.due()
        if due:
            for w, mask, N in zip(self.weights, self.masks, self.N, strict=True):
                assert w.grad is not None
                k = int(self.swap * int(mask.sum()))
                top_k_update(w.view(-1), w.grad.view(-1), mask.view(-1), N.view(-1), k, self.bonus)
            torch._foreach_copy_(self.float_masks, self.masks)
        torch._foreach_mul_(self.weights, self.float_masks)
        torch._foreach_mul_([self.optimizer.state[w]["momentum_buffer"] for w in self.weights], self.float_masks)
        mark("masks")
        return due


class TorchStepping(Stepping):
    """torch.optim.SGD, then (``masked``) the weights and their momenta times float masks."""

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        masked: bool,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(model, masks)
        parameters = dict(model.named_parameters())
        self.optimizer = torch.optim.SGD(parameters.values(), **SGD, foreach=foreach, fused=fused)
        self.weights: list[Tensor] = [parameters[name] for name in masks] if masked else []
        self.masks: list[Tensor] = [mask.to(parameters[name].dtype) for name, mask in masks.items()]

    @torch.no_grad()
    def step(self) -> object:
        self.optimizer.step()
        if self.weights:
            torch._foreach_mul_(self.weights, self.masks)
            torch._foreach_mul_([self.optimizer.state[w]["momentum_buffer"] for w in self.weights], self.masks)
        return None


register(
    Contender("SGD foreach + masks", "masked_sgd", "SGD, then products with float masks",
              functools.partial(TorchSGD, foreach=True)),
    Contender("SGD fused + masks", "masked_sgd", "SGD, then products with float masks",
              functools.partial(TorchSGD, fused=True)),
    Contender("ITOP apply_mask", "masked_sgd", "SGD, then new tensors weight * mask, momentum * mask", ApplyMask),
    Contender("SGD fused, dense", "masked_sgd", "dense SGD, forgets the masks: a bound",
              functools.partial(TorchSGD, masked=False, fused=True)),
    Trainer("dense", "no masks; torch.optim.SGD, fused", DenseTraining),
    Trainer("by hand", "DST-EE; torch.optim.SGD foreach, products with float masks, torch.topk", HandWrittenTraining),
    Stepper("SGD fused + masks", "SGD, then products with float masks",
            functools.partial(TorchStepping, masked=True, fused=True)),
    Stepper("SGD foreach + masks", "SGD, then products with float masks",
            functools.partial(TorchStepping, masked=True, foreach=True)),
    Stepper("SGD fused, dense", "dense SGD, forgets the masks: a bound",
            functools.partial(TorchStepping, masked=False, fused=True), masked=False),
)  # fmt: skip
