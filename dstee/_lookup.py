"""Entries by key: found here, in packages that add their own, or refused with the nearest key that there is."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import TypeVar

GROUP = "dstee.methods"
"""Entry points of this group name modules that register methods and drop schedules as they are imported."""

T = TypeVar("T")

_seen: set[tuple[str, str]] = set()


def load_plugins() -> None:
    """Imports what the entry points ``dstee.methods`` of installed distributions name, each once.

    One that fails is left out, with a warning that names it and its distribution.
    """
    for entry in metadata.entry_points(group=GROUP):
        if (entry.name, entry.value) in _seen:
            continue
        _seen.add((entry.name, entry.value))  # first: what it imports may come back here
        try:
            entry.load()
        except Exception as error:
            dist = "an unknown distribution" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
            warnings.warn(
                f"the entry point {entry.name} = {entry.value} of {dist} could not be loaded, so what it registers in dstee is "
                f"missing ({type(error).__name__}: {error}): repair or uninstall that distribution",
                RuntimeWarning,
                stacklevel=3,
            )


def did_you_mean(name: object, choices: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` with the nearest of ``choices``; empty where none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(name).lower(), by_lower, 1)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""


def look_up(what: str, table: Mapping[str, T], key: object) -> T:
    """``table[key]``, after plugins were loaded where it is not there yet.

    Raises:
        ValueError: there is no ``what`` with this key; the text has the nearest one.
    """
    if isinstance(key, str) and key not in table:
        load_plugins()
    if not isinstance(key, str) or key not in table:
        raise ValueError(f"unknown {what} {key!r}{did_you_mean(key, table)}, expected one of {', '.join(table)}")
    return table[key]


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for settings that ``what`` does not have, with the nearest that it has."""
    known = list(known)
    for name in given:
        if name not in known:
            raise ValueError(
                f"{what} has no setting {name!r}{did_you_mean(name, known)}, but {', '.join(known) or 'none at all'}"
            )
