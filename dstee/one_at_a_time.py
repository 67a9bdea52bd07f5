"""A guard against calls inside calls that survives an exception at any point."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Protocol

__all__ = ["OneAtATime"]


class Guarded(Protocol):
    _busy: OneAtATime | None

    def _settle(self) -> None: ...


class OneAtATime:
    """``with OneAtATime(owner, "step"):`` inside a method; ``owner._settle()`` runs before and after.

    A signal may come after the guard is set and before the ``with`` protects it. So the guard remembers the call that set it:
    what is left by a call that has ended does not count.

    Raises:
        RuntimeError: the owner is in such a block already, further up in this thread or in another one.
    """

    def __init__(self, owner: Guarded, what: str) -> None:
        self.owner = owner
        self.what = what
        self.thread = threading.get_ident()
        self.frame: FrameType | None = sys._getframe(1)

    def __enter__(self) -> None:
        other = self.owner._busy
        if other is not None and other.is_under_way():
            raise RuntimeError(
                f"{self.what}() called inside {other.what}() of the same SparseModel: take it out of the closure or hook"
            )
        self.owner._settle()
        self.owner._busy = self

    def __exit__(self, *exception: object) -> None:
        self.owner._busy = self.frame = None
        self.owner._settle()

    def is_under_way(self) -> bool:
        """False when the call that made this guard has ended."""
        if self.frame is None:
            return False
        if self.thread != threading.get_ident():
            return any(thread.ident == self.thread for thread in threading.enumerate())
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None
