"""What a contender is given and what it must offer: a :class:`Setting`, a :class:`Session`, a :class:`Contender`.

Before every call ``restore`` brings back the state at the start, so that each timed call does the same work and its result can
be checked.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from dstee import backends, ops
from dstee.encoding import bonus_table

from . import expected
from .expected import Algorithm, Expected, array
from .layers import ROUND, Layers

__all__ = ["STEP", "Contender", "Session", "Setting", "check_update", "copy_into", "drop_grow", "runs_anywhere"]


class StepOptions(TypedDict):
    lr: float
    momentum: float
    weight_decay: float


STEP: StepOptions = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
MOST_FOR_REFERENCE = 40_000_000  # weights; above, the gate compares with bench.expected, which needs less time and memory


@dataclass
class Setting:
    """What all contenders of one row are given. ``before`` is never written; ``work`` is shared, so restore before a call."""

    op: str
    before: Layers
    density: float
    swap: float
    outcomes: dict[Algorithm, list[Expected]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.before.params[0].device

    @functools.cached_property
    def work(self) -> Layers:
        return self.before.clone()

    @functools.cached_property
    def float_masks(self) -> list[Tensor]:
        """Of the weights' dtype, shared by all who multiply with them."""
        return [m.to(p.dtype, copy=True) for m, p in zip(self.before.masks, self.before.params, strict=True)]

    @functools.cached_property
    def bonus(self) -> Tensor:
        return bonus_table(1e-4, 1.0, 1000, ROUND).to(self.device)

    @functools.cached_property
    def N(self) -> list[Tensor]:
        layers = zip(self.before.counts, self.before.mask_bits, self.before.shapes, strict=True)
        return [ops.decode_counts(counts, bits, ROUND, shape) for counts, bits, shape in layers]

    @property
    def gate(self) -> str:
        return "reference" if self.before.n <= MOST_FOR_REFERENCE else "the rule in numpy"

    @functools.cached_property
    def expected(self) -> Layers:
        """The state after the op, on the CPU, by the reference or, for large cases, by the rule in numpy."""
        state = self.before.clone() if self.device.type == "cpu" else self.before.to("cpu")
        if self.op == "masked_sgd":  # elementwise, cheap at any size
            with backends.use_backend("reference"):
                ops.masked_sgd_(state.params, state.grads, state.momenta, state.mask_bits, **STEP)
        elif self.gate == "reference":
            with backends.use_backend("reference"):
                drop_grow(state, self.bonus.cpu())
        else:
            for i, (layer, mask) in enumerate(zip(self.outcome(expected.dst_ee), list(state.masks), strict=True)):
                after = torch.from_numpy(layer.mask).view(mask.shape)
                gone = torch.from_numpy(layer.dropped & ~layer.grown).view(mask.shape)
                state.params[i].masked_fill_(gone, 0)
                state.mask_bits[i] = ops.pack_mask(after)
                state.counts[i] = ops.encode_counts(self.N[i].cpu() + after, after, ROUND + 1)
        return state

    def outcome(self, algorithm: Algorithm) -> list[Expected]:
        """Every layer after an update by ``algorithm`` of :mod:`expected`; computed once."""
        if algorithm not in self.outcomes:
            b, bonus = self.before, self.bonus.cpu().numpy()

            def after(mask: Tensor, w: Tensor, g: Tensor, N: Tensor, k: int) -> Expected:
                return algorithm(array(mask), array(w), array(g), array(N), bonus, k)

            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                self.outcomes[algorithm] = list(pool.map(after, b.masks, b.params, b.grads, self.N, b.k))
        return self.outcomes[algorithm]


def drop_grow(state: Layers, bonus: Tensor) -> None:
    ops.drop_grow_(state.params, state.grads, None, state.mask_bits, state.counts, state.k, bonus=bonus, round=ROUND)


class Session(ABC):
    """One contender at work on a setting."""

    exact = False
    """Ties are decided too, so that the result may not differ between repeats."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @abstractmethod
    def restore(self) -> None:
        """Brings back the state before the op."""

    @abstractmethod
    def call(self) -> None:
        """The op: this is what is timed."""

    @abstractmethod
    def outputs(self) -> list[Tensor]:
        """The tensors whose bits are the result."""

    @abstractmethod
    def check(self) -> str | None:
        """What is wrong with the result, or None."""


def runs_anywhere(device: str, dtype: str) -> str | None:
    """A contender that can run anywhere."""
    return None


@dataclass(frozen=True)
class Contender:
    """``computes``: its rule in words, for the report. ``step``: the contender of masked_sgd that goes with this update.

    ``ours``: a backend of dstee. ``slow``: seconds for each call on large layers; a sweep runs it at the first density of a
    case only. ``asked``: another option than ``--against`` asks for it. ``why_not(device, dtype)``: why it cannot run there,
    or None.
    """

    name: str
    op: str
    computes: str
    open: Callable[[Setting], Session]
    ours: bool = False
    step: str = ""
    slow: bool = False
    asked: bool = False
    why_not: Callable[[str, str], str | None] = runs_anywhere


def copy_into(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    torch._foreach_copy_(list(targets), list(sources))


def check_update(setting: Setting, outcome: list[Expected], masks: Sequence[Tensor], params: Sequence[Tensor]) -> str | None:
    """Masks as expected, weights as they were where they stayed and 0 (or kept, if regrown) elsewhere."""
    before = setting.before
    for i, layer in enumerate(outcome):
        mask = array(masks[i]).astype(bool)
        weights = np.where(mask, array(params[i]), 0)
        wrong = expected.disagreement(mask, layer) or expected.wrong_weights(weights, array(before.params[i]), mask, layer)
        if wrong:
            return f"layer {i}: {wrong}"
    return None
