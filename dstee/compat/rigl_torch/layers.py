"""Which weights rigl-torch takes for layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

__all__ = ["rigl_layers", "weights"]


def weights(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter | None, nn.Module]]:
    """rigl-torch's layers in its order: name of the weight, weight, module.

    Whatever has a ``weight`` counts, norms and embeddings too, except BatchNorm2d; nothing inside it is looked at. The weight
    of a norm without one is None.
    """
    if hasattr(module, "weight") and type(module) is not nn.BatchNorm2d:
        yield f"{prefix}weight", cast("nn.Parameter | None", module.weight), module
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from weights(child, f"{prefix}{name}.")


def rigl_layers(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """rigl-torch's layers in its order: name of the weight, weight, whether it is a Linear."""
    for name, weight, owner in weights(module):
        if isinstance(weight, Tensor):  # a norm without weights stops the original
            yield name, weight, isinstance(owner, nn.Linear)
