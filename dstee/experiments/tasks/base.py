"""What a :class:`dstee.experiments.trial.Trial` trains: a network, the order of its data, its loss and how it is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dstee.experiments.config import Config

__all__ = ["Task"]


class Task(ABC):
    """One network with its data, at a place in the order of them.

    The seed decides the initial weights and the order of the data, the same for every method: trainings of one seed are
    paired. What is drawn at random in a step depends on the seed and the step alone, so that a resumed training draws the same.

    Attributes:
        key: as a data set names it. unit: what the samples are called ("images").
        reported: which epoch's scores are the training's result: the last one's, or those of the best by the score
            "validation".
        model: in training mode. steps_per_epoch: optimizer steps of an epoch.
        network: what :meth:`loss` calls; the model, or where several processes train it, what averages their gradients.
    """

    key: ClassVar[str]
    unit: ClassVar[str]
    reported: ClassVar[Literal["last", "best validation"]] = "last"
    model: nn.Module
    network: nn.Module
    device: torch.device
    steps_per_epoch: int

    @staticmethod
    @abstractmethod
    def prepare(data: Any, config: Config) -> Any:
        """``data`` as its source loaded it, cut to what ``config`` trains on; it has ``digest`` (hex) and ``size(part)``.

        Raises:
            UsageError: it cannot be cut so.
        """

    @abstractmethod
    def __init__(self, config: Config, seed: int, data: Any, device: torch.device) -> None:
        """``data`` as :meth:`prepare` returned it.

        Raises:
            UsageError: the settings do not fit the data.
        """

    def sparse_arguments(self) -> dict[str, Any]:
        """What ``dstee.sparsify`` is told beyond the settings, as ``exclude`` of layers that stay dense."""
        return {}

    @abstractmethod
    def loss(self, step: int) -> Tensor:
        """The loss of the next batch, that of optimizer step ``step`` (from 1), with its graph; moves on in the data."""

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """The network as it is, on data that it does not train on: "accuracy" (of the test set, in 0..1) and others, as
        "validation" (accuracy on what was held out), all in 0..1; in evaluation mode, which ends before it returns."""

    @abstractmethod
    def example(self) -> Any:
        """An input of one sample, for counting FLOPs: a tensor, a tuple of arguments or a dict."""

    @abstractmethod
    def samples(self) -> list[tuple[Any, Any]]:
        """Pairs (inputs, targets), for methods that look at data."""

    @abstractmethod
    def loss_of(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of the model's outputs for the inputs of :meth:`samples`."""

    @abstractmethod
    def state_dict(self) -> Mapping[str, Any]:
        """The exact place in the data; "position" counts the steps since the epoch's beginning (at its end, all of them)."""

    @abstractmethod
    def load_state_dict(self, state: Any) -> None:
        """Inverse of :meth:`state_dict`. Raises ValueError, before anything changes, if it is not one of these data."""
