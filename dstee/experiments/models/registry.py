"""The networks by the name that ``--model`` takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dstee._console import UsageError
from dstee._lookup import look_up
from dstee.experiments.references import call_by_names, is_reference, load_reference, required

__all__ = ["MODELS", "build", "find_model", "make"]

MODELS: dict[str, Callable[..., nn.Module]] = {}
"""The choices of ``--model``: functions that return a network with its initial weights from torch's global generator. They are
called with those arguments that their signature names, of ``hidden`` (widths) and of images ``input_shape`` (of one sample)
and ``classes``, of graphs ``features`` and ``message`` (:class:`dstee.experiments.models.gcn.GCN`)."""

_MADE: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # one that was trained is no beginning of the next training


def find_model(name: str) -> Callable[..., nn.Module]:
    """The network of this name, or a function of the user's own, ``package.module:make``.

    Raises:
        UsageError: there is none; the text has the nearest one.
    """
    if is_reference(name):
        return load_reference(name, "--model")
    try:
        return look_up("model", MODELS, name)
    except ValueError as error:
        raise UsageError(f"{error}; or a function of your own as package.module:make") from None


def build(name: str, input_shape: Sequence[int], classes: int, hidden: Sequence[int]) -> nn.Module:
    """The network ``name`` for images of this shape.

    Raises:
        UsageError: the images are none for it, or a user's function raised or made something else.
    """
    offered = {"input_shape": tuple(input_shape), "classes": classes, "num_classes": classes, "hidden": hidden}
    model = make(name, offered)
    if is_reference(name):
        _try(name, model, input_shape, classes)
    return model


def make(name: str, offered: dict[str, Any]) -> nn.Module:
    """The network ``name``, made with those of the ``offered`` arguments that its signature names.

    Raises:
        UsageError: it takes other arguments or values, or a user's function raised or made something else.
    """
    function = find_model(name)
    if missing := required(function) - offered.keys():
        raise UsageError(f"model {name} takes {', '.join(sorted(missing))}, which these data do not have: choose another one")
    try:
        model = call_by_names(function, offered)
    except UsageError:
        raise
    except Exception as error:
        if not is_reference(name):
            raise
        raise UsageError(f"--model {name} raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {name} must return a torch.nn.Module, got {type(model).__name__}")
    if model in _MADE:
        raise UsageError(f"--model {name} returned a network that it had returned before: it must make a new one at each call")
    _MADE.add(model)
    return model


@torch.no_grad()
def _try(name: str, model: nn.Module, input_shape: Sequence[int], classes: int) -> None:
    """A user's network on one sample, without a trace in its state or in the generator."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            got = model(torch.zeros(1, *input_shape))
    except Exception as error:
        raise UsageError(
            f"--model {name} cannot be called with a tensor of {[1, *input_shape]}: {type(error).__name__}: {error}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(got, Tensor) or got.shape != (1, classes):
        shape = list(got.shape) if isinstance(got, Tensor) else type(got).__name__
        raise UsageError(f"--model {name} must return scores of {[1, classes]} for one sample, got {shape}")
