"""The ``dstee`` command. Exit status: 0 done, 1 verify-resume found a difference, 2 error, 130 SIGINT, 143 SIGTERM."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dstee
from dstee._console import UsageError, complain, make_console, one_line
from dstee._files import CheckpointError, parse_json, write_atomic
from dstee.experiments import progress as report
from dstee.experiments.config import BY_DATA, Config
from dstee.experiments.run_folder import WriteError


def widths(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """One option per field of Config; what is not given is absent from the result."""
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        meta, flag = field.metadata, "--" + field.name.replace("_", "-")
        group = groups.get(meta["group"]) or groups.setdefault(meta["group"], parser.add_argument_group(meta["group"]))
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": _help(field)}
        if isinstance(field.default, bool):
            options["action"] = "store_true" if field.default is False else argparse.BooleanOptionalAction
        elif meta.get("choices"):
            options["choices"] = meta["choices"]
        else:
            options["type"] = widths if isinstance(field.default, tuple) else type(field.default)
            options["metavar"] = "N,N" if isinstance(field.default, tuple) else "N" if options["type"] is int else "X"
        group.add_argument(flag, **options)
    parser.add_argument("--config", metavar="FILE", help="settings as JSON, such as a run's config.json; options come on top")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of mnist.npz (default: $DSTEE_DATA)")
    parser.add_argument("--out", metavar="DIR", help="run folder (default: a new one under runs/)")


def _help(field: dataclasses.Field) -> str:
    text = field.metadata["help"].replace("%", "%%")
    if (isinstance(field.default, bool) and not field.default) or "default" in text:
        return text
    by_data = {name: values[field.name] for name, values in BY_DATA.items() if field.name in values}
    shown = {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in by_data.items()}
    default = ", ".join(f"{value} for {name}" for name, value in shown.items()) or field.default
    return f"{text} (default: {default})"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dstee", description="Dynamic sparse training with exploration (DST-EE).", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"dstee {dstee.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", allow_abbrev=False, help="train a sparse network, or compare methods")
    _add_settings(train)
    existing = train.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue the run in --out, or start it if there is none")
    existing.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    train.add_argument("--kill-at-step", type=int, metavar="N", help=argparse.SUPPRESS)
    verify = commands.add_parser(
        "verify-resume", allow_abbrev=False, help="prove that a killed and resumed training ends with the same bits"
    )
    _add_settings(verify)
    commands.add_parser("info", allow_abbrev=False, help="versions, build, and which backend can run where")
    plot = commands.add_parser("plot", allow_abbrev=False, help="draw the curves of runs again")
    plot.add_argument("run", nargs="+", type=Path, metavar="RUN_DIR")
    plot.add_argument("--output", type=Path, metavar="FILE", help="PNG file (default, for one run: its curves.png)")
    bench = commands.add_parser("bench", allow_abbrev=False, help="time the kernels on this machine, beside what else there is")
    _bench().add_arguments(bench)
    if sys.version_info >= (3, 14):
        for each in (parser, *commands.choices.values()):
            each.color = False
    return parser


def _settings(args: argparse.Namespace, base: dict[str, Any]) -> Config:
    if args.config is not None:
        try:
            loaded = parse_json(Path(args.config).read_bytes())
            loaded = loaded.get("config", loaded)
            base = {**base, **loaded}
        except OSError as error:
            raise UsageError(f"--config {args.config} cannot be read: {error.strerror}") from error
        except (ValueError, AttributeError, TypeError) as error:
            raise UsageError(f"--config {args.config} is not a JSON object of settings: {error}") from error
    return Config.resolve(
        {**base, **{f.name: getattr(args, f.name) for f in dataclasses.fields(Config) if hasattr(args, f.name)}}
    )


def _default_folder(config: Config) -> Path:
    stem = f"runs/{config.data}-{'compare' if config.compare else config.method}"
    return next(path for i in range(1, 10**6) if not (path := Path(stem if i == 1 else f"{stem}-{i}")).exists())


def _command_train(args: argparse.Namespace) -> int:
    from dstee.experiments.run_folder import read_manifest

    if (args.resume or args.overwrite) and args.out is None:
        raise UsageError(f"--{'resume' if args.resume else 'overwrite'} needs --out DIR, the folder of the run")
    held = read_manifest(Path(args.out)) if args.resume else None
    config = _settings(args, held["config"] if held else {})
    path = Path(args.out) if args.out is not None else _default_folder(config)
    mode = "resume" if args.resume else "overwrite" if args.overwrite else "new"
    if held and (made_by := {k: held.get(k) for k in ("dstee", "torch")}) != (here := {k: _versions()[k] for k in made_by}):
        complain("warning", f"the run was started with {made_by}, this is {here}: its bits may differ from here on")
    train(config, path, args.data_dir, mode, args.kill_at_step)
    return 0


def train(
    config: Config, path: Path, data_dir: str | None, mode: str, kill_at_step: int | None = None, show_paths: bool = True
) -> None:
    """``dstee train``: everything is checked before the run folder is made.

    ``kill_at_step``: the process dies by SIGKILL after that many steps; ``show_paths`` names the files at the end.
    """
    import torch

    from dstee import backends
    from dstee.experiments import data, plot
    from dstee.experiments import run_folder as runs
    from dstee.experiments.train import run
    from dstee.experiments.trial import Trial

    dataset = data.load(config.data, data_dir)
    console = make_console(sys.stdout)
    try:
        backend = backends.resolve("drop_grow_", torch.device("cpu")).name
    except (ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    for method, seed in config.trials()[:5]:
        Trial(config, method, seed, dataset)
    versions = _versions()
    manifest = {
        "dstee": versions["dstee"],
        "torch": versions["torch"],
        "identity": config.identity(),
        "data_digest": dataset.digest,
        "config": config.to_dict(),
    }
    try:
        folder = runs.RunFolder(path, manifest, mode)
    except OSError as error:
        raise UsageError(f"the run folder {path} (--out) cannot be written: {error.strerror or error}") from error
    try:
        samples = f"{len(dataset.y_train):,} training and {len(dataset.y_test):,} test images"
        head = [
            f"dstee {versions['dstee']}  torch {versions['torch']}  backend {backend}  {samples}",
            *report.config_lines(config),
        ]
        console.print("\n".join(head), markup=False, soft_wrap=True)
        kill = None if kill_at_step is None else partial(_kill, kill_at_step)
        with report.Progress(config, partial(complain, "warning")) as progress:
            results = run(config, dataset, path, progress, after_step=kill)
        patience = runs.Patience("the results", partial(complain, "warning"))
        content = runs.json_file({"results": [dataclasses.asdict(result) for result in results]})
        patience.insist(lambda: write_atomic(path / "results.json", [content]))
        patience.insist(lambda: plot.plot_runs([path], path / "curves.png"))
        console.print("", report.results_table(results), sep="\n")
        if show_paths:
            console.print(f"\npicture  {path / 'curves.png'}\nmetrics  {path}/*/metrics.jsonl", markup=False, soft_wrap=True)
    finally:
        folder.close()


def _kill(at: int, step: int) -> None:
    if step >= at:
        os.kill(os.getpid(), signal.SIGKILL)


def _versions() -> dict[str, str]:
    import importlib.metadata

    import torch

    versions = {"dstee": dstee.__version__, "torch": torch.__version__}
    for package in ("numpy", "rich", "matplotlib", "scikit-learn"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _command_verify(args: argparse.Namespace) -> int:
    from dstee.experiments.verify import verify_resume

    return verify_resume(_settings(args, {}), args.data_dir, None if args.out is None else Path(args.out))


def _command_info(args: argparse.Namespace) -> int:
    import platform

    from dstee import backends
    from dstee.backends import native

    print(f"python {platform.python_version()} on {platform.platform()}")
    for package, version in _versions().items():
        print(f"{package} {version}")
    print("\nbuild of dstee._C")
    for key, value in native.build_info().items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        print(f"  {key}: {one_line(shown) or 'none'}")
    print(f"\nbackends (forced: {backends.forced() or 'none, the first that can run'})")
    for line in report.backend_lines():
        print(f"  {line}")
    return 0


def _bench() -> Any:
    import importlib
    import importlib.util

    return importlib.import_module("dstee.bench.cli" if importlib.util.find_spec("dstee.bench") else "bench.cli")  # a checkout


def _command_bench(args: argparse.Namespace) -> int:
    return int(_bench().run(args))


def _command_plot(args: argparse.Namespace) -> int:
    from dstee.experiments.plot import plot_runs

    if args.output is None and len(args.run) > 1:
        raise UsageError("several runs make one picture: pass --output FILE")
    output = args.output or args.run[0] / "curves.png"
    plot_runs(args.run, output, partial(complain, "warning"))
    print(f"picture  {one_line(output)}")
    return 0


_COMMANDS = {"train": _command_train, "verify-resume": _command_verify, "info": _command_info, "plot": _command_plot,
             "bench": _command_bench}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (default: the process's) and returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without the plus-minus sign is no reason to stop
    args = make_parser().parse_args(argv)
    try:
        return _COMMANDS[args.command](args)
    except (UsageError, CheckpointError, WriteError) as error:
        complain("error", error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        complain("error", f"{error.filename}: {error.strerror}" if error.filename else error)
    except KeyboardInterrupt:
        complain("stopped", "interrupted")
        return 128 + signal.SIGINT
    except Exception as error:
        from dstee.experiments.train import Interrupted

        if not isinstance(error, Interrupted):
            raise
        complain("stopped", f"{error}; the state is saved, continue with --resume")
        return 128 + error.signum
    return 2
