"""Hosts keep state of their own between trainings of one process."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def fresh_accelerate() -> None:
    """All Accelerators of a process, the Trainer's among them, share one state: whether gradients are being added up, too."""
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
