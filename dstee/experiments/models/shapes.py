"""What convolutional networks ask of the images."""

from __future__ import annotations

from collections.abc import Sequence

from dstee._console import UsageError

__all__ = ["channels_of"]


def channels_of(model: str, input_shape: Sequence[int], smallest: int) -> int:
    """The channels of images [channels, height, width], each side of at least ``smallest`` pixels.

    Raises:
        UsageError: the samples are no such images.
    """
    if len(input_shape) != 3:
        raise UsageError(f"--model {model} takes images [channels, height, width], a sample has the shape {list(input_shape)}")
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise UsageError(
            f"--model {model} takes images of at least {smallest} x {smallest} pixels, a sample has the shape "
            f"{list(input_shape)} of [channels, height, width]"
        )
    if channels < 1:
        raise UsageError(f"--model {model} takes images with channels, a sample has the shape {list(input_shape)}")
    return channels
