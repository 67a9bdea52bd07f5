"""Loads the compiled module ``dstee._C`` once and remembers why it could not be loaded."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

import torch

OLDEST_TORCH = (2, 11)


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """(module, "") or (None, reason). The torch version is looked at before the library is opened."""
    if importlib.util.find_spec("dstee._C") is None:
        return None, "dstee._C is not built: run `pip install --no-build-isolation -e .` with a C++ compiler"
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        return None, f"torch {torch.__version__} found, dstee._C needs torch >= 2.11: upgrade torch"
    try:
        return importlib.import_module("dstee._C"), ""
    except ImportError as error:
        return None, f"dstee._C could not be loaded ({error}): rebuild it with `pip install --no-build-isolation -e .`"


def build_info() -> dict:
    """What the compiled module says of itself (compiler, flags, CUDA, CPU features), or ``{"error": reason}``."""
    module, reason = load()
    return module.build_info() if module else {"error": reason}
