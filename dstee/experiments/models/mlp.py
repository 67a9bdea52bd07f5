"""The multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

__all__ = ["mlp"]


def mlp(input_shape: Sequence[int], classes: int, hidden: Sequence[int]) -> nn.Sequential:
    """Linear and ReLU per hidden layer, then a linear classifier; PyTorch's default initial weights."""
    widths = (math.prod(input_shape), *hidden)
    model = nn.Sequential()
    model.add_module("flatten", nn.Flatten())
    for i, (inputs, outputs) in enumerate(zip(widths, hidden, strict=False), 1):
        model.add_module(f"hidden{i}", nn.Linear(inputs, outputs))
        model.add_module(f"relu{i}", nn.ReLU())
    model.add_module("output", nn.Linear(widths[-1], classes))
    return model
