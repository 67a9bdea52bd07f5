"""Labelled images: what every data set of classification offers, and the one that lies in memory as a whole."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from dstee._console import UsageError

__all__ = ["Dataset", "Images", "Part", "standardised"]

Part = Literal["test", "validation"]
I = TypeVar("I", bound="Images")  # noqa: E741


class Images(ABC):
    """Labelled images for training, for the test and, once some were held out, for choosing.

    Attributes:
        name: the key of the data set. note: what a report must say of it ("" for nothing).
        shape: of one image, as convolutions take it: channels, height, width.
        classes: labels are in 0..classes-1.
    """

    name: str
    classes: int
    note: str = ""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def digest(self) -> str:
        """hex; equal for equal data alone."""

    @abstractmethod
    def size(self, part: Literal["train"] | Part) -> int: ...

    @abstractmethod
    def fetch(self, indices: Tensor, noise: int | None = None) -> tuple[Tensor, Tensor]:
        """A batch of the training set.

        Args:
            indices: int64 [n].
            noise: None for the images as they are; else the seed by which they are cropped and flipped at random, the same
                for the same seed.

        Returns:
            Standardised float32 [n, *shape] and int64 [n], where :meth:`to` put them.
        """

    @abstractmethod
    def batches_of(self, part: Part, size: int, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """A part in order, ``size`` or less at a time, as :meth:`fetch` gives them; of these batches every ``every``-th from
        the ``first`` on, as one of several processes needs them."""

    @abstractmethod
    def limited(self: I, count: int) -> I:
        """With the first ``count`` training images alone, standardised as all of them; 0: as it is.

        Raises:
            UsageError: there are not so many.
        """

    @abstractmethod
    def held_out(self: I, count: int) -> I:
        """With the last ``count`` training images as the part "validation" instead; 0: as it is.

        Raises:
            UsageError: there are not so many.
        """

    def to(self: I, device: torch.device) -> I:
        """With its tensors there, if it has any in memory."""
        return self

    def reading(self: I, workers: int) -> I:
        """With so many threads that read files, if there are any; what they read does not depend on it."""
        return self

    def prefetch(self, coming: Iterable[tuple[Tensor, int | None]]) -> None:  # noqa: B027  # most need nothing
        """Announces the next calls of :meth:`fetch`, in order, for those that read files; it may be asked for others all the
        same."""


@dataclass(frozen=True)
class Dataset(Images):
    """Images that lie in memory: float32 and standardised by the training set, or uint8 with ``mean`` and ``std``.

    Args:
        x_train, x_test: [n, features] or [n, channels, height, width]. y_train, y_test: int64 [n] in 0..classes-1.
        view: the shape of one image, where x has only its features.
        mean, std: of the channels, in units of the pixels; for uint8 alone.
        pad: pixels of black around an image, out of which a crop at random is taken; with it goes a flip at random.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    view: tuple[int, ...] | None = None
    classes: int = 10
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    x_validation: Tensor | None = None
    y_validation: Tensor | None = None
    pad: int = 4
    note: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view or tuple(self.x_train.shape[1:])

    def size(self, part: Literal["train"] | Part) -> int:
        y = getattr(self, f"y_{part}")
        return 0 if y is None else len(y)

    @functools.cached_property
    def digest(self) -> str:
        """blake2b (16 bytes, hex) of all tensors."""
        hasher = hashlib.blake2b(digest_size=16)
        parts = (self.x_train, self.y_train, self.x_test, self.y_test, self.x_validation, self.y_validation)
        for tensor in parts:
            if tensor is not None:
                hasher.update(tensor.cpu().numpy().data)
        return hasher.hexdigest()

    def fetch(self, indices: Tensor, noise: int | None = None) -> tuple[Tensor, Tensor]:
        indices = indices.to(self.x_train.device)
        x = self._standard(self.x_train.index_select(0, indices))
        return (x if noise is None else _augmented(x, noise, self.pad)), self.y_train[indices]

    def batches_of(self, part: Part, size: int, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
        if y is not None:
            for some, labels in zip(x.split(size)[first::every], y.split(size)[first::every], strict=True):
                yield self._standard(some), labels

    def _standard(self, x: Tensor) -> Tensor:
        x = x.view(-1, *self.shape)
        if self.mean is None or self.std is None:
            return x
        mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x.float() - mean) / std

    def limited(self, count: int) -> Dataset:
        if count > len(self.y_train):
            raise UsageError(f"train_limit must be at most the {len(self.y_train)} training images, got {count}")
        return dataclasses.replace(self, x_train=self.x_train[:count], y_train=self.y_train[:count]) if count else self

    def held_out(self, count: int) -> Dataset:
        if not count:
            return self
        rest = len(self.y_train) - count
        if rest < 1:
            raise UsageError(f"validation must be less than the {len(self.y_train)} training images, got {count}")
        return dataclasses.replace(
            self, x_train=self.x_train[:rest], y_train=self.y_train[:rest], x_validation=self.x_train[rest:],
            y_validation=self.y_train[rest:],
        )  # fmt: skip

    def to(self, device: torch.device) -> Dataset:
        names = [f.name for f in dataclasses.fields(self) if isinstance(getattr(self, f.name), Tensor)]
        moved = dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in names})
        moved.__dict__["digest"] = self.digest  # once is enough
        return moved


def _augmented(x: Tensor, noise: int, pad: int) -> Tensor:
    """Each image out of its surroundings of zeros (the mean, as standardised images have it) by an offset, and flipped or not.

    The numbers come from the CPU's generator, so that they are the same on every device.
    """
    generator = torch.Generator().manual_seed(noise)
    n, _, height, width = x.shape
    offsets = torch.randint(2 * pad + 1, (2, n, 1), generator=generator).to(x.device)
    flip = (torch.rand(n, generator=generator) < 0.5).to(x.device)
    rows = offsets[0] + torch.arange(height, device=x.device)
    columns = offsets[1] + torch.arange(width, device=x.device)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    padded = torch.nn.functional.pad(x, (pad, pad, pad, pad))
    sample = torch.arange(n, device=x.device)
    return padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def standardised(name: str, view: tuple[int, ...], x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor) -> Dataset:
    """Pixels as float32 [n, features] with mean 0 and variance 1 over the training set."""
    x_train, x_test = (x.flatten(1).float() for x in (x_train, x_test))
    # Pixels are small whole numbers: both sums are exact.
    mean = x_train.sum(dtype=torch.float64).item() / x_train.numel()
    square = x_train.square().sum(dtype=torch.float64).item() / x_train.numel()
    x_train, x_test = ((x - mean) / math.sqrt(square - mean * mean) for x in (x_train, x_test))
    return Dataset(name, x_train, y_train.long(), x_test, y_test.long(), view)
