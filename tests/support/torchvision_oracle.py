"""torchvision, where there is one that fits this torch."""

from __future__ import annotations

from types import ModuleType

import pytest


def import_torchvision() -> ModuleType:
    """Skips the test without it."""
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # RuntimeError: its kernels were built for another torch
        pytest.skip(f"needs a torchvision that fits this torch: {error}")
    return torchvision
