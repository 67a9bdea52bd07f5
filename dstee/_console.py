"""What the commands print, and the errors of which a user sees one line instead of a traceback."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console


class UsageError(ValueError):
    """What was asked for cannot be done; the text is the one line that the user sees."""


class Interrupted(Exception):
    """A signal asked the command to stop; what it has done is saved, and goes on as ``how`` says."""

    def __init__(self, signum: int, how: str = "continue with --resume"):
        super().__init__(signal.Signals(signum).name)
        self.signum, self.how = signum, how


def one_line(text: object) -> str:
    """``text`` without line breaks and control characters, which file names may hold."""
    return "".join(c if c.isprintable() else " " for c in " ".join(str(text).split()))


def complain(kind: str, text: object) -> None:
    """One line on stderr."""
    print(f"dstee: {kind}: {one_line(text)}", file=sys.stderr, flush=True)


def make_console(stream: TextIO) -> Console:
    """A rich console for ``stream`` that sends control characters to a terminal only, whatever the environment says."""
    try:
        from rich.console import Console
    except ImportError as error:
        raise UsageError("the command line needs rich: pip install rich") from error
    terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=terminal,
        force_interactive=terminal,
        color_system="auto" if terminal else None,
        width=None if terminal else 120,
        highlight=False,
    )
