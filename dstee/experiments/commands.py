"""``dstee train`` from its options to its files."""

from __future__ import annotations

import math
import os
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dstee import backends
from dstee._console import UsageError, complain, make_console
from dstee._files import parse_json
from dstee.experiments import data, ignored, plot, processes
from dstee.experiments.config import Config
from dstee.experiments.final_state import keep_final
from dstee.experiments.info import versions
from dstee.experiments.loggers import check_installed
from dstee.experiments.method_settings import parse_pairs
from dstee.experiments.progress import Progress, Silent, config_lines, results_table
from dstee.experiments.records import Result, write_results
from dstee.experiments.references import is_reference
from dstee.experiments.results.finished import read_results
from dstee.experiments.run_folder import Manifest, Mode, RunFolder, WriteRetries, read_manifest
from dstee.experiments.train import run_trials
from dstee.experiments.training import make_training
from dstee.experiments.trial import task_of

__all__ = ["check", "configuration", "make_manifest", "train", "train_from_options"]

_MAX_CONFIG = 1 << 20
_FEW = 2000
"""Test samples up to which differences of methods drown in chance."""
_warn = partial(complain, "warning")


def train_from_options(
    given: Mapping[str, object], config_file: str | None, out: Path | None, data_dir: str | None, mode: Mode,
    kill_at_step: int | None = None,
) -> None:  # fmt: skip
    """``given`` is what the options say; ``kill_at_step``: see :func:`train`.

    Raises:
        UsageError: it cannot be done.
    """
    if out is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("several processes need --out DIR, one folder for all of them")
    if mode != "new" and out is None:
        raise UsageError(f"--{mode} needs --out DIR, the folder of the run")
    held = read_manifest(out) if out is not None and mode == "resume" else None
    loaded = {} if config_file is None else _read(config_file)
    if held:
        _refuse_references(f"{out}/config.json", held["config"], {**loaded, **given})
        try:
            Config.resolve(held["config"])
        except UsageError as error:
            raise UsageError(f"{out}/config.json cannot be used: {error}") from error
    config = _resolved(given, loaded, held["config"] if held else {})
    if held:
        here = versions()
        made_by = {"dstee": held.get("dstee"), "torch": held.get("torch")}
        if made_by != (now := {key: here[key] for key in made_by}):
            _warn(f"the run was started with {made_by}, this is {now}: its bits may differ from here on")
    train(config, _default_folder(config) if out is None else out, data_dir, mode, kill_at_step)


def configuration(given: Mapping[str, object], file: str | None) -> Config:
    """What is given, on top of a configuration file."""
    return _resolved(given, {} if file is None else _read(file), {})


def _resolved(given: Mapping[str, object], loaded: Mapping[str, object], held: Mapping[str, object]) -> Config:
    """What is given, on top of what a file says, on top of what the run in the folder has."""
    settings = {**held, **loaded}
    more = {name: value for name, value in given.items() if name != "method_settings"}
    if isinstance(own := given.get("method_settings"), list):
        before = settings.get("method_settings") or {}
        more["method_settings"] = {**before, **parse_pairs(own)} if isinstance(before, dict) else before
    return Config.resolve({**settings, **more})


def _read(file: str) -> dict[str, object]:
    """The settings of a file that the user named."""
    try:
        with open(file, "rb") as opened:  # a pipe may be meant: --config <(...)
            text = opened.read(_MAX_CONFIG + 1)
        if len(text) > _MAX_CONFIG:
            raise ValueError(f"it has more than {_MAX_CONFIG} bytes")
        loaded = parse_json(text)
        return {**loaded.get("config", loaded)}
    except OSError as error:
        raise UsageError(f"--config {file} cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"--config {file} is not a JSON object of settings: {error}") from error


def _refuse_references(where: str, held: Mapping[str, object], given: Mapping[str, object]) -> None:
    """A run folder may come from somebody else: what it names is not imported before the user names it, too.

    Raises:
        UsageError: ``held`` refers to a function that ``given`` does not.
    """
    for name in ("data", "model"):
        if is_reference(reference := held.get(name)) and given.get(name) != reference:
            raise UsageError(
                f"{where} names code that would be run, {name} {reference}: if you trust it, pass --{name} {reference} again"
            )


def _default_folder(config: Config) -> Path:
    stem = f"runs/{config.data}-{'compare' if config.compare else config.method}"
    return next(path for i in range(1, 10**6) if not (path := Path(stem if i == 1 else f"{stem}-{i}")).exists())


def make_manifest(config: Config, data_digest: str) -> Manifest:
    """What a run's folder says of it, as of now."""
    here = versions()
    return {
        "dstee": here["dstee"],
        "torch": here["torch"],
        "identity": config.identity(),
        "data_digest": data_digest,
        "config": config.to_dict(),
    }


def check(config: Config, dataset: Any) -> None:
    """Makes one training of each method, which fails now what would fail later.

    Raises:
        UsageError: one of them cannot be made.
    """
    growth: set[int] = set()
    for method, seeds in config.trainings()[: len(config.methods())]:
        training = make_training(config, method, seeds, dataset)
        growth |= ignored.growth_steps(training.trials[0])
    ignored.check(config, growth, training.total)
    check_installed(config.log.split(",") if config.log else [])


def train(
    config: Config, path: Path, data_dir: str | None, mode: Mode, kill_at_step: int | None = None, show_paths: bool = True
) -> None:
    """All trainings of ``config`` in the folder ``path``; everything is checked before the folder is made.

    ``kill_at_step``: the process dies by SIGKILL after that many steps; ``show_paths`` names the files at the end.
    """
    with processes.joined(config.device):
        _train(config, path, data_dir, mode, kill_at_step, show_paths)


def _train(config: Config, path: Path, data_dir: str | None, mode: Mode, kill_at_step: int | None, show_paths: bool) -> None:
    task = task_of(config)
    dataset = task.prepare(data.load(config.data, data_dir), config)
    console = make_console(sys.stdout)
    try:
        backend = backends.resolve("drop_grow_", processes.place(config.device)).name
    except (ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    check(config, dataset)
    finished = read_results(path, config, _warn) if mode == "resume" else None
    kill = None if kill_at_step is None else partial(_kill, kill_at_step)
    if processes.rank() > 0:  # the first process makes the folder, writes and tells
        processes.wait()
        if finished is None:
            run_trials(config, dataset, path, Silent(), after_step=kill)
        return
    manifest = make_manifest(config, dataset.digest)
    try:
        folder = RunFolder(path, manifest, mode)
    except OSError as error:
        raise UsageError(f"the run folder {path} (--out) cannot be written: {error.strerror or error}") from error
    try:
        processes.wait()
        samples = f"{dataset.size('train'):,} training and {dataset.size('test'):,} test {task.unit}"
        made_by = f"dstee {manifest['dstee']}  torch {manifest['torch']}"
        head = [f"{made_by}  backend {backend}  {samples}", *config_lines(config)]
        if note := getattr(dataset, "note", ""):
            head.append(note)
        console.print("\n".join(head), markup=False, soft_wrap=True)
        retries = WriteRetries("the results", _warn)
        if finished is None:
            with Progress(config, _warn) as progress:
                results = run_trials(config, dataset, path, progress, after_step=kill)
            retries.until_done(lambda: write_results(path, results))
        else:
            results = finished
            console.print("finished already: there is nothing left to train")
        retries.until_done(lambda: keep_final(path, config, _warn))
        picture: Path | str = path / "curves.png"
        try:
            retries.until_done(lambda: plot.plot_runs([path], path / "curves.png"))
        except plot.NoMetrics:
            picture = "none: every training diverged before there was anything to draw"
        console.print("", results_table(results), sep="\n")
        if note := _too_small(config, dataset.size("test"), task.unit, results):
            console.print("", note, sep="\n", markup=False)
        if show_paths:
            console.print(f"\npicture  {picture}\nmetrics  {path}/*/metrics.jsonl", markup=False, soft_wrap=True)
    finally:
        folder.close()


def _too_small(config: Config, images: int, unit: str, results: Sequence[Result]) -> str:
    """What a reader of a comparison must know where few samples are all that decides it; empty elsewhere."""
    found = [r.accuracy for r in results if r.accuracy is not None]
    if not config.compare or not found or images > _FEW:
        return ""
    mean = statistics.fmean(found)
    chance = 100 * math.sqrt(mean * (1 - mean) / images)
    return (
        f"{config.data} is too small to rank methods: with {images} test {unit} one of them is {100 / images:.1f} points, and "
        f"chance alone moves each accuracy by about {chance:.1f}. It shows that all of this runs. To rank methods take a "
        "larger set (--data mnist, cifar10), ten seeds, and the intervals of: dstee table RUNS --baseline rigl"
    )


def _kill(at: int, step: int) -> None:
    if step >= at:
        os.kill(os.getpid(), signal.SIGKILL)
