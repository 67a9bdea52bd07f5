"""A table as Markdown that is read as text too, as LaTeX for booktabs, and as CSV with all its numbers."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable
from typing import Any, TextIO

from dstee._console import make_console
from dstee.experiments.fitting_table import FittingTable
from dstee.experiments.results.text import seed_list
from dstee.experiments.tables.table import Cell, Table
from dstee.experiments.tables.text import Sheet, Text, data_text, footer, made_by, sheets

__all__ = ["FORMATS", "as_csv", "as_latex", "as_markdown", "on_terminal"]

_MARKDOWN = re.compile(r"([\\|*`]|\](?=\()|(?<!\w)_|_(?!\w)|<(?=[a-zA-Z/!?]))")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": "$<$", ">": "$>$", "±": r"$\pm$",
    "†": r"$\dagger$",
}  # fmt: skip


def as_markdown(table: Table) -> str:
    parts = []
    for sheet in sheets(table):
        head = [_markdown(name) for name in sheet.header]
        lines = [
            [f"*{line}*"] + [""] * (len(head) - 1) if isinstance(line, str) else [_cell(t) for t in line]
            for line in sheet.lines
        ]
        widths = [max(3, *(len(line[i]) for line in [head, *lines])) for i in range(len(head))]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        parts.append(f"**{_markdown(sheet.title)}**\n\n" + "\n".join(_padded(line, widths) for line in (head, rule, *lines)))
    parts.append("\n".join(f"- {_markdown(line)}" for line in footer(table)))
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text)


def _cell(text: Text) -> str:
    star = _markdown(text.text)
    return f"**{star}**" if text.bold else star


def _padded(line: list[str], widths: list[int]) -> str:
    first, *rest = (
        f"{text:<{width}}" if i == 0 else f"{text:>{width}}" for i, (text, width) in enumerate(zip(line, widths, strict=True))
    )
    return "| " + " | ".join([first, *rest]) + " |"


def as_latex(table: Table) -> str:
    r"""Tables for ``\usepackage{booktabs}``."""
    notes = " ".join(_latex(line) for line in footer(table))
    parts = [_latex_table(sheet) for sheet in sheets(table)]
    return "% needs \\usepackage{booktabs}\n" + "\n".join(parts) + f"\n{{\\footnotesize\\noindent {notes}\\par}}\n"


def _latex_table(sheet: Sheet) -> str:
    width = len(sheet.header)
    lines = [
        r"\begin{table*}", r"\centering\footnotesize\setlength{\tabcolsep}{4pt}", rf"\caption{{{_latex(sheet.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
        r"\toprule", " & ".join(map(_latex, sheet.header)) + r" \\", r"\midrule",
    ]  # fmt: skip
    for i, line in enumerate(sheet.lines):
        if isinstance(line, str):
            lines += [r"\midrule"] * (i > 0) + [rf"\multicolumn{{{width}}}{{l}}{{\emph{{{_latex(line)}}}}} \\"]
        else:
            lines.append(" & ".join(rf"\textbf{{{_latex(t.text)}}}" if t.bold else _latex(t.text) for t in line) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


def _latex(text: str) -> str:
    """Escaped. A bracket or star at the start of a row would be an option of the line break before it."""
    escaped = "".join(_LATEX.get(c, c) for c in text)
    escaped = re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)  # a minus sign, not a hyphen
    escaped = escaped.replace("$>$=", r"$\geq$").replace(r"R\_max", r"$R_{\max}$")
    return "{}" + escaped if escaped.startswith(("[", "*")) else escaped


def as_csv(table: Table) -> str:
    """One line per label and column; scores, differences and standard deviations in 0..1, nothing rounded."""
    out = io.StringIO()
    writer = csv.DictWriter(out, ["group", "label", "method", *table.setting_names, *_FIELDS], lineterminator="\n")
    writer.writeheader()
    for group, labels in table.groups:
        for label in labels:
            for i, column in enumerate(table.columns):
                if (cell := table.cells.get((label, i))) is not None:
                    names = {"group": group, "label": label, "method": cell.rows[0].method}
                    names |= dict(zip(table.setting_names, column.values, strict=True))
                    writer.writerow(names | {name: read(table, cell) for name, read in _FIELDS.items()})
    return out.getvalue()


def _mean(name: str) -> Callable[[Table, Cell], Any]:
    return lambda table, cell: cell.means[name]


def _compared(read: Callable[[Any], Any]) -> Callable[[Table, Cell], Any]:
    return lambda table, cell: None if cell.comparison is None else read(cell.comparison)


_FIELDS: dict[str, Callable[[Table, Cell], Any]] = {
    "score": lambda table, cell: table.score,
    "seeds": lambda table, cell: seed_list(row.seed for row in cell.rows),
    "trainings": lambda table, cell: len(cell.rows),
    "diverged": lambda table, cell: len(cell.diverged),
    "mean": lambda table, cell: cell.mean,
    "std": lambda table, cell: cell.std,
    "best": lambda table, cell: int(cell.best) if table.comparisons_with_best else None,
    "baseline": lambda table, cell: table.baseline,
    "difference": _compared(lambda c: c.mean),
    "low": _compared(lambda c: c.interval and c.interval[0]),
    "high": _compared(lambda c: c.interval and c.interval[1]),
    "pairs": _compared(lambda c: c.pairs),
    "p": _compared(lambda c: c.p),
    "p_holm": lambda table, cell: cell.corrected,
    "comparisons": lambda table, cell: table.comparisons if table.baseline is not None else None,
    "verdict": lambda table, cell: cell.verdict,
    "all_equal": _compared(lambda c: int(c.all_equal)),
    "mean_density": _mean("mean_density"),
    "training_flops": _mean("training_flops"),
    "inference_flops": _mean("inference_flops"),
    "exploration": _mean("exploration"),
    "explored_share": _mean("explored_share"),
    "dead_units": _mean("dead_units"),
    "made_with": lambda table, cell: made_by(table),
    "trained_on": lambda table, cell: data_text(str(cell.rows[0].setting("data"))),
    "notes": lambda table, cell: "; ".join(table.notes),
}


def on_terminal(table: Table, stream: TextIO) -> None:
    """Prints it for reading, no wider than the terminal is."""
    console = make_console(stream)
    for sheet in sheets(table):
        shown = FittingTable(*sheet.header)
        for line in sheet.lines:
            if isinstance(line, str):
                shown.add_row(line, style="italic")
            else:
                shown.add_row(*((text, "bold") if bold else text for text, bold in line))
        console.print(sheet.title, style="bold", markup=False)
        console.print("", shown, "", sep="\n")
    for note in footer(table):
        console.print(textwrap.fill(f"- {note}", console.width, subsequent_indent="  "), markup=False)


FORMATS: dict[str, Callable[[Table], str]] = {"md": as_markdown, "csv": as_csv, "latex": as_latex}
