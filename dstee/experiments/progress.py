"""What ``dstee train`` shows: progress and table. rich draws; without a terminal it is plain lines, no control characters."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, get_args

from dstee._console import make_console, one_line
from dstee.experiments.config import Config, method_group, method_name, setting
from dstee.experiments.fitting_table import FittingTable
from dstee.experiments.records import Result
from dstee.experiments.training import Training
from dstee.experiments.trial import Trial
from dstee.methods.base import Group

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

__all__ = ["Progress", "Silent", "config_lines", "results_table"]


class Progress:
    """A bar over all steps of a run with loss, accuracy and R; without a terminal, a line now and then."""

    LINES = 8
    """Lines per training without a terminal, when it is the only one; a comparison prints one each."""

    NARROW = 90
    """Columns of a terminal below which there is a percentage instead of a bar."""

    def __init__(self, config: Config, warn: Callable[[str], None]):
        self.console = make_console(sys.stderr)
        self.count, self.index = len(config.trainings()), 0
        self.lines = 1 if self.count > 1 else self.LINES
        self._width = max(7, *(len(method_name(key)) for key in config.methods()))
        self._warn = warn
        self._title = 20  # letters
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            from rich.progress import BarColumn, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar
            from rich.table import Column

            title = TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=self._width + 7))
            state = TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True, overflow="crop"))
            columns: tuple[ProgressColumn, ...] = (title, BarColumn(None), state, TimeRemainingColumn())
            if self.console.width < self.NARROW:  # what names the training must stay, the bar need not
                columns = (title, TaskProgressColumn(table_column=Column(no_wrap=True, min_width=4)), state)
            self._bar = Bar(*columns, console=self.console)
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def warn(self, text: str) -> None:
        if self._bar is None:
            self._warn(text)
        else:
            self._bar.console.print(f"dstee: warning: {one_line(text)}", markup=False, soft_wrap=True)

    def start(self, training: Training) -> None:
        self.index += 1
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("", total=self.count * training.total, state="")
            title = f"{method_name(training.method)} {training.title} {self.index}/{self.count}"
            self._title = max(20, len(title))
            self._bar.update(self._task, description=f"{title:20}")
        elif training.step_number > 0:
            self._print(training, f"continues at step {training.step_number} of {training.total}")

    def advance(self, training: Training, loss: float) -> None:
        if self._bar is not None and self._task is not None:
            done = (self.index - 1) * training.total + training.step_number
            self._bar.update(self._task, completed=done, state=self._state(training, loss))
            return
        epochs = training.trials[0].config.epochs
        steps = training.total // epochs
        if training.step_number % (-(-epochs // self.lines) * steps) == 0 or training.step_number == training.total:
            self._print(training, f"epoch {training.step_number // steps:3d}/{epochs}  {_state(training, loss)}")

    def finish(self, training: Training) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=(self.index - 1) * training.total + training.step_number)

    def _state(self, training: Training, loss: float) -> str:
        """As much of it as the terminal has room for."""
        room = self.console.width - self._title - 6  # the percentage, and spaces
        whole = _state(training, loss)
        without_r = whole.rpartition("  ")[0]
        texts = (whole, without_r, without_r.replace("accuracy", "acc"), without_r.partition("  ")[0])
        return next((text for text in texts if len(text) <= room or self.console.width >= self.NARROW), texts[-1])

    def _print(self, training: Training, text: str) -> None:
        of = f"{self.index:{len(str(self.count))}}/{self.count}  " if self.count > 1 else ""
        print(f"{of}{method_name(training.method):{self._width}} {training.title}  {text}", file=sys.stderr, flush=True)


class Silent:
    """For the processes beside the first one."""

    def warn(self, text: str) -> None:
        pass

    def start(self, training: Training) -> None:
        pass

    def advance(self, training: Training, loss: float) -> None:
        pass

    def finish(self, training: Training) -> None:
        pass


def _state(training: Training, loss: float) -> str:
    """Means, where there are many seeds."""
    trials = training.trials
    accuracies = [a for trial in trials if (a := trial.accuracy()) is not None]
    explored = [r for trial in trials if (r := _exploration(trial)) is not None]
    shown = f"{100 * statistics.fmean(accuracies):5.2f}" if accuracies else "   --"
    return f"loss {loss:6.4f}  accuracy {shown} %  R {f'{statistics.fmean(explored):.3f}' if explored else '-'}"


def _exploration(trial: Trial) -> float | None:
    return trial.history[-1]["exploration"] if trial.history else trial.exploration()


def config_lines(config: Config) -> list[str]:
    """The settings in force, one line per group."""
    groups: dict[str, list[str]] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if (field.name == "method" and config.compare) or value in ("", ()):
            continue
        if field.name == "method_settings":
            shown = ",".join(f"{name}={one}" for name, one in value)
        else:
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        groups.setdefault(setting(field).group, []).append(f"{field.name}={shown}")
    return [f"{group:9} {'  '.join(values)}" for group, values in groups.items()]


def results_table(results: Sequence[Result]) -> FittingTable:
    """The closing table: one row per method, grouped; accuracy as mean ± standard deviation over the seeds."""
    seeds = len({r.seed for r in results})
    measured = f"accuracy %\n({seeds} seed{'s' * (seeds > 1)})"
    headers = ("mean\ndensity", "FLOPs\ninfer", "FLOPs\ntrain", "\nR", "R /\nR_max", "dead\nunits")
    table = FittingTable("\nmethod", measured, *headers)
    groups: dict[str, list[str]] = {}
    for method in dict.fromkeys(r.method for r in results):
        groups.setdefault(method_group(method), []).append(method)
    for group in (group for group in get_args(Group) if group in groups):
        if len(groups) > 1 and groups[group] != [group]:  # dense is the one of its kind
            table.add_row(group, style="italic")
        for method in groups[group]:
            table.add_row(method_name(method), *_figures([r for r in results if r.method == method]))
    return table


def _figures(rows: Sequence[Result]) -> tuple[str, ...]:
    """Of the seeds of one method; means are of those that did not diverge."""
    accuracy = _accuracy(rows)
    if not (rows := [r for r in rows if r.accuracy is not None]):
        return (accuracy, *["-"] * 6)
    explored = [(r.exploration, r.exploration / r.exploration_limit) for r in rows if r.exploration is not None]
    mean_r, share = (f"{statistics.fmean(x):.3f}" for x in zip(*explored, strict=True)) if explored else ("-", "-")
    return (
        accuracy, f"{statistics.fmean(r.mean_density for r in rows):.4f}",
        f"{statistics.fmean(r.inference_flops for r in rows):.3f}x", f"{statistics.fmean(r.training_flops for r in rows):.3f}x",
        mean_r, share, f"{statistics.fmean(r.dead_units for r in rows):.1%}",
    )  # fmt: skip


def _accuracy(rows: Sequence[Result]) -> str:
    """Of those that did not diverge; how many did."""
    values = [100 * r.accuracy for r in rows if r.accuracy is not None]
    diverged = f"{len(rows) - len(values)} of {len(rows)} diverged" if len(values) < len(rows) else ""
    return " ".join(text for text in (_spread(values) if values else "", diverged) if text)


def _spread(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean
