"""Sparse training where somebody else owns the training loop: Lightning, the Trainer of transformers, accelerate.

No host is imported before its module here is, and none is a dependency of dstee.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["accelerate", "lightning", "logging", "transformers"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
