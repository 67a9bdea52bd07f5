"""What ``dstee verify-theory`` is asked for."""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstee._console import UsageError
from dstee.experiments.theory.problems import PROBLEMS

__all__ = ["Settings", "add_options"]

_HELP = {
    "problem": "what is trained (default: both)",
    "dim": "weights (default: 50)",
    "density": "share of active weights (default: 0.2)",
    "every": "dT: SGD steps a round (default: 10)",
    "rounds": "for Proposition 1 (default: 40)",
    "max_rounds": "for Proposition 2: Q is 4, 16, 64, ... up to this (default: 256)",
    "seeds": "problems with their start and first mask, drawn by seeds from 0 on (default: 10)",
    "condition": "largest over smallest eigenvalue of the quadratic, or of the samples' covariance (default: 10)",
    "noise": "sigma of the gradient: E|noise|^2 is its square (default: 0)",
    "draws": "of the noise, over which expectations are means with intervals (default: 64)",
}

_MEMORY = 2 << 30


@dataclass(frozen=True)
class Settings:
    """Checked as it is made.

    Raises:
        UsageError: a number is out of range.
    """

    problem: str = "both"
    dim: int = 50
    density: float = 0.2
    every: int = 10
    rounds: int = 40
    max_rounds: int = 256
    seeds: int = 10
    condition: float = 10.0
    noise: float = 0.0
    draws: int | None = None
    """None: 64 with noise, 1 without."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("dim", 2, 1000), ("every", 1, 10_000), ("rounds", 2, 100_000), ("max_rounds", 4, 100_000), ("seeds", 1, 1000),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{_option(name)} must be a whole number from {low} to {high:,}, got {value}")
        if self.problem not in ("both", *PROBLEMS):
            raise UsageError(f"--problem must be both, {' or '.join(PROBLEMS)}, got {self.problem}")
        if not (0 < self.density < 1 and 1 <= round(self.density * self.dim) < self.dim):
            raise UsageError(
                f"--density must leave at least one of {self.dim} weights active and one inactive: between {1 / self.dim:.3g} "
                f"and {1 - 1 / self.dim:.3g}, got {self.density}"
            )
        if not (math.isfinite(self.condition) and self.condition >= 1):
            raise UsageError(f"--condition must be a finite number >= 1, got {self.condition}")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise UsageError(f"--noise must be a finite number >= 0, the sigma of the gradient, got {self.noise}")
        if self.draws is None:
            object.__setattr__(self, "draws", 64 if self.noise else 1)
        elif not self.noise and self.draws != 1:
            raise UsageError("--draws needs --noise: without noise all draws are the same")
        elif self.noise and not 2 <= self.draws <= 10_000:
            raise UsageError(f"--draws must be a whole number from 2 to 10,000, which an interval needs, got {self.draws}")
        needed = 8 * self.seeds * (7 * self.dim**2 + self.number_of_draws * (12 * self.rounds + 12 * self.dim))
        if needed > _MEMORY:
            raise UsageError(
                f"this needs about {needed / 2**30:.1f} GiB, more than {_MEMORY / 2**30:.0f}: take fewer seeds, draws, rounds "
                "or a smaller dim"
            )

    @property
    def number_of_draws(self) -> int:
        assert self.draws is not None
        return self.draws

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(PROBLEMS) if self.problem == "both" else (self.problem,)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The numbers of rounds Q for Proposition 2: 4, 16, 64, ... up to ``max_rounds``."""
        return tuple(4**i for i in range(1, 10) if 4**i <= self.max_rounds)

    def command(self) -> str:
        """The command that repeats this on another machine, with every setting written out."""
        shown = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not self.noise:
            del shown["draws"]
        return " ".join(["dstee verify-theory", *(f"{_option(name)} {value}" for name, value in shown.items())])


def add_options(parser: argparse.ArgumentParser) -> None:
    """One for each field of :class:`Settings`, and ``--json``."""
    for field in dataclasses.fields(Settings):
        default = field.default
        options: dict[str, Any] = {"type": int, "metavar": "N"}
        if isinstance(default, str):
            options = {"choices": ("both", *PROBLEMS)}
        elif isinstance(default, float):
            options = {"type": float, "metavar": "X"}
        parser.add_argument(_option(field.name), default=default, help=_HELP[field.name], **options)
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, with the command and the versions")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
