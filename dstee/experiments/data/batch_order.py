"""The order in which a training sees its samples."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from dstee._console import UsageError

__all__ = ["BatchOrder", "BatchOrderState"]


class BatchOrderState(TypedDict):
    """The exact position in the order of the data."""

    position: int
    permutation: Tensor
    generator: Tensor


class BatchOrder:
    """Shuffled batches of indices, epoch after epoch, with a generator of its own; an incomplete last batch is left out.

    ``state_dict`` holds the exact position, in the middle of an epoch too.
    """

    def __init__(self, size: int, batch_size: int, seed: int):
        if batch_size > size:
            raise UsageError(f"batch_size must be at most the {size} training samples, got {batch_size}")
        self.size, self.batch_size = size, batch_size
        self.batches = size // batch_size
        self.position = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._permutation = torch.randperm(size, generator=self._generator)

    def next(self) -> Tensor:
        """int64 [batch_size]: the samples of the next step."""
        if self.position == self.batches:
            self._permutation = torch.randperm(self.size, generator=self._generator)
            self.position = 0
        start = self.position * self.batch_size
        self.position += 1
        return self._permutation[start : start + self.batch_size]

    def ahead(self, count: int) -> list[Tensor]:
        """What :meth:`next` will return, ``count`` times or to the end of the epoch; does not move."""
        starts = range(self.position, min(self.position + count, self.batches))
        return [self._permutation[i * self.batch_size : (i + 1) * self.batch_size] for i in starts]

    def state_dict(self) -> BatchOrderState:
        return {
            "position": self.position,
            "permutation": self._permutation,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: BatchOrderState) -> None:
        """Raises ValueError, before anything changes, if the state is not one of this data and batch size."""
        position, permutation = state["position"], state["permutation"]
        if type(position) is not int or not 0 <= position <= self.batches:
            raise ValueError(f"the position in the data order must be in 0..{self.batches}, got {position!r}")
        if not torch.equal(permutation.sort().values, torch.arange(self.size)):
            raise ValueError(f"the data order is not a permutation of the {self.size} training samples")
        self._generator.set_state(state["generator"])
        self.position, self._permutation = position, permutation
