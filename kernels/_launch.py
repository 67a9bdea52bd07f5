"""What surrounds a launch: compiler options, the current device, the interpreter's lock."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import torch

OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}  # of every kernel: no fused multiply-adds
LIST_OPTIONS = OPTIONS | {"num_warps": 4}
LAYER_OPTIONS = OPTIONS | {"num_warps": 16}  # few programs, which wait for reductions: few numbers a thread
STORE_OPTIONS = OPTIONS | {"num_warps": 1}

_interpreter = threading.RLock()


@contextlib.contextmanager
def launching(device: torch.device) -> Iterator[None]:
    """A GPU is made current. The interpreter swaps functions while it runs: one thread at a time; numpy overflows silently."""
    if device.type == "cpu":
        with _interpreter, np.errstate(all="ignore"):
            yield
    else:
        with torch.get_device_module(device).device(device):
            yield
