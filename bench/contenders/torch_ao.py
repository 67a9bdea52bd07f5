"""torch.ao.pruning: ``WeightNormSparsifier.step()`` with blocks of one weight, as gradual magnitude pruning uses it.

It drops and never grows: the level is the one at which it drops as many weights as the other contenders swap. It knows matrices
only, so convolutions are given as matrices of their output channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from .. import expected
from ..expected import array
from ..session import Contender, Session, Setting, copy_into
from ._model import model_of, parametrized_weights
from .registry import register

if TYPE_CHECKING:
    from torch.ao.pruning import BaseSparsifier

__all__ = ["DsteeMagnitude", "Magnitude"]


class Hook(Protocol):
    mask: Tensor


class Magnitude(Session):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.level = 1 - setting.density * (1 - setting.swap)
        self.model = model_of(setting.before, flat=True)
        self.sparsifier = self.make()
        self.sparsifier.prepare(self.model, [{"tensor_fqn": f"{i}.weight"} for i in range(len(setting.before.params))])
        self.originals, hooks = parametrized_weights(self.model)
        self.hooks = cast(list[Hook], hooks)

    def make(self) -> BaseSparsifier:
        from torch.ao.pruning import WeightNormSparsifier

        return WeightNormSparsifier(sparsity_level=self.level, sparse_block_shape=(1, 1), zeros_per_block=1)

    @torch.no_grad()
    def restore(self) -> None:
        before = self.setting.before
        copy_into(
            [w.data for w in self.originals], [p.view(w.shape) for p, w in zip(before.params, self.originals, strict=True)]
        )
        for hook, mask in zip(self.hooks, before.masks, strict=True):
            hook.mask.data = mask.view(hook.mask.shape).to(torch.float32)

    def call(self) -> None:
        self.sparsifier.step()

    def outputs(self) -> list[Tensor]:
        return [hook.mask for hook in self.hooks]

    def check(self) -> str | None:
        for i, (mask, w) in enumerate(zip(self.outputs(), self.setting.before.params, strict=True)):
            values = array(w)
            zeros = max(0, min(values.size - 1, round(self.level * values.size)))
            drop = expected.smallest(expected.rank(values * values), np.ones(values.size, bool), zeros)
            loose = drop.tied if int(drop.tied.sum()) > 1 else np.zeros_like(drop.tied)
            wrong = expected.disagreement(
                array(mask).astype(bool), expected.Expected(~drop.taken, drop.taken, drop.tied, loose)
            )
            if wrong:
                return f"layer {i}: {wrong}"
        return None


class DsteeMagnitude(Magnitude):
    """``dstee.compat.torch_ao.DSTEESparsifier`` in its place."""

    def make(self) -> BaseSparsifier:
        from dstee.compat.torch_ao import DSTEESparsifier

        return DSTEESparsifier(self.level, "magnitude")


def why_not(device: str, dtype: str) -> str | None:
    try:
        from torch.ao.pruning import WeightNormSparsifier  # noqa: F401
    except ImportError:
        return f"torch {torch.__version__} has no torch.ao.pruning"
    return None if dtype == "float32" else "its float32 masks are made for float32 weights"


register(
    Contender("torch.ao.pruning", "drop_grow", "magnitude: drops only, by w², over all n weights; grows nothing", Magnitude,
              step="SGD foreach + masks", why_not=why_not),
    Contender("torch.ao, swapped in", "drop_grow", "the same by dstee.compat.torch_ao.DSTEESparsifier", DsteeMagnitude,
              why_not=why_not),
)  # fmt: skip
