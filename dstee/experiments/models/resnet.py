"""Residual networks (He et al., 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dstee.experiments.models.shapes import channels_of

__all__ = ["resnet20", "resnet50", "resnet50_cifar"]


def resnet20(input_shape: Sequence[int], classes: int) -> nn.Module:
    """ResNet-20 for CIFAR: three groups of three blocks with 16, 32 and 64 channels, and shortcuts without parameters (option
    A: every second pixel, missing channels are 0): 0.27 M weights for images of 3 channels and 10 classes.

    Initial weights: normal, with variance 2 / fan-in.

    Raises:
        UsageError: the samples are no images [channels, height, width] of at least 8 x 8 pixels.
    """
    model = _ResNet20(channels_of("resnet20", input_shape, 8), classes)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return model


def resnet50(input_shape: Sequence[int], classes: int) -> nn.Module:
    """ResNet-50 for ImageNet: 7x7 convolution with stride 2 and max pooling, then 3, 4, 6 and 3 bottleneck blocks, whose 3x3
    convolution has the stride: 25.6 M weights for images of 3 channels and 1,000 classes.

    Names and initial weights as torchvision's: normal, with variance 2 / fan-out; PyTorch's default for the classifier.

    Raises:
        UsageError: the samples are no images [channels, height, width] of at least 32 x 32 pixels.
    """
    return _ResNet50(channels_of("resnet50", input_shape, 32), classes, small=False)


def resnet50_cifar(input_shape: Sequence[int], classes: int) -> nn.Module:
    """:func:`resnet50` with a 3x3 convolution without stride in the place of the first one, and without max pooling: 23.5 M
    weights for images of 3 channels and 10 classes.

    Raises:
        UsageError: the samples are no images [channels, height, width] of at least 8 x 8 pixels.
    """
    return _ResNet50(channels_of("resnet50-cifar", input_shape, 8), classes, small=True)


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride, self.more = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return torch.relu(x + y)


class _ResNet20(nn.Module):
    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(_Block(16, 32, 2), *(_Block(32, 32, 1) for _ in range(2)))
        self.layer3 = nn.Sequential(_Block(32, 64, 2), *(_Block(64, 64, 1) for _ in range(2)))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class _Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 (with the stride) and 1x1 with four times the channels, beside a shortcut that is a 1x1
    convolution where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class _ResNet50(nn.Module):
    def __init__(self, channels: int, classes: int, small: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3 if small else 7, 1 if small else 2, padding=1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _group(64, 64, 3, 1)
        self.layer2 = _group(256, 128, 4, 2)
        self.layer3 = _group(512, 256, 6, 2)
        self.layer4 = _group(1024, 512, 3, 2)
        self.fc = nn.Linear(2048, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def _group(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (_Bottleneck(4 * width, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(_Bottleneck(inputs, width, stride), *rest)
