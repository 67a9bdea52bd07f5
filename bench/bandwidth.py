"""The machine's limit, measured in the same turns as the contenders: a parallel copy and a parallel read of large buffers."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["Bandwidth"]

BYTES = {"cpu": 1 << 28, "cuda": 1 << 29}


class Bandwidth:
    """``copy`` reads ``bytes`` and writes as many, ``read`` reads them: torch's sum, which runs at the speed of memory."""

    def __init__(self, device: str = "cpu", n_bytes: int | None = None) -> None:
        self.bytes = n_bytes or BYTES[device]
        self._source = torch.ones(self.bytes // 4, device=device)
        self._target = torch.zeros_like(self._source)

    def calls(self) -> dict[str, tuple[Callable[[], object], int]]:
        """Name -> (call, bytes it moves)."""
        copy = (lambda: self._target.copy_(self._source), 2 * self.bytes)
        return {"copy": copy, "read": (self._source.sum, self.bytes)}
