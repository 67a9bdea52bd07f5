"""Edits of the text of a PTX file: how tests plant a fault in what nvcc made of a kernel."""

from __future__ import annotations

import re

__all__ = ["Edit", "EditError", "Edits", "edited"]

Edit = tuple[str, str]  # a regular expression of one or more lines, and its replacement
Edits = tuple[Edit, ...]


class EditError(ValueError):
    """What is to be edited is not in the text."""


def edited(text: str, kernel: str, edits: Edits, which: int | None = None) -> str:
    """``text`` with ``edits`` made in the body of the first entry whose mangled name holds ``kernel``.

    which: the match that is replaced, counted from 0 and from the end where negative; None: all.

    Raises:
        EditError: there is no such entry, or no such match in it.
    """
    entry = re.search(rf"^(?:\.visible )?\.entry \w*\d{kernel}\w*\(.*?^}}$", text, re.M | re.S)
    if entry is None:
        raise EditError(f"the PTX has no entry {kernel}")
    body = entry[0]
    for pattern, replacement in edits:
        found = list(re.finditer(pattern, body))
        if which is not None and found:
            found = found[which : which + 1] if which >= 0 else found[which : which + 1 or None]
        if not found:
            raise EditError(f"{kernel} has no match {which} of {pattern!r}: edit it by what nvcc writes now")
        for match in reversed(found):
            body = body[: match.start()] + match.expand(replacement) + body[match.end() :]
    return text[: entry.start()] + body + text[entry.end() :]
