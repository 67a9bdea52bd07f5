"""The page of results, made from the committed ones: ``python -m bench.results_page`` rewrites docs/results.md.

The page holds commands in comments, ``<!-- $ dstee table docs/results/digits.json -->``, and below each what it prints, up to
``<!-- / -->``; of ``<!-- overview $ dstee table ... -->`` the first table and the footer alone. What ``dstee figure`` draws is
shown, and of ``<!-- list FILE KEY -->`` the texts that the JSON file has there.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from dstee import cli

__all__ = ["PAGE", "commands", "filled", "main"]

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"
_LIST = re.compile(r"<!-- list (\S+) (\w+) -->\n.*?<!-- / -->", re.DOTALL)
_BLOCK = re.compile(r"<!-- (overview )?\$ (dstee (?:table|figure) [^\n]*) -->\n.*?<!-- / -->", re.DOTALL)


def commands(page: str) -> list[str]:
    """The commands that the page holds, in order."""
    return [match[2] for match in _BLOCK.finditer(page)]


def filled(page: str, pictures: bool = True) -> str:
    """``page`` with what its commands print below them; run from the project's root.

    Args:
        pictures: draw them, too; else their links alone are written.

    Raises:
        RuntimeError: a command failed; it has said why on the standard error.
    """

    def fill(match: re.Match[str]) -> str:
        words = shlex.split(match[2])[1:]
        text = _picture(words, pictures) if words[0] == "figure" else _output(words).rstrip("\n")
        if match[1]:
            first, *_, footer = text.split("\n\n**")[0], text.split("\n\n")[-1]
            text = f"{first}\n\n{footer}" if footer not in first else first
        return f"<!-- {match[1] or ''}$ {match[2]} -->\n{text}\n<!-- / -->"

    return _LIST.sub(_listed, _BLOCK.sub(fill, page))


def _listed(match: re.Match[str]) -> str:
    texts = json.loads((ROOT / match[1]).read_text())[match[2]]
    return f"<!-- list {match[1]} {match[2]} -->\n" + "\n".join(f"- {text}" for text in texts) + "\n<!-- / -->"


def _picture(words: list[str], draw: bool) -> str:
    if draw:
        _output(words)
    output = Path(words[words.index("--output") + 1])
    return f"![{words[1]}]({output.relative_to('docs').as_posix()})"


def _output(words: list[str]) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        status = cli.main(words)
    if status:
        raise RuntimeError(f"dstee {shlex.join(words)} ended with status {status}")
    return printed.getvalue()


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main(argv: Sequence[str] | None = None) -> None:
    description = (__doc__ or "").partition("\n")[0]
    argparse.ArgumentParser(prog="python -m bench.results_page", description=description).parse_args(argv)
    with _inside(ROOT):
        PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    main()
