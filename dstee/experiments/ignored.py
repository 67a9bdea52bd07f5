"""Fig. 1 in a training: how many of the weights that matter later an update ignored (:func:`dstee.metrics.ignored_later`).

At an update two branches of the training go on from its state, on the batches that come next: a sparse one, at whose end the
weights with the largest gradients are the important ones, and a dense one, at whose end those of the largest magnitude are.
``<method>-seed<n>/ignored-<step>.json`` has the counts; a file of several such measurements has the same form.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dstee
from dstee import metrics
from dstee._console import UsageError
from dstee._files import parse_json, read_file, write_atomic
from dstee.experiments.config import DENSE, Config
from dstee.experiments.results.row import check_settings, is_text, known_method, label_of, own_settings
from dstee.experiments.results.rows import run_folders
from dstee.experiments.run_folder import refuse_link
from dstee.experiments.trial import Diverged, Trial
from dstee.metrics import Ignored, IgnoredGrowth

__all__ = ["MEASURES", "Measurement", "check", "dump_measurements", "growth_steps", "measure", "read_measurements", "save"]

FORMAT = "dstee-ignored"
VERSION = 1
MEASURES = {"dense": "|w| after dense steps", "sparse": "|g| after sparse steps"}
"""What makes a weight important, and what pictures call it."""
_FILE = re.compile(r"ignored-[0-9]{10}\.json")
_MAX_FILE = 1 << 26
_MAX_ROWS = 10_000
_MAX_LAYERS = 10_000
_ROW = {"label", "method", "seed", "settings", "step", "steps", "measures"}


@dataclass(frozen=True)
class Measurement:
    """Of the update at ``step`` of one training, what was important ``steps`` steps later; ``measures`` by :data:`MEASURES`."""

    label: str
    method: str
    seed: int
    settings: Mapping[str, Any]
    step: int
    steps: int
    measures: Mapping[str, IgnoredGrowth]

    def setting(self, name: str) -> Any:
        """As :meth:`dstee.experiments.results.row.Row.setting`; "step" is the update's."""
        own = self.settings.get("method_settings", {})
        return self.step if name == "step" else self.settings[name] if name in self.settings else own.get(name)

    def setting_names(self) -> tuple[str, ...]:
        """All names that :meth:`setting` knows."""
        return ("step", *(n for n in self.settings if n != "method_settings"), *self.settings.get("method_settings", {}))


# --- measuring -----------------------------------------------------------------------------------------------------------


def growth_steps(trial: Trial) -> set[int]:
    """The steps of updates that :func:`measure` can look at."""
    sparse = trial.sparse
    return set(trial.updates) if isinstance(sparse, dstee.SparseModel) and sparse.method.updates else set()


def check(config: Config, growth: Collection[int], total: int) -> None:
    """Raises UsageError for ``ignored_at`` beside the steps of ``growth``, or with too few of the ``total`` steps to follow."""
    updates = sorted(growth)
    for step in config.ignored_at:
        if not updates:
            raise UsageError("ignored_at measures updates that grow weights, and no method of this run has any: leave it out")
        if step not in updates:
            near = min(updates, key=lambda t: (abs(t - step), t))
            raise UsageError(
                f"ignored_at {step} is no step of a mask update (the nearest is {near}; {len(updates)} from {updates[0]} to "
                f"{updates[-1]})"
            )
        if step + config.ignored_steps > total:
            raise UsageError(
                f"ignored_at {step} and ignored_steps {config.ignored_steps} reach beyond the {total} steps of the "
                "training: measure earlier, or fewer steps later"
            )


def measure(trial: Trial, warn: Callable[[str], None]) -> Measurement | None:
    """What the update that ``trial`` has just made ignored; None where it made none or grew nothing, and, with a warning,
    where a branch diverged. The training does not notice: its branches are trainings of their own."""
    sparse, t = trial.sparse, trial.step_number
    if not isinstance(sparse, dstee.SparseModel) or t not in trial.updates:
        return None
    if not any(bool(layer.grown_bits().any()) for layer in sparse.follow_all().values()):
        return None
    swaps = {name: sparse.schedule.swap_count(layer.nnz, t) for name, layer in sparse.layers.items()}
    grown = swaps if sparse.method.is_bounded else None
    gpu = [torch.cuda.current_device()] if trial.config.device == "cuda" else []
    try:
        with torch.random.fork_rng(devices=gpu):
            found = {
                "dense": metrics.ignored_later(sparse, _weights_after_dense_steps(trial), grown),
                "sparse": metrics.ignored_later(sparse, _gradients_after_sparse_steps(trial), grown),
            }
    except Diverged:
        warn(f"{trial.name}: what the update at step {t} ignored is unknown, the loss after it is not finite")
        return None
    config = trial.config.to_dict()
    label, settings = label_of(config, trial.method), own_settings(config, trial.method)
    return Measurement(label, trial.method, trial.seed, settings, t, trial.config.ignored_steps, found)


def _weights_after_dense_steps(trial: Trial) -> dict[str, Tensor]:
    tree = copy.deepcopy(trial.state())  # an optimizer would share the tensors of a state that it loads
    branch = Trial(trial.config, DENSE, trial.seed, trial.data)
    branch.model.load_state_dict(tree["model"])
    branch.optimizer.load_state_dict(tree["optimizer"])
    branch.task.load_state_dict(tree["order"])
    torch.set_rng_state(tree["rng"])
    if "cuda_rng" in tree:
        torch.cuda.set_rng_state(tree["cuda_rng"])
    branch.step_number = trial.step_number
    for _ in range(trial.config.ignored_steps):
        branch.step()
    return {name: p.detach().abs() for name, p in _weights(trial, branch).items()}


def _gradients_after_sparse_steps(trial: Trial) -> dict[str, Tensor]:
    branch = Trial(trial.config, trial.method, trial.seed, trial.data)
    branch.restore(Path("a copy"), copy.deepcopy(trial.saved()))
    for _ in range(trial.config.ignored_steps):
        branch.step()
    branch.optimizer.zero_grad()
    branch.task.loss(branch.step_number + 1).backward()
    found = {name: p.grad for name, p in _weights(trial, branch).items()}
    return {name: grad.abs() for name, grad in found.items() if grad is not None}


def _weights(trial: Trial, branch: Trial) -> dict[str, Tensor]:
    assert isinstance(trial.sparse, dstee.SparseModel)
    return {name: branch.model.get_parameter(name) for name in trial.sparse.layers}


# --- files ---------------------------------------------------------------------------------------------------------------


def save(folder: Path, found: Measurement) -> None:
    """Writes the file in the folder of the training. Raises OSError: it could not be written."""
    write_atomic(folder / f"ignored-{found.step:010d}.json", [dump_measurements([found])])


def dump_measurements(found: Sequence[Measurement], command: str = "") -> bytes:
    """The text of a file with these measurements, one a line; of each layer [candidates, grown, important, missed].

    ``command``: what made the runs, where it is known.
    """
    lines = [
        json.dumps(
            {
                "label": one.label, "method": one.method, "seed": one.seed, "settings": dict(one.settings), "step": one.step,
                "steps": one.steps,
                "measures": {
                    kind: {name: [x.candidates, x.grown, x.important, x.missed] for name, x in growth.per_layer.items()}
                    for kind, growth in one.measures.items()
                },
            },
            allow_nan=False,
        )
        for one in found
    ]  # fmt: skip
    made_with = f'"command": {json.dumps(command)}, ' if command else ""
    head = f'{{"format": "{FORMAT}", "version": {VERSION}, {made_with}"rows": [\n'
    return (head + ",\n".join(lines) + "\n]}\n").encode()


def read_measurements(paths: Iterable[Path]) -> list[Measurement]:
    """Those in ``paths``: run folders, folders with run folders below, files of measurements; each once.

    Raises:
        UsageError: there are none, or a file is not what it should be.
    """
    found: list[Measurement] = []
    for file in [file for path in paths for file in (_files_in(path) if path.is_dir() else [path])]:
        try:
            found += [one for one in _parse(read_file(file, _MAX_FILE)) if one not in found]
        except FileNotFoundError:
            raise UsageError(f"there is no {file}: name run folders, or files of measurements") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{file} cannot be used: {error}") from error
    return found


def _files_in(path: Path) -> list[Path]:
    runs = [path] if (path / "config.json").exists() else [path, *run_folders(path, lambda text: None)]
    files = sorted(file for run in runs for file in run.glob("*/ignored-*.json") if _FILE.fullmatch(file.name))
    if not files:
        raise UsageError(f"{path} has no measurement of Fig. 1: dstee train --ignored-at STEP makes them, at mask updates")
    for file in files:
        refuse_link(file.parent)
        refuse_link(file)
    return files


def _parse(data: bytes) -> list[Measurement]:
    held = parse_json(data)
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise ValueError("it is no file of measurements (dstee train --ignored-at STEP makes them)")
    if held.get("version") != VERSION:
        raise ValueError(f"it has version {held.get('version')!r}, this dstee reads {VERSION}")
    rows = held.get("rows")
    if (
        held.keys() - {"command"} != {"format", "version", "rows"}
        or not isinstance(rows, list)
        or not 1 <= len(rows) <= _MAX_ROWS
    ):
        raise ValueError(f"'rows' is no list of 1 to {_MAX_ROWS} measurements, or it is not all that is there")
    return [_measurement(row) for row in rows]


def _measurement(row: object) -> Measurement:
    if not isinstance(row, dict) or row.keys() != _ROW:
        raise ValueError(f"a measurement has {', '.join(sorted(_ROW))}")
    label, seed, step, steps = row["label"], row["seed"], row["step"], row["steps"]
    if not is_text(label) or not all(type(n) is int and 0 <= n < 1 << 63 for n in (seed, step, steps)):
        raise ValueError("a measurement has no label, seed and steps")
    measures = row["measures"]
    if not isinstance(measures, dict) or not measures or measures.keys() - MEASURES.keys():
        raise ValueError(f"measures are not some of {', '.join(MEASURES)}")
    found = {kind: IgnoredGrowth(_layers(layers)) for kind, layers in measures.items()}
    return Measurement(label, known_method(row["method"]), seed, check_settings(row["settings"]), step, steps, found)


def _layers(layers: object) -> dict[str, Ignored]:
    if not isinstance(layers, dict) or not 1 <= len(layers) <= _MAX_LAYERS or not all(map(is_text, layers)):
        raise ValueError(f"layers are no object of 1 to {_MAX_LAYERS} names")
    for name, counts in layers.items():
        if not isinstance(counts, list) or len(counts) != 4 or not all(type(n) is int for n in counts):
            raise ValueError(f"{name!r} has no four counts")
        candidates, grown, important, missed = counts
        if not (1 <= important <= grown <= candidates < 1 << 53 and 0 <= missed <= important):
            raise ValueError(f"the counts of {name!r} contradict each other: {counts}")
    return {name: Ignored(*counts) for name, counts in layers.items()}
