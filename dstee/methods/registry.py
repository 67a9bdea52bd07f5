"""The methods by the key under which the command line and checkpoints know them. Own ones enter with :func:`register`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from dstee.methods.base import Method

__all__ = ["METHODS", "method_from_dict", "register"]

METHODS: dict[str, type[Method]] = {}

M = TypeVar("M", bound=type[Method])


def register(method: M) -> M:
    """Class decorator: ``method`` can be named on the command line, and states that hold it can be loaded.

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


def method_from_dict(values: Mapping[str, str | float | bool]) -> Method:
    """Inverse of :meth:`Method.to_dict`.

    Raises:
        ValueError: the method is unknown, or a value is missing, unknown or out of range.
    """
    rest = dict(values)
    key = rest.pop("method", None)
    if not isinstance(key, str) or key not in METHODS:
        raise ValueError(f"unknown method {key!r}, expected one of {', '.join(METHODS)}")
    for field in dataclasses.fields(METHODS[key]):
        number = type(field.default) is float or field.default is None
        if number and type(rest.get(field.name, 0.0)) not in (int, float):
            raise ValueError(f"{field.name} of the method must be a number, got {rest[field.name]!r}")
    try:
        return METHODS[key].from_dict(rest)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"not a {key} method: {dict(values)} ({error})") from None
