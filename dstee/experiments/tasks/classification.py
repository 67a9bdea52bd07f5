"""Classification of images."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dstee._console import UsageError
from dstee.experiments import models, processes
from dstee.experiments.data.batch_order import BatchOrder, BatchOrderState
from dstee.experiments.data.images import Images, Part
from dstee.experiments.tasks.base import Task

if TYPE_CHECKING:
    from dstee.experiments.config import Config

__all__ = ["Classification"]

SEEN = 640
"""Training images, the first ones, for methods that look at data."""
_TEST_BATCH = 500
_AHEAD = 2
"""Batches that are read while one is trained on."""


class Classification(Task):
    """Cross entropy over classes; judged by the accuracy on the test set after the last epoch."""

    key = "classification"
    unit = "images"

    @staticmethod
    def prepare(data: Images, config: Config) -> Images:
        return data.limited(config.train_limit).held_out(config.validation).reading(config.workers)

    def __init__(self, config: Config, seed: int, data: Images, device: torch.device) -> None:
        self.config, self.seed, self.device = config, seed, device
        if len(data.shape) != 3 and config.augment:
            raise UsageError(f"augment crops and flips images, but a sample of {data.name} has the shape {list(data.shape)}")
        self.model = models.build(config.model, data.shape, data.classes, config.hidden).to(device)
        self.network = self.model
        self.order = BatchOrder(data.size("train"), config.batch_size, seed)
        self.steps_per_epoch = self.order.batches
        self.data = data.to(device)

    def loss(self, step: int) -> Tensor:
        coming = [self.order.next(), *self.order.ahead(_AHEAD)]
        mine = [(processes.share(indices), self.noise(step + i)) for i, indices in enumerate(coming)]
        self.data.prefetch(mine)
        x, y = self.fetch(*mine[0])
        with self._precision():
            return self.loss_of(self.network(x), y)

    def noise(self, step: int) -> int | None:
        """The seed by which the images of a step are cropped and flipped; None for as they are."""
        if not self.config.augment:
            return None
        return self.seed * 1_000_003 + step * processes.count() + processes.rank()

    def fetch(self, indices: Tensor, noise: int | None = None) -> tuple[Tensor, Tensor]:
        """Training images and labels on the network's device."""
        x, y = self.data.fetch(indices, noise)
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.config.precision))

    def scores(self) -> dict[str, float]:
        found = {"accuracy": self._accuracy("test")}
        return {**found, "validation": self._accuracy("validation")} if self.data.size("validation") else found

    @torch.no_grad()
    def _accuracy(self, part: Part) -> float:
        processes.broadcast_buffers(self.model)
        self.model.eval()
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        with self._precision():
            for x, y in self.data.batches_of(part, _TEST_BATCH, processes.rank(), processes.count()):
                hits += (self.model(x.to(self.device)).argmax(1) == y.to(self.device)).sum()
        self.model.train()
        return int(processes.total(hits)) / self.data.size(part)

    def example(self) -> Tensor:
        return self.fetch(torch.zeros(1, dtype=torch.int64))[0]

    def samples(self) -> list[tuple[Any, Any]]:
        seen = torch.arange(min(SEEN, self.data.size("train")))
        return [self.fetch(some) for some in seen.split(self.config.batch_size)]

    def loss_of(self, outputs: Any, targets: Any) -> Tensor:
        return cross_entropy(outputs, targets, label_smoothing=self.config.label_smoothing)

    def state_dict(self) -> BatchOrderState:
        return self.order.state_dict()

    def load_state_dict(self, state: BatchOrderState) -> None:
        self.order.load_state_dict(state)
