"""What a run trains at a time: one trial, or those of many seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from dstee.experiments.config import Config
from dstee.experiments.many_seeds.training import ManySeeds
from dstee.experiments.trial import Trial

__all__ = ["Training", "make_training"]

Training: TypeAlias = Trial | ManySeeds


def make_training(config: Config, method: str, seeds: Sequence[int], data: Any) -> Training:
    """A fresh one, as an entry of :meth:`Config.trainings` says.

    Raises:
        UsageError: the configuration cannot be met.
    """
    return ManySeeds.of(config, method, seeds, data) if config.batch_seeds else Trial(config, method, seeds[0], data)
