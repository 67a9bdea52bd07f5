"""Submodules that are imported when somebody asks their package for them: ``import dstee; dstee.compat.patch(...)``."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from types import ModuleType


def submodule(package: str, name: str, known: Collection[str]) -> ModuleType:
    """What ``__getattr__`` of a package returns. Raises AttributeError for a name that is not one of ``known``, ImportError
    where the submodule needs what is not installed."""
    if name in known:
        return importlib.import_module(f"{package}.{name}")
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
