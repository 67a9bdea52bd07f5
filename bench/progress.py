"""How far a sweep is: a bar on a terminal, if rich is there; elsewhere nothing, since each row is printed as it is done."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Bar"]


class Bar:
    def __init__(self, rows: int) -> None:
        self._progress = _make_progress() if sys.stderr.isatty() else None
        if self._progress is not None:
            self._task = self._progress.add_task("", total=rows)

    def __enter__(self) -> Bar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, text: str) -> None:
        """Says what is being done."""
        if self._progress is not None:
            self._progress.update(self._task, description=text)

    def row_done(self) -> None:
        if self._progress is not None:
            self._progress.update(self._task, advance=1)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """The bar makes room for what is printed."""
        if self._progress is None:
            yield
            return
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()


def _make_progress() -> Progress | None:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        return None
    columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    return Progress(*columns, console=Console(file=sys.stderr), transient=True)
