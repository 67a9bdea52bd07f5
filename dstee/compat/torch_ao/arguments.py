"""What ``DSTEESparsifier`` takes, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.ao.pruning.sparsifier.utils import get_arg_info_from_tensor_fqn
from torch.nn.utils import parametrize

from dstee import methods
from dstee.compat.plain_masks import check_mask
from dstee.methods import Method
from dstee.sparse_layer import check_parameter

__all__ = ["Magnitude", "active_weights", "check_config", "check_level", "method_from_dict", "to_method"]


@dataclass(frozen=True)
class Magnitude(Method):
    """Gradual magnitude pruning: keeps the largest weights; swaps none. Zero weights it must grow come by index."""

    name = "magnitude"
    key = "magnitude"


_SWAPS = (
    methods.DSTEE,
    methods.RigL,
    methods.SET,
)  # whose updates a sparsifier knows how to make


def _known() -> dict[str, type[Method]]:
    return {key: cls for key, cls in methods.METHODS.items() if issubclass(cls, _SWAPS)} | {Magnitude.key: Magnitude}


def to_method(method: str | Method) -> Method:
    """A method by its name, or itself.

    Raises:
        TypeError, ValueError: it is none, unknown, or wants to replace the optimizer's step.
    """
    if isinstance(method, str):
        known = _known()
        if method not in known:
            raise ValueError(f"unknown method {method!r}, expected one of {', '.join(known)}")
        return known[method](order="after")
    if not isinstance(method, Method):
        raise TypeError(f"method must be a name or a dstee Method, got {type(method).__name__}")
    if method.updates and not isinstance(method, (*_SWAPS, Magnitude)):
        raise ValueError(
            f"{method.name} is none of the methods that a sparsifier can run, {', '.join(_known())}: use dstee.sparsify"
        )
    if method.updates and method.order == "replace":
        raise ValueError(
            f"{method.name} with order='replace' must own the optimizer's step, which a sparsifier does not: pass "
            "order='after', and to update instead of stepping call `if not sparsifier.step(): optimizer.step()`"
        )
    return method


def method_from_dict(values: Mapping[str, Any]) -> Method:
    """:func:`dstee.methods.method_from_dict`, and "magnitude"."""
    plain = dict(values)
    if plain.get("method") != Magnitude.key:
        return methods.method_from_dict(plain)
    plain.pop("method")
    return Magnitude(**plain)


def check_level(name: str, level: object) -> None:
    """Raises TypeError or ValueError unless ``level`` is a number in [0, 1]."""
    if isinstance(level, bool) or not isinstance(level, (int, float)):
        raise TypeError(f"{name} must be a number in [0, 1], got {type(level).__name__}")
    if not 0 <= level <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {level}")


def active_weights(n: int, level: float) -> int:
    """Active weights of a layer of n at a sparsity level, as ``WeightNormSparsifier`` with blocks of one weight counts."""
    return 0 if level >= 1 else n - min(round(level * n), n - 1)


def check_config(model: nn.Module, entry: Mapping[str, Any]) -> None:
    """Raises ValueError or TypeError when a layer of ``prepare``'s config is not there or cannot be sparse as asked."""
    fqn = entry["tensor_fqn"].lstrip(".")
    info = get_arg_info_from_tensor_fqn(model, fqn)
    weight = getattr(info["module"], info["tensor_name"], None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"tensor_fqn {fqn!r}: the model has no such parameter")
    if parametrize.is_parametrized(info["module"], info["tensor_name"]):
        raise ValueError(f"{fqn} is parametrized already: squash or remove that first")
    check_parameter(fqn, weight)
    for key in ("sparse_block_shape", "zeros_per_block", "parametrization", "nearliness", "sparsity"):
        if key in entry:
            raise ValueError(f"{fqn}: {key} is not supported; the share of zeros is sparsity_level")
    if "sparsity_level" in entry:
        check_level(f"sparsity_level of {fqn}", entry["sparsity_level"])
    if entry.get("mask") is not None:
        check_mask(fqn, entry["mask"], weight.shape)
