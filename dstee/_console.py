"""How a command is run, what it prints, and the errors of which a user sees one line instead of a traceback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

UNREAD = 128 + 13
"""Exit status where nobody reads the output any more: that of a program which SIGPIPE ends."""


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


def needs(what: str, package: str, extra: str) -> str:
    """``what`` lacks a package, and which extra of dstee brings it."""
    return f'{what} needs {package}: pip install "dstee[{extra}]"'


# --- running a command ---------------------------------------------------------------------------------------------------


def exit_status(run: Callable[[], int], *expected: type[Exception]) -> int:
    """That of ``run()``; of what ends it early, one line is told. ``expected``: errors whose text says enough, beside those of
    the operating system and :class:`UsageError`."""
    try:
        try:
            with _plain_warnings():
                return _run(run, (UsageError, *expected))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # finds now, not when Python ends, that it cannot be written
    except BrokenPipeError:
        _discard_output()
        return UNREAD
    except OSError as error:
        _discard_output()
        complain("error", f"the output cannot be written: {error.strerror or error}")
        return 2


def _run(run: Callable[[], int], expected: tuple[type[Exception], ...]) -> int:
    try:
        return run()
    except expected as error:
        complain("error", error)
    except BrokenPipeError:
        raise
    except OSError as error:
        complain("error", f"{error.filename}: {error.strerror}" if error.filename else error)
    except KeyboardInterrupt:
        complain("stopped", "interrupted")
        return 128 + signal.SIGINT
    except Interrupted as error:
        complain("stopped", f"{error}; the state is saved, {error.how}")
        return 128 + error.signum
    return 2


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings of dstee are lines as others that it prints, each text once."""
    told: set[str] = set()
    package = os.path.dirname(__file__) + os.sep
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, *more: object) -> None:
            if not filename.startswith(package):
                usual(message, category, filename, *more)  # type: ignore[arg-type]
            elif (text := one_line(message)) not in told:
                told.add(text)
                complain("warning", text)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _discard_output() -> None:
    """Sends what the streams still hold, and what comes later, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


# --- tables and terminals ------------------------------------------------------------------------------------------------


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def column_blocks(widths: Sequence[int], room: int | None, keys: int = 1, gap: int = 2) -> list[list[int]]:
    """Which columns of these widths, ``gap`` apart, fit side by side into ``room``: blocks to be shown below one another, of
    which each begins with the first ``keys`` columns. One more column stands in each even where it does not fit."""
    head = list(range(keys))
    blocks = [list(head)]
    for column in range(keys, len(widths)):
        needed = sum(widths[i] + gap for i in (*blocks[-1], column)) - gap
        if room is not None and needed > room and len(blocks[-1]) > keys:
            blocks.append(list(head))
        blocks[-1].append(column)
    return blocks


def make_console(stream: TextIO) -> Console:
    """A rich console for ``stream`` that sends control characters to a terminal only, whatever the environment says."""
    try:
        from rich.console import Console
    except ImportError as error:
        raise UsageError(needs("the command line", "rich", "cli")) from error

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            """Raises what rich caught; it would end the process itself."""
            raise  # it is called while the error is handled

    terminal = stream.isatty()
    return Plain(
        file=stream,
        force_terminal=terminal,
        force_interactive=terminal,
        color_system="auto" if terminal else None,
        width=None if terminal else 120,
        highlight=False,
    )
