"""A network of three convolutions with stride 2: the smallest one that learns CIFAR on a laptop."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dstee.experiments.models.shapes import channels_of

__all__ = ["strided_cnn"]

_WIDTHS = (32, 64, 128)


def strided_cnn(input_shape: Sequence[int], classes: int) -> nn.Sequential:
    """3x3 convolutions of 32, 64 and 128 channels with stride 2, each with batch norm and ReLU, the mean over the pixels, and a
    linear classifier: 94 k weights for images of 3 channels and 10 classes. PyTorch's default initial weights.

    Raises:
        UsageError: the samples are no images [channels, height, width] of at least 5 x 5 pixels.
    """
    # From 5 pixels on, the last convolution sees more than one value, however small the batch is.
    channels = channels_of("strided-cnn", input_shape, 5)
    model = nn.Sequential()
    for i, width in enumerate(_WIDTHS, 1):
        model.add_module(f"conv{i}", nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False))
        model.add_module(f"norm{i}", nn.BatchNorm2d(width))
        model.add_module(f"relu{i}", nn.ReLU())
        channels = width
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("output", nn.Linear(channels, classes))
    return model
