"""The table of contenders. Every module of this package enters its own with :func:`register`, and so may others:

- ``--plugin module`` imports a module, which registers what it has (or holds it in a list ``CONTENDERS``);
- an installed package names such modules in its entry points, in the group ``dstee.contenders``.

This package is ``dstee.bench`` where it is installed and ``bench`` in a checkout; a list ``CONTENDERS`` of either one's classes
is understood by both.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from typing import cast

from .. import session, training
from ..session import Contender
from ..training import Stepper, Trainer

__all__ = ["GROUP", "contenders", "register", "steppers", "trainers"]

GROUP = "dstee.contenders"

Entry = Contender | Trainer | Stepper

_registered: dict[tuple[str, str], Entry] = {}
_from_outside: set[str] = set()  # modules that have been asked


def register(*found: Entry) -> None:
    """Adds contenders, for one op (:class:`Contender`), for whole training steps (:class:`Trainer`) or for what follows
    ``backward()`` in them (:class:`Stepper`).

    Raises:
        ValueError: there is one of this name for the same op.
    """
    for one in found:
        if (one.op, one.name) in _registered:
            raise ValueError(f"contenders of the same name: {one.name} ({one.op})")
        _registered[one.op, one.name] = one


def contenders(plugins: Sequence[str] = ()) -> list[Contender]:
    """All for the ops masked_sgd and drop_grow: dstee's, then those that need nothing but torch, then the others.

    ``plugins``: modules that are imported before.

    Raises:
        ImportError: a plugin cannot be imported.
        ValueError: a plugin brings none, or one of a name that is taken.
    """
    _load(plugins)
    found = [cast(Contender, one) for one in _registered.values() if one.op not in (Trainer.op, Stepper.op)]
    return sorted(found, key=lambda one: (not one.ours, one.why_not is not session.runs_anywhere))


def trainers(plugins: Sequence[str] = ()) -> list[Trainer]:
    """All for whole training steps, in the same order; raises as :func:`contenders` does."""
    _load(plugins)
    found = [cast(Trainer, one) for one in _registered.values() if one.op == Trainer.op]
    return sorted(found, key=lambda one: (not one.ours, one.why_not is not training.runs_anywhere))


def steppers(plugins: Sequence[str] = ()) -> list[Stepper]:
    """All for what follows ``backward()``, in the same order; raises as :func:`contenders` does."""
    _load(plugins)
    found = [cast(Stepper, one) for one in _registered.values() if one.op == Stepper.op]
    return sorted(found, key=lambda one: (not one.ours, one.why_not is not training.runs_anywhere))


def _load(plugins: Sequence[str]) -> None:
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__package__}.{module.name}")
    outside = [entry.module for entry in importlib.metadata.entry_points(group=GROUP)]
    for name in dict.fromkeys([*outside, *plugins]):
        _load_from_outside(name)


def _load_from_outside(name: str) -> None:
    if name in _from_outside:
        return
    is_new, before = name not in sys.modules, len(_registered)
    listed: Iterable[Entry] = getattr(importlib.import_module(name), "CONTENDERS", ())
    register(*listed)
    if is_new and len(_registered) == before:
        raise ValueError(f"{name} has no list CONTENDERS and enters nothing by {__name__}.register")
    _from_outside.add(name)
