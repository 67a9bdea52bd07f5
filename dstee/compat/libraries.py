"""The libraries that compat knows: one folder each. What a folder's ``patch`` and ``checkpoint`` modules enter is found here.

``patch.py`` of a folder defines a :class:`Patch`, ``checkpoint.py`` a :class:`CheckpointFormat`, as ``ENTRY``. A new folder
with one of them is a new library; nothing else changes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dstee._state_checks import is_int
from dstee.encoding import MAX_ROUNDS
from dstee.methods import Method
from dstee.schedule import UpdateSchedule

__all__ = ["CheckpointFormat", "Patch", "Progress", "State", "check_count", "checkpoint_formats", "patches"]


State = Mapping[str, Any]
"""A checkpoint as it was read; nothing in it is checked yet."""


@dataclass(frozen=True)
class Patch:
    """How :func:`dstee.compat.patch` treats a library's live objects.

    Args:
        expected: what a user calls such an object, for error messages.
        recognizes: whether an object is one.
        methods: the functions that take the place of its methods, by name, each with the object as first argument.
    """

    expected: str
    recognizes: Callable[[object], bool]
    methods: Callable[[Any], Mapping[str, Callable[..., Any]]]


@dataclass(frozen=True)
class Progress:
    """How far a training has come, as far as a checkpoint says so."""

    method: Method | None = None
    schedule: UpdateSchedule | None = None
    seed: int = 0
    t: int = 0
    round: int = 0


class CheckpointFormat:
    """What a library's checkpoints hold; a format overrides what its own hold more than masks.

    Class attribute ``kind``: its name in :func:`dstee.compat.checkpoints.kind`.
    """

    kind: str

    def recognizes(self, state: State) -> bool:
        """Whether ``state`` is in this format. ValueError where it is, but nothing can be made of it."""
        raise NotImplementedError

    def masks(self, state: State, model: nn.Module) -> Mapping[str, Any]:
        """The masks by parameter name of ``model``, as they are in ``state``; ValueError where they are of another model."""
        raise NotImplementedError

    def progress(self, state: State) -> Progress:
        """Method, schedule and steps; ValueError where ``state`` has them and they cannot go on."""
        return Progress()

    def counts(self, state: State, masks: Mapping[str, Tensor], round: int) -> Mapping[str, Tensor]:
        """Stored counters by parameter name: int16 [n], row-major, on the CPU; ValueError where they are damaged."""
        return {}

    def weights(self, state: State) -> dict[str, Tensor]:
        """The state of the plain model, where ``state`` holds it."""
        return {}


@functools.cache
def patches() -> list[Patch]:
    """Those of all libraries, by folder name."""
    return [entry for entry in _entries("patch") if isinstance(entry, Patch)]


@functools.cache
def checkpoint_formats() -> list[CheckpointFormat]:
    """Those of all libraries, by folder name."""
    return [entry for entry in _entries("checkpoint") if isinstance(entry, CheckpointFormat)]


def _entries(module: str) -> list[object]:
    """``ENTRY`` of that module in every folder that has it."""
    found: list[object] = []
    for folder in sorted(pkgutil.iter_modules(importlib.import_module("dstee.compat").__path__), key=lambda f: f.name):
        library = f"dstee.compat.{folder.name}"
        if folder.ispkg and importlib.util.find_spec(f"{library}.{module}") is not None:
            found.append(getattr(importlib.import_module(f"{library}.{module}"), "ENTRY", None))
    return found


def check_count(value: object, name: str) -> int:
    """A number of steps (t, step) or of mask updates in a checkpoint; ValueError where it is none."""
    if not isinstance(value, int) or not is_int(value, 0, 2**63 - 1 if name in ("t", "step") else MAX_ROUNDS - 1):
        raise ValueError(f"{name} must be an int >= 0, got {value!r}")
    return value
