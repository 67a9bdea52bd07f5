"""Death rates over time and the command line of the ``sparselearning`` family."""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Callable
from typing import Protocol

__all__ = ["CosineDecay", "Decay", "LinearDecay", "SNFSLinearDecay", "add_sparse_args", "next_rate"]


class Decay(Protocol):
    """A death rate over time; some forks pass the present rate to ``get_dr``."""

    def step(self) -> None: ...

    @property
    def get_dr(self) -> Callable[..., float]: ...


class CosineDecay:
    """Half a cosine from ``death_rate`` to ``eta_min`` over ``T_max`` steps, and back up after them, as the original's.

    The closed form; the original's recursion differs from it by less than 1e-14.
    """

    def __init__(self, death_rate: float, T_max: int, eta_min: float = 0.005, last_epoch: int = -1) -> None:
        if not T_max > 0:
            raise ValueError(f"T_max must be a number of steps > 0, got {T_max}")
        self.death_rate = float(death_rate)
        self.T_max, self.eta_min = T_max, eta_min
        self.steps = last_epoch + 1

    def step(self) -> None:
        self.steps += 1

    def get_dr(self, death_rate: float | None = None) -> float:
        """The rate now; the argument, which some forks pass, is not used there either."""
        return self.eta_min + (self.death_rate - self.eta_min) * (1 + math.cos(math.pi * self.steps / self.T_max)) / 2


class LinearDecay:
    """``death_rate`` times ``factor`` every ``frequency`` steps.

    The original's ``get_dr`` wants an argument that its own ``Masking.step`` does not pass; here it is optional.
    """

    def __init__(self, death_rate: float, factor: float = 0.99, frequency: int = 600) -> None:
        if not 0 <= factor <= 1:
            raise ValueError(f"factor must be in [0, 1], got {factor}: SNFS's LinearDecay(rate, T_max) is SNFSLinearDecay here")
        self.death_rate, self.factor, self.frequency = death_rate, factor, frequency
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps % self.frequency == 0:
            self.death_rate *= self.factor

    def get_dr(self, death_rate: float | None = None) -> float:
        """The rate now; with an argument, that one after this step, as in the original."""
        if death_rate is None:
            return self.death_rate
        return death_rate * self.factor if self.steps > 0 and self.steps % self.frequency == 0 else death_rate


class SNFSLinearDecay:
    """SNFS's ``LinearDecay``: from ``prune_rate`` to 0 over ``T_max`` steps; after them 0, where the original goes below."""

    def __init__(self, prune_rate: float, T_max: int) -> None:
        if not T_max > 0:
            raise ValueError(f"T_max must be a number of steps > 0, got {T_max}")
        self.prune_rate, self.T_max = float(prune_rate), T_max
        self.steps = 0

    def step(self) -> None:
        self.steps += 1

    def get_dr(self, prune_rate: float | None = None) -> float:
        """The rate now; the argument, which SNFS passes, is not used there either."""
        return self.prune_rate * max(self.T_max - self.steps, 0) / self.T_max


def next_rate(decay: Decay, rate: float) -> float:
    """Steps a decay of any fork: ``get_dr()`` or ``get_dr(rate)``."""
    decay.step()
    required = [p for p in inspect.signature(decay.get_dr).parameters.values() if p.default is p.empty]
    return decay.get_dr(rate) if required else decay.get_dr()


def add_sparse_args(parser: argparse.ArgumentParser) -> None:
    """The options of ITOP's scripts with their defaults, and ``--dstee-c``, ``--dstee-eps`` for ``--growth dst_ee``."""
    add = parser.add_argument
    add("--sparse", action="store_true", help="Train sparsely.")
    add("--fix", action="store_true", help="Keep the initial masks.")
    add("--sparse_init", type=str, default="ERK", help="Initial masks: ERK, uniform, GMP (dense) or lottery_ticket.")
    add("--growth", type=str, default="random", help="random, random_unfired, momentum, gradient or dst_ee.")
    add("--death", type=str, default="magnitude", help="magnitude, SET, Taylor_FO or threshold.")
    add("--redistribution", type=str, default="none", help="Only none: the original has no redistribution either.")
    add("--death-rate", type=float, default=0.5, help="Share of the active weights that an update swaps, at the start.")
    add("--density", type=float, default=0.05, help="Share of active weights over all masked layers.")
    add("--update_frequency", type=int, default=100, metavar="N", help="Steps from one mask update to the next.")
    add("--decay-schedule", type=str, default="cosine", help="cosine or linear.")
    add("--dstee-c", type=float, default=1e-3, help="Weight of exploration in dst_ee's growth.")
    add("--dstee-eps", type=float, default=1.0, help="Offset of the counters in dst_ee's growth.")
