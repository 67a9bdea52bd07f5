"""A model with the layers of a case, as a library that wants modules needs it, and gradients that are exactly given."""

from __future__ import annotations

import importlib.metadata
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ..layers import Layers
from ..shapes import Shape


def installed(package: str, version: str) -> str | None:
    """None if there, else the reason; versions differ, so the one that the adapter is written for is named."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"{package} is not installed (make bench-peers; written for {version})"
    return None


def module_for(shape: Shape, flat: bool = False) -> nn.Linear | nn.Conv2d:
    """A layer whose weight has ``shape``: Linear for matrices, Conv2d for four dimensions (``flat``: Linear for all)."""
    if len(shape) == 4 and not flat:
        return nn.Conv2d(shape[1], shape[0], (shape[2], shape[3]), bias=False, device="meta")
    if len(shape) == 2 or flat:
        return nn.Linear(math.prod(shape[1:]) if len(shape) > 1 else 1, shape[0], bias=False, device="meta")
    raise ValueError(f"no module has a weight of shape {list(shape)}")


def model_of(layers: Layers, *, flat: bool = False, first: nn.Module | None = None) -> nn.Sequential:
    """One module per layer, weights copied. ``first``: a further module in front."""
    modules: list[nn.Module] = [] if first is None else [first]
    for p in layers.params:
        module = module_for(tuple(p.shape), flat)
        module.weight = nn.Parameter(p.detach().clone().view(module.weight.shape))
        modules.append(module)
    return nn.Sequential(*modules)


class Holder(nn.Module):
    """A module that only has a weight, this one."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight


def parametrized_weights(model: nn.Sequential) -> tuple[list[Tensor], list[nn.Module]]:
    """The weights behind the parametrizations of each module, and the first parametrization, which holds the mask."""
    lists = [cast(ParametrizationList, cast(nn.ModuleDict, module.parametrizations)["weight"]) for module in model]
    return [one.original for one in lists], [one[0] for one in lists]


def backward(weights: list[Tensor], grads: list[Tensor]) -> None:
    """A backward pass whose gradient of weights[i] is exactly grads[i]."""
    torch.autograd.backward(weights, [g.view(w.shape) for w, g in zip(weights, grads, strict=True)])
