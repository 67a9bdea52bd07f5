"""``dstee verify-theory`` from its settings to its tables and its file."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from dstee._console import UsageError, make_console, needs
from dstee._files import dump_json, write_atomic
from dstee.experiments.info import versions
from dstee.experiments.theory.convergence import bound_constant, limit_of_static, mean_of_static, mean_squares
from dstee.experiments.theory.inequality import measure
from dstee.experiments.theory.problems import PROBLEMS, Quadratic
from dstee.experiments.theory.report import tables
from dstee.experiments.theory.results import MethodResult, ProblemResult, to_json
from dstee.experiments.theory.rounds import METHODS, Gradient, Round, first_masks, learning_rates, rounds
from dstee.experiments.theory.settings import Settings
from dstee.experiments.theory.verdict import verdict

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["measure_all", "run", "verify_theory"]

_CLOSED_FORM = (10**4, 10**6, 10**8)


def run(args: argparse.Namespace) -> int:
    """What ``settings.add_options`` has parsed."""
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)}
    return verify_theory(Settings(**given), args.json)


def verify_theory(settings: Settings, file: Path | None = None) -> int:
    """Measures, prints and, with ``file``, writes all figures there as JSON. Returns the exit status 0: that an inequality is
    violated is a result, no failure.

    Raises:
        UsageError: the file could not be written, or scipy is missing, found before anything is measured.
    """
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise UsageError(f"--json {file}: expected a file in a folder that exists")
    if settings.noise and importlib.util.find_spec("scipy") is None:
        raise UsageError(needs("--noise", "scipy", "cli"))
    console = make_console(sys.stdout)
    results = measure_all(settings)
    lines = verdict(results)
    for part in tables(settings, results):
        console.print(part, markup=False)
    console.print()
    for line in lines:
        console.print(
            textwrap.fill(line, min(80, console.width), subsequent_indent="  ", break_on_hyphens=False),
            markup=False,
            soft_wrap=True,
        )
    if file is not None:
        write_atomic(file, [dump_json(to_json(settings, results, lines, versions()))])
        console.print(f"\nfigures  {file}", markup=False, soft_wrap=True)
    return 0


def measure_all(settings: Settings) -> list[ProblemResult]:
    """All trainings that ``settings`` ask for. Shows its progress on standard error."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are so small that threads would only wait for each other
    try:
        with _Progress(settings) as progress:
            return [_measure(name, settings, progress) for name in settings.problems]
    finally:
        torch.set_num_threads(threads)


def _measure(name: str, settings: Settings, progress: _Progress) -> ProblemResult:
    seeds, every, sigma = range(settings.seeds), settings.every, settings.noise
    problem = PROBLEMS[name].random(seeds, settings.dim, settings.condition)
    masks = first_masks(settings.dim, settings.density, seeds)
    gradient = Gradient(sigma, settings.number_of_draws, seeds)
    found = []
    for method in METHODS:
        label = f"{name}, {method.name}"
        lr = learning_rates(problem, every)
        made = rounds(problem, method, masks, lr, every, settings.rounds, gradient)
        terms = measure(problem, progress.track(label, made), lr, every, sigma)
        means = {}
        for count in settings.lengths:
            made = rounds(problem, method, masks, learning_rates(problem, every, count), every, count, gradient)
            means[count] = mean_squares(problem, progress.track(label, made))
        found.append(MethodResult(method, terms, means))
        progress.finished(label)
    exact = {}
    if isinstance(problem, Quadratic) and sigma == 0:
        exact = {count: mean_of_static(problem, masks, every, count) for count in _CLOSED_FORM if count > settings.max_rounds}
    constant, limit = bound_constant(problem, masks, sigma), limit_of_static(problem, masks)
    return ProblemResult(name, problem.smoothness, found, constant, limit, exact)


class _Progress:
    """A bar over all rounds; without a terminal, a line for each method that is done."""

    def __init__(self, settings: Settings):
        self._console = make_console(sys.stderr)
        self._total = len(settings.problems) * len(METHODS) * (settings.rounds + sum(settings.lengths))
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> _Progress:
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description:20}"), BarColumn(None), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=self._total)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def track(self, label: str, made: Iterable[Round]) -> Iterator[Round]:
        for one in made:
            yield one
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, advance=1, description=label)

    def finished(self, label: str) -> None:
        if self._bar is None:
            print(f"measured  {label}", file=sys.stderr, flush=True)
