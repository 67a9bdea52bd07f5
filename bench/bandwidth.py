"""The machine's limit, measured in the same turns as the contenders: copies and reads of large buffers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

__all__ = ["Bandwidth"]

BYTES = {"cpu": 1 << 28, "cuda": 1 << 29}
PARTS = 8  # of the buffer, for each thread of numpy's


class Bandwidth:
    """``copy`` reads ``bytes`` and writes as many. The others read them in several ways, since which one runs at the speed of
    memory differs between machines: torch's sum; on a CPU also its product of a vector with itself, and numpy's maximum of
    parts that threads take as they come, which another process on a core stalls least."""

    def __init__(self, device: str = "cpu", n_bytes: int | None = None) -> None:
        self.bytes = n_bytes or BYTES[device]
        self._source = torch.ones(self.bytes // 4, device=device)
        self._target = torch.zeros_like(self._source)
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads)

    def copy(self) -> tuple[Callable[[], object], int]:
        """The call, and the bytes that it moves."""
        return (lambda: self._target.copy_(self._source), 2 * self.bytes)

    def reads(self) -> dict[str, tuple[Callable[[], object], int]]:
        """The same of the reads, by name."""
        x = self._source
        found: dict[str, Callable[[], object]] = {"sum": x.sum}
        if x.device.type == "cpu":
            parts = np.array_split(x.numpy(), PARTS * self._threads)
            found["dot"] = lambda: torch.dot(x, x)
            found["max"] = (lambda: list(self._pool.map(np.max, parts))) if self._threads > 1 else x.numpy().max
        return {name: (call, self.bytes) for name, call in found.items()}
