"""Settings of single methods, ``--set name=value``: which there are, what their values mean, and the method they make."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from dstee._console import UsageError
from dstee._lookup import refuse_unknown
from dstee.methods import DSTEE, METHODS, Method

__all__ = ["STR", "SoftSettings", "Value", "check_settings", "make_method", "of_method", "parse_pairs", "soft_settings"]

Value: TypeAlias = "bool | int | float | str | None"

STR = "str"
"""The key of :class:`dstee.SoftThreshold`, which is no :class:`Method`."""
_OWN_OPTIONS = {"order": "--order", "c": "--c", "c_rel": "--c-rel", "eps": "--eps"}


@dataclass(frozen=True, kw_only=True)
class SoftSettings:
    """What STR's trainings take: ``init`` of the thresholds' logits, and their weight ``decay``."""

    init: float = -8.0
    decay: float = 0.02

    def __post_init__(self) -> None:
        if not math.isfinite(self.init):
            raise ValueError(f"init must be a finite number, got {self.init}")
        if not (math.isfinite(self.decay) and self.decay >= 0):
            raise ValueError(f"decay must be a finite number >= 0, got {self.decay}")


def parse_pairs(pairs: Iterable[str]) -> dict[str, Value]:
    """``name=value`` texts as a dict of texts.

    Raises:
        UsageError: one has no "=", or a name stands there twice.
    """
    found: dict[str, Value] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes name=value, got {pair!r}")
        if name in found:
            raise UsageError(f"--set {name} is given twice")
        found[name] = value
    return found


def check_settings(given: object, methods: Iterable[str], compared: bool) -> dict[str, Value]:
    """``given`` with values of the types that the methods' fields have; in a comparison names are ``key.name``.

    Raises:
        UsageError: a name or a value is none of these methods'.
    """
    if not isinstance(given, Mapping):
        raise UsageError(f"method_settings must be an object of names and values, got {given!r}")
    trained = list(methods)
    values: dict[str, Value] = {}
    for full, value in given.items():
        key, dot, name = str(full).rpartition(".")
        if compared and not dot:
            raise UsageError(f"--set {full}: a comparison needs the method's key before the name, as {trained[-1]}.{full}")
        key = key if dot else trained[0]
        if key not in trained:
            raise UsageError(f"--set {full}: {key!r} is not trained, but {', '.join(trained)}")
        values[f"{key}.{name}" if compared else name] = _typed(key, name, value)
    for key in trained:
        make_method(key, of_method(values, key, compared), {})
    return values


def of_method(values: Mapping[str, Value], key: str, compared: bool) -> dict[str, Value]:
    """Those of one method, by plain names."""
    if not compared:
        return dict(values)
    return {name.removeprefix(f"{key}."): value for name, value in values.items() if name.startswith(f"{key}.")}


def make_method(key: str, given: Mapping[str, Any], shared: Mapping[str, object]) -> Method | None:
    """The method ``key`` with its settings and those of the ``shared`` ones (order; c, c_rel and eps of DST-EE) that it has.

    None for what is no method: dense, STR.

    Raises:
        UsageError: the method's own objection.
    """
    try:
        if key == STR:
            soft_settings(given)
        if key not in METHODS:
            return None
        kind = METHODS[key]
        names = {"order"} | ({"c", "c_rel", "eps"} if issubclass(kind, DSTEE) else set())
        values: dict[str, Any] = {f.name: shared[f.name] for f in dataclasses.fields(kind) if f.name in names & shared.keys()}
        return kind(**values, **given)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{key}: {error}") from error


def soft_settings(given: Mapping[str, Any]) -> SoftSettings:
    return SoftSettings(**given)


def _typed(key: str, name: str, value: object) -> Value:
    kind: Any = METHODS.get(key, SoftSettings if key == STR else None)
    own = _OWN_OPTIONS if key in METHODS and issubclass(kind, DSTEE) else {"order": "--order"} if key in METHODS else {}
    fields = [] if kind is None else [f.name for f in dataclasses.fields(kind) if f.init and f.name not in own]
    if name in own:
        raise UsageError(f"--set {name}: it has an option of its own, {own[name]}")
    try:
        refuse_unknown(key, [name], fields)
    except ValueError as error:
        raise UsageError(str(error)) from None
    hint = get_type_hints(kind)[name]
    for one in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        found, read = _read(one, value)
        if found:
            return read
    shown = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise UsageError(f"{name} of {key} must be of type {shown}, got {value!r}")


def _read(hint: Any, value: object) -> tuple[bool, Value]:
    """Whether ``value``, a text or what JSON made of it, is one of type ``hint``, and which."""
    if hint is type(None):
        return value is None or value == "none", None
    if hint is str or get_origin(hint) is Literal:
        return (True, value) if isinstance(value, str) else (False, None)
    if hint is bool:
        if isinstance(value, bool):
            return True, value
        return (True, value == "true") if value in ("true", "false") else (False, None)
    if hint in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = hint(value)
        except (ValueError, OverflowError):
            return False, None
        exact = math.isfinite(number) and not (hint is int and isinstance(value, float))
        return (True, number) if exact else (False, None)
    return False, None
