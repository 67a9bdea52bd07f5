"""The pages for users: README.md and docs/, with the code that they show."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks", "commands", "links"]

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCED = re.compile(r"(?:^<!-- (needs|not run): ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SHELL = ("", "sh", "bash", "console")


@dataclass(frozen=True)
class Block:
    """A block of code. ``first_line``: of the code in its page, from 1.

    A comment in the line before the block says ``<!-- needs: one, two -->``, packages without which it does not run, or
    ``<!-- not run: why -->``; such code is compiled, and no more.
    """

    language: str
    text: str
    first_line: int
    needs: tuple[str, ...] = ()
    not_run: str = ""

    def missing(self) -> list[str]:
        """The packages that it needs and that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def blocks(page: str) -> Iterator[Block]:
    for match in _FENCED.finditer(page):
        kind, said = match[1], match[2] or ""
        needs = tuple(name.strip() for name in said.split(",")) if kind == "needs" else ()
        not_run = said if kind == "not run" else ""
        yield Block(match[3], match[4], page.count("\n", 0, match.start(4)) + 1, needs, not_run)


def commands(page: str) -> Iterator[list[str]]:
    """The lines of a page's shell blocks, in words, without comments and settings of the environment before them."""
    for block in blocks(page):
        if block.language not in _SHELL or block.not_run:
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:
                continue  # no shell
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                yield words


def links(page: str) -> list[str]:
    """Targets of relative links, without the place in the page."""
    text = re.sub(r"`[^`\n]*`", "", _FENCED.sub("", page))
    return re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
