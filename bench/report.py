"""The HTML report: one file that loads nothing, runs nothing and can be read without colour. A picture and one table answer how
long dstee takes; all else is folded.

``report.html.j2`` is filled by jinja2, which escapes every value; the pictures alone, SVG that matplotlib has escaped, go in as
they are. The whole document lies in a script element that no browser runs and that no string in it can end.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dstee._console import UsageError, needs
from dstee._files import write_atomic

from . import overview, plots, scaling_report
from .lead_picture import lead_pictures
from .results_file import Document, Environment, Result, Row
from .table import caption, cells, kernel_line, roof_words

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["render", "require", "write"]

NEEDS = ("jinja2", "matplotlib")


class Table(NamedTuple):
    """A row of the document as the template shows it."""

    caption: str
    error: str
    head: tuple[str, ...]
    lines: list[tuple[Result, tuple[str, ...]]]
    kernels: str


def require() -> None:
    """Whether the report can be made here.

    Raises:
        UsageError: a library that it needs is not installed.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(needs("--html", " and ".join(missing), "report"))


def _template() -> Template:
    require()
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    text = importlib.resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def _table(row: Row) -> Table:
    if "error" in row:
        return Table(caption(row), row["error"], (), [], "")
    head, lines = cells(row)
    return Table(caption(row), "", head, [(row["contenders"][line[0]], line) for line in lines], kernel_line(row))


def _computed(document: Document) -> Iterator[tuple[str, str, str]]:
    """Op, name and rule of every contender."""
    rules: dict[tuple[str, str], str] = {}
    for row in document["rows"]:
        op = row["key"]["op"] if row["key"]["op"] != "scaling" else row["key"]["of"]
        for name, one in row.get("contenders", {}).items():
            if "rule" in one:
                rules[op, name] = one["rule"]
    return ((op, name, rule) for (op, name), rule in rules.items())


def _machine(stamp: Environment) -> Iterator[tuple[str, object]]:
    for name, value in stamp.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
        yield name, value


def render(document: Document) -> str:
    """The page.

    Raises:
        UsageError: a library that it needs is not installed.
    """
    template = _template()
    from markupsafe import Markup

    return template.render(
        document=document,
        stamp=document["stamp"],
        complete=document.get("complete"),
        lead=[(name, Markup(picture)) for name, picture in lead_pictures(document)],
        answer=overview.lines(document),
        roof=roof_words(document["rows"]),
        rows=[_table(row) for row in document["rows"] if row["key"]["op"] != "scaling"],
        growth=scaling_report.lines(document),
        sheets=scaling_report.sheets(document),
        above=scaling_report.above(document),
        pictures=[(name, Markup(picture)) for name, picture in plots.pictures(document)],
        computed=_computed(document),
        machine=_machine(document["stamp"]),
    )


def write(path: Path, document: Document) -> None:
    """Renders the page into a file; raises as :func:`render` does."""
    page = render(document).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, [page])
