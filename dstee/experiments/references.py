"""A user's own functions, named on the command line as ``package.module:function``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from dstee._console import UsageError

__all__ = ["call_by_names", "is_reference", "load_reference", "required", "takes"]


def is_reference(name: object) -> bool:
    return isinstance(name, str) and ":" in name


def load_reference(name: str, option: str) -> Callable[..., Any]:
    """What ``name`` refers to; modules of the working directory are found, too.

    Raises:
        UsageError: it cannot be imported, or is nothing to call.
    """
    module, _, attribute = name.partition(":")
    where = os.getcwd()
    sys.path.insert(0, where)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # whatever a user's module does as it is imported
        raise UsageError(f"{option} {name} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        if where in sys.path:
            sys.path.remove(where)
    if not callable(found):
        raise UsageError(f"{option} {name} is no function but a {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether the signature names this argument."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled: nothing is known
        return False


def call_by_names(function: Callable[..., Any], offered: dict[str, Any]) -> Any:
    """``function`` with those of the ``offered`` arguments that its signature names."""
    return function(**{name: value for name, value in offered.items() if takes(function, name)})


def required(function: Callable[..., Any]) -> set[str]:
    """The names of the arguments that it must be called with."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # compiled: nothing is known
        return set()
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in parameters if p.default is p.empty and p.kind not in various}
