"""Docstrings are written with Sphinx's roles; this makes Markdown of them, with links where the site has the object."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(?:([^`<]+) <([^`>]+)>|~?([^`]+))`")
_LITERAL_BLOCK = re.compile(r"::$", re.M)
_NEXT_ERROR = re.compile(r"(?<=\.)\s+(?=[A-Z]\w*(?:Error|Interrupt)(?:, \w+)*: )")
_CODE = re.compile(r"(``.*?``|`[^`]*`)", re.S)


class Docstrings(griffe.Extension):
    """Changes the docstring of every object that is read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        _visit(pkg)


def _visit(obj: griffe.Object) -> None:
    if obj.docstring is not None:
        obj.docstring.value = _markdown(obj, obj.docstring.value)
    for member in obj.members.values():
        if not member.is_alias:
            _visit(member)  # type: ignore[arg-type]  # no alias: an object


def _markdown(obj: griffe.Object, text: str) -> str:
    text = _ROLE.sub(lambda match: _link(obj, match[1] or match[3], match[2] or match[3]), text)
    text = _LITERAL_BLOCK.sub(":", text)
    text, heading, raised = text.partition("Raises:\n")
    text += heading + _NEXT_ERROR.sub("\n    ", raised)  # several errors of one paragraph
    parts = _CODE.split(text)
    return "".join(part if i % 2 else part.replace("**", r"\*\*") for i, part in enumerate(parts))


def _link(obj: griffe.Object, shown: str, target: str) -> str:
    """Optional: names of other projects, and of what the site leaves out, are code without a link."""
    return f'<autoref identifier="{_path(obj, target)}" optional>`{shown}`</autoref>'


def _path(obj: griffe.Object, target: str) -> str:
    first, *rest = target.removeprefix("dstee.").split(".")
    scope: griffe.Object | None = obj.package if target.startswith("dstee.") else obj
    while scope is not None:
        if first in scope.members:
            member = scope.members[first]
            of_class = bool(rest) and isinstance(member, griffe.Alias)  # its members are shown where it is defined
            return ".".join([member.target_path if of_class else f"{scope.path}.{first}", *rest])
        scope = scope.parent  # type: ignore[assignment]
    return target
