"""The parsers of the command line: whose errors are two lines, which name what was probably meant."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from dstee._console import complain
from dstee._lookup import did_you_mean

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """``add_options`` adds the options when the parser is about to parse, so that what they need is imported only then.

    A command line that cannot be used ends the process with status 2, after a line on how the command is called and one on
    what is wrong.
    """

    def __init__(self, add_options: Callable[[argparse.ArgumentParser], None] | None = None, **settings: Any):
        super().__init__(**settings, allow_abbrev=False)
        self._add_options = add_options
        self._negative_number_matcher = re.compile(r"-\.?\d")  # -1e-3 and -1,2 are values too
        self.register("type", int, _whole_number)
        self.register("type", float, _number)
        if sys.version_info >= (3, 14):
            self.color = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._add_options is not None:
            add, self._add_options = self._add_options, None
            add(self)
        given = sys.argv[1:] if args is None else list(args)
        self._refuse_unknown(given)
        found, rest = super().parse_known_args(given, namespace)
        if rest:
            self.error(f"unexpected argument {rest[0]!r}")
        return found, rest

    def _refuse_unknown(self, given: Sequence[str]) -> None:
        """First of all, before what else is missing or wrong: it may be so because of a slip in an option's name."""
        commands = next((action for action in self._actions if isinstance(action, argparse._SubParsersAction)), None)
        for i, text in enumerate(given):
            if text == "--" or (commands is not None and _is_command(commands, text, i)):
                return  # what follows is the command's
            name = text.partition("=")[0]
            if len(text) < 2 or text[0] != "-" or " " in name or name in self._option_string_actions:
                continue
            if not self._negative_number_matcher.match(text):
                self.error(f"unknown option {name}{self._nearest(name)}")

    def _nearest(self, name: str) -> str:
        """The option that was probably meant: by its name, else by words of its help."""
        plain = name.strip("-").replace("_", "-").lower()
        shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
        options = {option.strip("-"): option for action in shown for option in action.option_strings if len(option) > 2}
        begun = [option for option in options if option.startswith(plain) and len(plain) > 2]
        near = begun or difflib.get_close_matches(plain, options, 1)
        words = plain.replace("-", " ")
        told = [action.option_strings[0] for action in shown if action.option_strings and words in (action.help or "")]
        found = [options[near[0]]] if near else told if len(words) > 4 else []
        return f" (did you mean {found[0]}?)" if found else ""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        what = (
            "command" if isinstance(action, argparse._SubParsersAction) else "/".join(action.option_strings) or action.metavar
        )
        choices = [str(choice) for choice in action.choices]
        hint = did_you_mean(value, choices)
        raise argparse.ArgumentError(None, f"{what} {value!r} is unknown{hint}: expected one of {', '.join(choices)}")

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """argparse's own says nothing where it cannot be written."""
        (sys.stdout if file is None else file).write(self.format_help())

    def error(self, message: str) -> NoReturn:
        needed = [a for a in self._actions if a.required or not (a.option_strings or isinstance(a, argparse._SubParsersAction))]
        formatter = argparse.HelpFormatter(self.prog, width=1000)
        formatter.add_usage(None, needed, [])
        print(f"{formatter.format_help().strip()} [options]; {self.prog} --help lists them", file=sys.stderr)
        complain("error", message.removeprefix("argument "))
        sys.exit(2)


def _is_command(commands: argparse._SubParsersAction[Any], text: str, place: int) -> bool:
    """Whether it names one, or is meant to: beside options with values, as bench has, only the first word is."""
    return text in commands.choices or (not text.startswith("-") and (commands.required or place == 0))


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
