"""``dstee sweep``: all trainings of a grid file in one folder, over several processes, so that they can go on at any time."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dstee._console import Interrupted, UsageError, complain, make_console
from dstee._files import write_atomic
from dstee.experiments.run_folder import hold_folder, refuse_link
from dstee.experiments.sweep.check import PlannedRun, check_folders, check_trainings, load_all
from dstee.experiments.sweep.command import SweepOptions, options_of
from dstee.experiments.sweep.grid import Grid, GridRun, read_grid
from dstee.experiments.sweep.progress import SweepProgress, duration
from dstee.experiments.sweep.workers import Worker, Workers
from dstee.experiments.train import _Signals

__all__ = ["gpus_of", "jobs_of", "run_sweep", "sweep_from_options"]

_POLL = 0.25
_warn = partial(complain, "warning")


def sweep_from_options(args: argparse.Namespace) -> int:
    """``dstee sweep``; its exit status."""
    more = {"device": args.device} if args.device else {}
    return run_sweep(read_grid(args.grid, more), options_of(args))


def run_sweep(grid: Grid, options: SweepOptions, loaded: Mapping[str, Any] | None = None) -> int:
    """Makes the runs that are not finished; 0, or 1 where some failed. ``loaded``: the data, where they have been read before.

    Raises:
        UsageError: before a run begins. Interrupted: after SIGINT or SIGTERM, with all states saved.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("a sweep starts its own processes: run it without torchrun")
    console = make_console(sys.stdout)
    out = options.out
    refuse_link(out)
    if (out / "config.json").exists():
        raise UsageError(f"{out} is the folder of a run (dstee train): choose another --out for a sweep")
    planned = check_trainings(grid.runs, out, load_all(grid.runs, options.data_dir) if loaded is None else loaded)
    if options.dry_run:
        planned = check_folders(planned, _warn)
        width = max(len(one.run.name) for one in planned)
        console.print("\n".join(f"{one.run.name:{width}}  {one.state}" for one in planned), markup=False, soft_wrap=True)
        console.print(_overview(planned), markup=False, soft_wrap=True)
        return 0
    with hold_folder(out, "sweep"):
        planned = check_folders(planned, _warn)
        console.print(_overview(planned), markup=False, soft_wrap=True)
        write_atomic(out / "grid.toml", [grid.text])
        failed = _Sweep(planned, options).run()
    if finished := len(planned) - len(failed):
        console.print(f"finished {finished} of {len(planned)} runs", markup=False, soft_wrap=True)
    for name, reason in failed.items():
        complain("failed", f"{name}: {reason}")
    if finished:
        console.print(f"table    dstee table {shlex.quote(str(out))}", markup=False, soft_wrap=True)
    return 1 if failed else 0


def _overview(planned: Sequence[PlannedRun]) -> str:
    states = [one.state for one in planned]
    parts = {"finished": "finished already", "begun": "to be continued", "new": "to be made"}
    shown = [f"{states.count(state)} {text}" for state, text in parts.items() if state in states]
    return f"{len(planned)} runs: {', '.join(shown)}"


def gpus_of(runs: Sequence[GridRun], given: tuple[str, ...] | None) -> list[str]:
    """CUDA_VISIBLE_DEVICES of the workers; none where nothing is trained on a GPU.

    Raises:
        UsageError: there are not those that were given.
    """
    if not any(run.config.device == "cuda" for run in runs):
        if given:
            raise UsageError("--gpus is for trainings on GPUs: pass --device cuda, or device = 'cuda' in [settings]")
        return []
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    here = seen.split(",") if seen else [str(i) for i in range(torch.cuda.device_count())]
    if wrong := [gpu for gpu in given or () if gpu not in here]:
        raise UsageError(f"--gpus {wrong[0]}: there is no such GPU, but {', '.join(here)}")
    return list(given or here)


def jobs_of(runs: Sequence[GridRun], options: SweepOptions) -> int:
    """How many are trained at once."""
    gpus = gpus_of(runs, options.gpus)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default = len(gpus) or max(1, cores // max(run.config.threads for run in runs))
    return min(options.jobs or default, len(runs))


@dataclass
class _Sweep:
    """The runs that are left to make, and who makes them."""

    planned: Sequence[PlannedRun]
    options: SweepOptions
    failed: dict[str, str] = field(default_factory=dict)
    _retried: set[str] = field(default_factory=set)
    _fresh: set[str] = field(default_factory=set)

    def run(self) -> dict[str, str]:
        """Names and reasons of those that failed."""
        to_do = [one for one in self.planned if one.state != "finished"]
        if not to_do:
            return {}
        runs = [one.run for one in to_do]
        gpus, count = gpus_of(runs, self.options.gpus), jobs_of(runs, self.options)
        self._by_name = {one.run.name: one for one in to_do}
        self._queue = deque(to_do)
        self._progress = SweepProgress(to_do, len(self.planned), count)
        with _Signals() as signals, Workers(count, gpus) as workers, self._progress:
            while self._queue or any(worker is not None and worker.job for worker in workers.running):
                if signals.signum is not None:
                    self._stop(workers)
                    raise Interrupted(signals.signum, self.options.again)
                for worker in workers.waiting() if self._queue else ():
                    if self._queue:
                        self._give(worker, self._queue.popleft())
                for worker, event in workers.events(_POLL):
                    self._hear(worker, event)
        return self.failed

    def _stop(self, workers: Workers) -> None:
        workers.stop()
        while workers.alive:
            for _ in workers.events(_POLL):
                pass

    def _give(self, worker: Worker, one: PlannedRun) -> None:
        self._progress.begin(one.run.name)
        self._fresh.add(one.run.name)
        worker.give(
            one.run.name,
            {
                "config": one.run.config.to_dict(), "folder": str(one.folder.absolute()), "data_dir": self.options.data_dir,
                "keep_final_states": self.options.keep_final_states,
            },
        )  # fmt: skip

    def _hear(self, worker: Worker, event: Mapping[str, Any]) -> None:
        kind, name = event["event"], worker.job
        if kind == "ready":
            worker.ready = True
        elif name is None:
            if kind == "died" and not worker.ready:
                raise UsageError(f"a process of the sweep could not start: {event['reason']}")
        elif kind == "warning":
            self._progress.warn(f"{name}: {event['text']}")
        elif kind == "step":
            self._progress.step(name, event["step"] / event["total"], event.get("accuracy"), name in self._fresh)
            self._fresh.discard(name)
        else:
            worker.job = None
            self._end(name, kind, event, worker.ready)

    def _end(self, name: str, kind: str, event: Mapping[str, Any], ready: bool) -> None:
        if kind == "done":
            self._progress.end(name, _shown(event), True)
        elif kind == "failed":
            self.failed[name] = event["reason"]
            self._progress.end(name, f"failed: {event['reason']}", False)
        elif kind == "died" and not ready:
            raise UsageError(f"a process of the sweep could not start: {event['reason']}")
        elif name not in self._retried:  # died, or stopped by a signal that was not for the sweep
            self._retried.add(name)
            self._progress.put_back(name)
            self._progress.warn(f"{name}: {event.get('reason', 'its process was stopped')}; it is tried once more")
            self._queue.appendleft(self._by_name[name])
        else:
            reason = f"{event.get('reason', 'its process was stopped')}, twice"
            self.failed[name] = reason
            self._progress.end(name, f"failed: {reason}", False)


def _shown(event: Mapping[str, Any]) -> str:
    found = [accuracy for accuracy in event["accuracies"] if accuracy is not None]
    diverged = len(event["accuracies"]) - len(found)
    parts = [f"accuracy {100 * sum(found) / len(found):.2f} %"] if found else []
    parts += [f"{diverged} diverged" if len(event["accuracies"]) > 1 else "diverged"] if diverged else []
    return f"{', '.join(parts)}  {duration(event['seconds'])}"
