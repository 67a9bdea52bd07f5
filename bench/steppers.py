"""The masked SGD step: dstee's backends, and what people write around torch.optim.SGD."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import expected
from .contenders import STEP, Contender, Ours, Session, Setting, _backend_why_not, copy_into
from .expected import array

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


class TorchSGD(Session):
    """torch.optim.SGD, then weights and momenta multiplied by float masks (``masked``), as training code does."""

    def __init__(self, setting: Setting, masked: bool = True, **options: Any) -> None:
        super().__init__(setting)
        self.masked = masked
        work = setting.work
        if "float masks" not in setting.shared:
            setting.shared["float masks"] = [m.to(p.dtype, copy=True) for m, p in zip(work.masks, work.params, strict=True)]
        self.masks = setting.shared["float masks"]
        self.params = [torch.nn.Parameter(p) for p in work.params]
        for p, g in zip(self.params, work.grads, strict=True):
            p.grad = g
        self.optimizer = torch.optim.SGD(self.params, **STEP, **options)
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


STEPS = [
    *(
        Contender(name, "masked_sgd", "masked SGD, each operation rounded once", functools.partial(Ours, backend=name), True,
                  why_not=_backend_why_not(name, "masked_sgd"))
        for name in ("native", "triton", "reference")
    ),
    Contender("SGD foreach + masks", "masked_sgd", "SGD, then products with float masks",
              functools.partial(TorchSGD, foreach=True)),
    Contender("SGD fused + masks", "masked_sgd", "SGD, then products with float masks",
              functools.partial(TorchSGD, fused=True)),
    Contender("ITOP apply_mask", "masked_sgd", "SGD, then new tensors weight * mask, momentum * mask", ApplyMask),
    Contender("SGD fused, dense", "masked_sgd", "dense SGD, forgets the masks: a bound",
              functools.partial(TorchSGD, masked=False, fused=True)),
]  # fmt: skip
