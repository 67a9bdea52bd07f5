"""Sparse training where somebody else owns the training loop: Lightning, the Trainer of transformers, accelerate.

No host is imported before its module here is, and none is a dependency of dstee.
"""

from __future__ import annotations

from types import ModuleType

from dstee import _lazy

__all__ = ["accelerate", "lightning", "logging", "transformers"]


def __getattr__(name: str) -> ModuleType:
    return _lazy.submodule(__name__, name, __all__)
