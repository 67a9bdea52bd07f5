"""What ``dstee sweep`` shows: one bar over all runs, or a line for each that ends where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from dstee._console import complain, make_console, one_line
from dstee.experiments.sweep.check import PlannedRun

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

__all__ = ["Estimate", "SweepProgress", "duration"]


def duration(seconds: float) -> str:
    """As h:mm:ss, with days where there are any."""
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    return (f"{days} d " if days else "") + f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"


class Estimate:
    """The time that is left, from what runs of the same kind have taken for a sample; from all kinds where that is unknown.

    Args:
        runs: all that are to be made.
    """

    def __init__(self, runs: Iterable[PlannedRun], clock: Callable[[], float] = time.monotonic):
        self._runs = {run.run.name: run for run in runs}
        self._clock = clock
        self._begun: dict[str, float] = {}
        self._share: dict[str, tuple[float, float]] = {}  # of the work: at the begin, now
        self._ended: set[str] = set()
        self._past: dict[tuple[object, ...], tuple[float, float]] = {}  # seconds, samples

    def begin(self, name: str) -> None:
        self._begun[name], self._share[name] = self._clock(), (0.0, 0.0)

    def place(self, name: str, share: float, first: bool = False) -> None:
        """``share`` of the run is done; ``first``: it begins there, torch and the data being loaded."""
        self._share[name] = (share if first else self._share[name][0], share)
        if first:
            self._begun[name] = self._clock()

    def end(self, name: str, whole: bool = True) -> None:
        """It is over; one that failed (not ``whole``) says nothing of the others."""
        begun, (since, _) = self._begun.pop(name), self._share.pop(name)
        self._ended.add(name)
        if whole and since < 1:
            run = self._runs[name]
            seconds, samples = self._past.get(run.kind, (0.0, 0.0))
            self._past[run.kind] = seconds + self._clock() - begun, samples + run.work * (1 - since)

    def put_back(self, name: str) -> None:
        """It will be begun again."""
        self._begun.pop(name), self._share.pop(name)

    @property
    def done(self) -> float:
        """Share of all the work."""
        total = sum(run.work for run in self._runs.values())
        running = sum(self._runs[name].work * now for name, (_, now) in self._share.items())
        return (sum(self._runs[name].work for name in self._ended) + running) / total if total else 1.0

    def left(self, workers: int) -> float | None:
        """Seconds until the end, by ``workers`` processes; None while nothing is known."""
        known = dict(self._past)
        for name, (since, now) in self._share.items():
            if now - since > 0.02:
                kind = self._runs[name].kind
                seconds, samples = known.get(kind, (0.0, 0.0))
                known[kind] = (
                    seconds + self._clock() - self._begun[name], samples + self._runs[name].work * (now - since)
                )  # fmt: skip
        if not known:
            return None
        overall = sum(s for s, _ in known.values()) / sum(n for _, n in known.values())
        total = longest = 0.0
        for name, run in self._runs.items():
            if name in self._ended:
                continue
            seconds, samples = known.get(run.kind, (overall, 1.0))
            need = run.work * (1 - self._share.get(name, (0.0, 0.0))[1]) * seconds / samples
            total, longest = total + need, max(longest, need)
        return max(longest, total / max(1, workers))


class SweepProgress:
    """Shows the runs that are ``to_do`` of ``count``."""

    def __init__(self, to_do: list[PlannedRun], count: int, workers: int):
        self.console = make_console(sys.stderr)
        self.estimate = Estimate(to_do)
        self.count, self.ended, self.workers = count, count - len(to_do), workers
        self._width = max((len(run.run.name) for run in to_do), default=0)
        self._bar: Bar | None = None
        self._all: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> SweepProgress:
        if self.console.is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar
            from rich.table import Column

            wide = self.console.width >= 60
            name = TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=3)
            )
            state = TextColumn("{task.fields[state]}", markup=False, table_column=Column(no_wrap=True, justify="right"))
            columns = (name, BarColumn(None, table_column=Column(ratio=1)), state) if wide else (name, state)
            self._bar = Bar(*columns, console=self.console, expand=True)
            self._all = self._bar.add_task("", total=1.0, state="")
            self._bar.start()
            self._show()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def warn(self, text: str) -> None:
        if self._bar is None:
            complain("warning", text)
        else:
            self._bar.console.print(f"dstee: warning: {one_line(text)}", markup=False, soft_wrap=True)

    def begin(self, name: str) -> None:
        self.estimate.begin(name)
        if self._bar is not None:
            self._tasks[name] = self._bar.add_task(name, total=1.0, state="")

    def step(self, name: str, share: float, accuracy: float | None, first: bool) -> None:
        self.estimate.place(name, share, first)
        if self._bar is not None:
            shown = "" if accuracy is None else f"{100 * accuracy:.2f} %"
            self._bar.update(self._tasks[name], completed=share, state=shown)
            self._show()

    def put_back(self, name: str) -> None:
        self.estimate.put_back(name)
        self._hide(name)

    def end(self, name: str, text: str, whole: bool) -> None:
        """``text`` says how it went."""
        self.estimate.end(name, whole)
        self._hide(name)
        self.ended += 1
        left = self.estimate.left(self.workers)
        about = f"  about {duration(left)} left" if left is not None and self.ended < self.count else ""
        of = f"{self.ended:{len(str(self.count))}}/{self.count}"
        if self._bar is None:
            print(f"{of}  {name:{self._width}}  {text}{about}", file=sys.stderr, flush=True)
        else:
            self._bar.console.print(f"{of}  {name}  {text}", markup=False, soft_wrap=True)
            self._show()

    def _hide(self, name: str) -> None:
        if self._bar is not None:
            self._bar.remove_task(self._tasks.pop(name))

    def _show(self) -> None:
        assert self._bar is not None and self._all is not None
        left = self.estimate.left(self.workers)
        state = "" if left is None else f"{duration(left)} left"
        self._bar.update(self._all, completed=self.estimate.done, description=f"{self.ended}/{self.count} runs", state=state)
