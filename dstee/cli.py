"""The ``dstee`` command. Its exit statuses stand in ``dstee --help``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import dstee
from dstee import CheckpointError
from dstee._console import UsageError, complain, exit_status, one_line
from dstee._files import WriteError
from dstee._parser import Parser

if TYPE_CHECKING:
    from dstee.experiments.run_folder import Mode

__all__ = ["main", "make_parser"]

# What a command needs is imported when its name is parsed: `dstee info` waits neither for the trainer nor for bench.

_EPILOG = """exit status:
  0         done
  1         the answer is no: verify-resume found a difference, a run of sweep or reproduce failed,
            bench got a wrong result, bench compare found it slower
  2         the command line, a setting, a file or the machine does not allow it; a line says what to do
  3         bench compare cannot tell
  130, 143  stopped by Ctrl-C or SIGTERM; what was done is saved
  141       nobody reads the output any more, as in: dstee table runs | head -1

dstee COMMAND --help lists the options of a command.
"""


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dstee", description="Dynamic sparse training with exploration (DST-EE).", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"dstee {dstee.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, command in _COMMANDS.items():
        commands.add_parser(name, help=command.help, add_options=command.add_options)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (default: the process's) and returns the exit status.

    Raises:
        SystemExit: the command line cannot be parsed (2), or asks for help or the version (0).
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without the plus-minus sign is no reason to stop
    return exit_status(partial(_run, argv), CheckpointError, WriteError)


def _run(argv: Sequence[str] | None) -> int:
    args = make_parser().parse_args(argv)
    return _COMMANDS[args.command].run(args)


# --- settings of a training ----------------------------------------------------------------------------------------------


def widths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers as 512,256, got {text!r}") from None


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """One option per field of Config; what is not given is absent from the result."""
    from dstee.experiments.config import Config, setting

    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in dataclasses.fields(Config):
        meta, flag = setting(field), "--" + field.name.replace("_", "-")
        group = groups.get(meta.group) or groups.setdefault(meta.group, parser.add_argument_group(meta.group))
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": _help(field)}
        if field.name == "compare":
            options |= {"nargs": "?", "const": True, "metavar": "all|KEY,KEY"}
        elif field.name == "log":
            options |= {"action": "append", "metavar": "tensorboard|wandb"}
        elif field.name == "method_settings":
            flag = "--set"
            options |= {"action": "append", "metavar": "NAME=VALUE"}
        elif isinstance(field.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        elif meta.choices:
            options["choices"] = meta.choices()
        elif meta.names:
            options["metavar"] = f"{{{','.join(meta.names())}}} or MODULE:FUNCTION"
        else:
            options["type"] = widths if isinstance(field.default, tuple) else type(field.default)
            number = "N" if options["type"] is int else "TEXT" if options["type"] is str else "X"
            options["metavar"] = "N,N" if isinstance(field.default, tuple) else number
        group.add_argument(flag, **options)
    parser.add_argument("--config", metavar="FILE", help="settings as JSON, such as a run's config.json; options come on top")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data (default: $DSTEE_DATA)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: a new one under runs/)")


def _help(field: dataclasses.Field[object]) -> str:
    from dstee.experiments.config import setting
    from dstee.experiments.data import DATA_SETS

    text = setting(field).text.replace("%", "%%")
    if "default" in text:
        return text
    by_value: dict[str, list[str]] = {}
    for name, source in DATA_SETS.items():
        if (value := source.settings.get(field.name, field.default)) != field.default:
            by_value.setdefault(_shown(value), []).append(name)
    if not by_value and field.default in (False, (), ""):
        return text
    parts = [f"{value} for {', '.join(names)}" for value, names in by_value.items()]
    default = "; ".join([*parts, f"else {_shown(field.default)}" if parts else _shown(field.default)])
    return f"{text} (default: {default})"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _given(args: argparse.Namespace) -> dict[str, object]:
    from dstee.experiments.config import Config

    return {f.name: getattr(args, f.name) for f in dataclasses.fields(Config) if hasattr(args, f.name)}


# --- commands ------------------------------------------------------------------------------------------------------------


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_settings(parser)
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue the run in --out, or start it if there is none")
    existing.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--kill-at-step", type=int, metavar="N", help=argparse.SUPPRESS)


def _train(args: argparse.Namespace) -> int:
    from dstee.experiments import commands

    mode: Mode = "resume" if args.resume else "overwrite" if args.overwrite else "new"
    commands.train_from_options(_given(args), args.config, args.out, args.data_dir, mode, args.kill_at_step)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from dstee.experiments.commands import configuration
    from dstee.experiments.verify import verify_resume

    return verify_resume(configuration(_given(args), args.config), args.data_dir, args.out)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    from dstee.experiments.sweep.command import add_sweep_options

    add_sweep_options(parser)


def _sweep(args: argparse.Namespace) -> int:
    from dstee.experiments.sweep.run import sweep_from_options

    return sweep_from_options(args)


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
    from dstee.experiments.reproduce.command import add_options

    add_options(parser)


def _reproduce(args: argparse.Namespace) -> int:
    from dstee.experiments.reproduce.run import reproduce

    return reproduce(args)


def _info(args: argparse.Namespace) -> int:
    from dstee.experiments.info import info

    info()
    return 0


def _add_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--output", type=Path, metavar="FILE", help="PNG file (default, for one run: its curves.png)")


def _plot(args: argparse.Namespace) -> int:
    from dstee.experiments.plot import plot_runs

    if args.output is None and len(args.run) > 1:
        raise UsageError("several runs make one picture: pass --output FILE")
    output = args.output or args.run[0] / "curves.png"
    plot_runs(args.run, output, partial(complain, "warning"))
    print(f"picture  {one_line(output)}")
    return 0


def _add_figure(parser: argparse.ArgumentParser) -> None:
    from dstee.experiments.figures import command

    command.add_options(parser)


def _figure(args: argparse.Namespace) -> int:
    from dstee.experiments.figures import command

    return command.run(args)


def _add_table(parser: argparse.ArgumentParser) -> None:
    from dstee.experiments.tables import command as table_command

    table_command.add_options(parser)


def _table(args: argparse.Namespace) -> int:
    from dstee.experiments.tables import command as table_command

    return table_command.run(args)


def _add_theory(parser: argparse.ArgumentParser) -> None:
    from dstee.experiments.theory import settings

    settings.add_options(parser)


def _verify_theory(args: argparse.Namespace) -> int:
    from dstee.experiments.theory import command

    return command.run(args)


def _bench_module() -> ModuleType:
    import importlib
    import importlib.util

    return importlib.import_module("dstee.bench.cli" if importlib.util.find_spec("dstee.bench") else "bench.cli")  # a checkout


def _add_bench(parser: argparse.ArgumentParser) -> None:
    _bench_module().add_arguments(parser)


def _bench(args: argparse.Namespace) -> int:
    return int(_bench_module().run(args))


class _Command(NamedTuple):
    help: str
    run: Callable[[argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None] | None = None


_COMMANDS = {
    "train": _Command("train a sparse network, or compare methods", _train, _add_train),
    "verify-resume": _Command("prove that a killed and resumed training ends with the same bits", _verify, _add_settings),
    "verify-theory": _Command("in which rounds the paper's Propositions 1 and 2 hold", _verify_theory, _add_theory),
    "sweep": _Command("make all trainings of a grid file: methods x settings x seeds", _sweep, _add_sweep),
    "reproduce": _Command("make a table or figure of the paper, from its trainings on", _reproduce, _add_reproduce),
    "info": _Command("versions, build, and which backend can run where", _info),
    "plot": _Command("draw the curves of runs again", _plot, _add_plot),
    "figure": _Command("draw the paper's figures of runs", _figure, _add_figure),
    "table": _Command("compare the results of runs in a table, paired by seed", _table, _add_table),
    "bench": _Command("time the kernels on this machine, beside what else there is", _bench, _add_bench),
}
