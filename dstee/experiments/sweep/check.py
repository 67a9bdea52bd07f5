"""What is known of a sweep before it starts: that its trainings can be made, and how far they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dstee._console import UsageError
from dstee.experiments import data
from dstee.experiments.commands import check, make_manifest
from dstee.experiments.config import DENSE, Config, differences, setting
from dstee.experiments.info import versions
from dstee.experiments.results.finished import finished_rows
from dstee.experiments.run_folder import RunFolder, read_manifest, refuse_link
from dstee.experiments.sweep.grid import GridRun
from dstee.experiments.trial import Trial, task_of

__all__ = ["PlannedRun", "check_folders", "check_trainings", "load_all"]

_SMALL = 1_000_000
"""Weights up to which every setting is tried; those of a larger network cost seconds each, and fail on their own if at all."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep and where it is.

    Attributes:
        digest, samples: of its training data. kind: what decides the time of an epoch.
        state: finished; begun, so that it goes on; or new.
    """

    run: GridRun
    folder: Path
    digest: str
    samples: int
    kind: tuple[object, ...]
    state: Literal["finished", "begun", "new"] = "new"

    @property
    def work(self) -> float:
        """Samples that are trained on, over all epochs and trainings."""
        config = self.run.config
        return float(self.samples * config.epochs * len(config.trials()))


def load_all(runs: Iterable[GridRun], data_dir: str | None) -> dict[str, Any]:
    """The data sets of the runs by name, as their sources read them.

    Raises:
        UsageError: some are missing or damaged; all of them, in one line.
    """
    loaded, wrong = {}, []
    for name in dict.fromkeys(run.config.data for run in runs):
        try:
            loaded[name] = data.load(name, data_dir)
        except UsageError as error:
            wrong.append(str(error))
    if wrong:
        raise UsageError("; ".join(wrong))
    return loaded


def check_trainings(runs: Iterable[GridRun], out: Path, loaded: Mapping[str, Any]) -> list[PlannedRun]:
    """Makes every distinct network once, so that what cannot be trained is refused before anything begins; ``loaded`` as
    :func:`load_all` returns it.

    Raises:
        UsageError: a training cannot be made.
    """
    prepared: dict[tuple[object, ...], tuple[str, int, bool]] = {}
    tried: set[tuple[object, ...]] = set()
    planned = []
    for run in runs:
        config = dataclasses.replace(run.config, device="cpu")  # a GPU is the workers'
        key = _of_groups(config, "method")
        try:
            if run.config.device == "cuda":
                _require_cuda()
            if key not in prepared or (prepared[key][2] and _of_groups(config) not in tried):
                dataset = task_of(config).prepare(loaded[config.data], config)
                if key not in prepared:
                    trial = Trial(
                        dataclasses.replace(config, method=DENSE, method_settings=(), batch_seeds=False),
                        DENSE,
                        config.seed,
                        dataset,
                    )
                    prepared[key] = dataset.digest, dataset.size("train"), trial.maskable <= _SMALL
                if prepared[key][2]:
                    check(config, dataset)
                    tried.add(_of_groups(config))
        except UsageError as error:
            raise UsageError(f"{run.name}: {error}") from error
        digest, samples, _ = prepared[key]
        kind = (config.data, config.model, config.hidden, config.device)
        planned.append(PlannedRun(run, out / run.name, digest, samples, kind))
    return planned


def _of_groups(config: Config, without: str = "") -> tuple[object, ...]:
    """The settings that decide the bits, but for the seed and a group."""
    fields = [(f.name, setting(f)) for f in dataclasses.fields(config)]
    names = [name for name, meta in fields if meta.group != without and not meta.free and name != "seed"]
    return tuple(getattr(config, name) for name in names)


def _require_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UsageError("device is cuda, but torch finds no GPU here: pass --device cpu")


def check_folders(planned: Iterable[PlannedRun], warn: Callable[[str], None]) -> list[PlannedRun]:
    """With their states, as their folders say.

    Raises:
        UsageError: a folder holds something else, or the run was begun with other settings or data.
    """
    found, others = [], []
    here = versions()
    changed: set[str] = set()
    for one in planned:
        refuse_link(one.folder)
        manifest = read_manifest(one.folder)
        if manifest is None:
            if one.folder.exists() and not one.folder.is_dir():
                raise UsageError(f"{one.folder} is in the way of a run of that name: remove it, or choose another --out")
            found.append(one)
            continue
        wrong = differences(one.run.config.identity(), manifest.get("identity") or {})
        if manifest.get("data_digest") != one.digest:
            wrong.append("the data are not the same")
        if wrong:
            others.append(f"{one.run.name}: {'; '.join(wrong)}")
            continue
        made_by = f"dstee {manifest.get('dstee')}, torch {manifest.get('torch')}"
        if made_by != f"dstee {here['dstee']}, torch {here['torch']}":
            changed.add(made_by)
        is_finished = finished_rows(one.folder, one.run.config, warn) is not None
        state: Literal["finished", "begun"] = "finished" if is_finished else "begun"
        if state == "finished" and (manifest["config"].get("label") or "") != one.run.config.label:
            RunFolder(one.folder, make_manifest(one.run.config, one.digest), "resume").close()  # the new label
        found.append(dataclasses.replace(one, state=state))
    if others:
        more = f" (and {len(others) - 1} more runs)" if len(others) > 1 else ""
        raise UsageError(
            f"{one.folder.parent} holds a run of other settings, {others[0]}{more}: "
            "put the settings back, or choose another --out"
        )
    if changed:
        warn(f"runs were begun with {' and '.join(sorted(changed))}, this is dstee {here['dstee']}, torch {here['torch']}")
    return found
