"""The methods by the key under which the command line and checkpoints know them. Own ones enter with :func:`register`, those of
installed packages through entry points of the group ``dstee.methods``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from dstee._lookup import load_plugins, look_up, refuse_unknown
from dstee.methods.base import Method

__all__ = ["METHODS", "find_method", "known_methods", "method_from_dict", "register"]

METHODS: dict[str, type[Method]] = {}
"""What has been registered so far; :func:`known_methods` loads what installed packages offer, too."""

M = TypeVar("M", bound=type[Method])


def register(method: M) -> M:
    """Class decorator, above ``@dataclass(frozen=True)``: ``method`` can be named in ``sparsify(method="key")`` and on the
    command line, and states that hold it can be loaded. A package offers its methods to everybody who installs it by an entry
    point of the group ``dstee.methods`` that names the module where they are registered.

    Raises:
        TypeError: it is no subclass of :class:`Method` with a ``name`` and a ``key``. ValueError: the key is taken.
    """
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise TypeError(f"a method is a subclass of dstee.methods.Method, got {method!r}")
    for attribute in ("name", "key"):
        if not isinstance(getattr(method, attribute, None), str):
            raise TypeError(f"{method.__name__} has no {attribute}: give the class a string")
    if METHODS.get(method.key, method) is not method:
        raise ValueError(f"the key {method.key!r} of {method.__name__} is taken by {METHODS[method.key].__name__}")
    METHODS[method.key] = method
    return method


def known_methods() -> dict[str, type[Method]]:
    """All methods by key, those of installed packages (entry points ``dstee.methods``) included."""
    load_plugins()
    return METHODS


def find_method(key: object) -> type[Method]:
    """The method with this key.

    Raises:
        ValueError: there is none, in no installed package either; the text has the nearest key.
    """
    return look_up("method", METHODS, key)


def method_from_dict(values: Mapping[str, str | float | bool]) -> Method:
    """Inverse of :meth:`Method.to_dict`.

    Raises:
        ValueError: the method is unknown, or a value is missing, unknown or out of range.
    """
    rest = dict(values)
    kind = find_method(rest.pop("method", None))
    refuse_unknown(f"the method {kind.key}", rest, [field.name for field in dataclasses.fields(kind) if field.init])
    for field in dataclasses.fields(kind):
        number = type(field.default) is float or field.default is None
        if number and type(rest.get(field.name, 0.0)) not in (int, float):
            raise ValueError(f"{field.name} of the method must be a number, got {rest[field.name]!r}")
    try:
        return kind.from_dict(rest)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"not a {kind.key} method: {dict(values)} ({error})") from None
