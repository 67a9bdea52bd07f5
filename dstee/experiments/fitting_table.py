"""Tables for terminals of any width: no cell is cut, columns that do not fit stand below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dstee._console import column_blocks

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

__all__ = ["FittingTable"]

Cell = str | tuple[str, str]
"""A text, or one with the name of a style."""


class FittingTable:
    """Renders with rich as one table or, where that is wider than the console, as several below one another, each with the
    first ``keys`` columns.

    Args:
        columns: their headers, which may have several lines. keys: those to the left, by which a row is known; the others are
            figures and stand to the right.
    """

    GAP = 2

    def __init__(self, *columns: str, keys: int = 1):
        self.columns, self.keys = columns, keys
        self.rows: list[tuple[Sequence[Cell], str]] = []

    def add_row(self, *cells: Cell, style: str = "") -> None:
        """Columns beyond the last cell are empty."""
        self.rows.append(((*cells, *[""] * (len(self.columns) - len(cells))), style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.cells import cell_len

        widths = [
            max(map(cell_len, [*header.split("\n"), *(_text(cells[i]) for cells, _ in self.rows)]))
            for i, header in enumerate(self.columns)
        ]
        for number, block in enumerate(column_blocks(widths, options.max_width, self.keys, self.GAP)):
            if number:
                yield ""
            yield self._table(block, sum(widths[i] + self.GAP for i in block) - self.GAP <= options.max_width)

    def _table(self, block: Sequence[int], fits: bool) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
        for i in block:
            table.add_column(self.columns[i], justify="left" if i < self.keys else "right", no_wrap=fits, overflow="fold")
        for cells, style in self.rows:
            if any(_text(cells[i]) for i in block):
                texts = [Text(cell) if isinstance(cell, str) else Text(*cell) for cell in (cells[i] for i in block)]
                table.add_row(*texts, style=style or None)
        return table


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]
