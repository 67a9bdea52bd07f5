"""Networks of 3x3 convolutions and pooling (Simonyan and Zisserman, 2015), as they are used on CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dstee.experiments.models.shapes import channels_of

__all__ = ["vgg19", "vgg_lite"]

# Channels of the convolutions, grouped by what stands between two poolings.
_LITE = ((32,), (64,), (128, 128))
_VGG19 = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)


def vgg_lite(input_shape: Sequence[int], classes: int) -> nn.Sequential:
    """Four convolutions of 32, 64, 128 and 128 channels, two poolings: 242 k weights for images of 3 channels and 10 classes.

    Batch norm, classifier and initial weights as in :func:`vgg19`.

    Raises:
        UsageError: the samples are no images [channels, height, width] of at least 8 x 8 pixels.
    """
    return _vgg("vgg-lite", _LITE, 8, input_shape, classes)


def vgg19(input_shape: Sequence[int], classes: int) -> nn.Sequential:
    """VGG-19 as in the literature on sparse training: 16 convolutions with batch norm and no bias, four poolings, the mean over
    the pixels, and one linear classifier of 512 features: 20.0 M weights for images of 3 channels and 10 classes.

    Initial weights: normal, with variance 2 / fan-out for convolutions (He et al., 2015), deviation 0.01 for the classifier.

    Raises:
        UsageError: the samples are no images [channels, height, width] of at least 16 x 16 pixels.
    """
    return _vgg("vgg19", _VGG19, 16, input_shape, classes)


def _vgg(
    name: str, plan: tuple[tuple[int, ...], ...], smallest: int, input_shape: Sequence[int], classes: int
) -> nn.Sequential:  # fmt: skip
    channels = channels_of(name, input_shape, smallest)
    model = nn.Sequential()
    number = 0
    for i, widths in enumerate(plan):
        if i:
            model.add_module(f"pool{i}", nn.MaxPool2d(2))
        for width in widths:
            number += 1
            model.add_module(f"conv{number}", nn.Conv2d(channels, width, 3, padding=1, bias=False))
            model.add_module(f"norm{number}", nn.BatchNorm2d(width))
            model.add_module(f"relu{number}", nn.ReLU())
            channels = width
    model.add_module("mean", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("output", nn.Linear(channels, classes))
    for module in model:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
    return model
