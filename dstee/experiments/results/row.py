"""A row of results: one training with its settings, its numbers and, where they were kept, its curves."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dstee._lookup import did_you_mean
from dstee.experiments.config import DENSE, STR, Config, Setting, method_keys, method_name, setting
from dstee.experiments.records import Result
from dstee.methods import DSTEE, METHODS

__all__ = [
    "Epoch", "Outcome", "Row", "Update", "as_outcome", "check_settings", "decides", "is_text", "known_method", "label_of",
    "own_settings",
]  # fmt: skip

_MAX_TEXT = 1000
_MAX_ENTRIES = 100
_NOT_OF_ONE = ("compare", "method", "method_settings", "seed", "seeds", "label")
"""Settings that say which trainings a run has, not how one of them goes."""
_OF_UPDATES = ("every", "drop_fraction", "drop_schedule", "drop_floor", "stop_fraction", "order")
_SHARES = ("accuracy", "exploration", "exploration_limit", "dead_units", "mean_density")
_COUNTS = ("nnz", "numel", "diverged_at")
_MAY_LACK = {"exploration_limit", "dead_units", "mean_density", "seconds", "kernel_seconds", "scores", "diverged_at"}
"""What older runs did not write, or what a table can do without."""
_MAY_BE_NONE = {"accuracy", "exploration", *_MAY_LACK} - {"scores"}


class Epoch(NamedTuple):
    """The end of an epoch: ``accuracy`` on the test set in 0..1, None where it was not measured; other ``scores`` by name."""

    epoch: int
    accuracy: float | None
    scores: Mapping[str, float] = {}


class Update(NamedTuple):
    """A mask update: ``exploration`` is R after it, None where it was not counted, ``exploration_limit`` R_max so far,
    ``layers`` R by layer; the last three are None where they were not recorded."""

    step: int
    exploration: float | None
    churn: float
    exploration_limit: float | None = None
    dead_units: float | None = None
    layers: Sequence[float] | None = None


@dataclass(frozen=True)
class Outcome:
    """A :class:`dstee.experiments.records.Result` as it was read: None where its file does not say.

    ``accuracy`` is None for a training that stopped at step ``diverged_at``, where its loss was not finite.
    """

    accuracy: float | None
    exploration: float | None
    nnz: int
    numel: int
    inference_flops: float
    training_flops: float
    digest: str
    exploration_limit: float | None = None
    dead_units: float | None = None
    mean_density: float | None = None
    seconds: float | None = None
    kernel_seconds: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    diverged_at: int | None = None

    def score(self, name: str) -> float | None:
        """The accuracy, or the other score of that name; None where it was not measured."""
        return self.accuracy if name == "accuracy" else self.scores.get(name)


@dataclass(frozen=True)
class Row:
    """One training.

    ``label`` is what tables call it, ``method`` its key. ``settings`` are those that decide this training and no others (dense
    has no sparsity; c belongs to DST-EE alone); the method's own are an object in ``settings["method_settings"]``.
    ``made_by`` has the versions of dstee and torch and the digest of the data, where known; ``source`` is the file it was
    read from, ``command`` what made a results file.
    """

    label: str
    method: str
    seed: int
    settings: Mapping[str, Any]
    result: Outcome
    epochs: tuple[Epoch, ...] = ()
    updates: tuple[Update, ...] = ()
    made_by: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    command: str = ""

    @property
    def name(self) -> str:
        return f"{self.label}, seed {self.seed}"

    def setting(self, name: str) -> Any:
        """A setting of the training or of its method; None where it has no such one."""
        own = self.settings.get("method_settings", {})
        return self.settings[name] if name in self.settings else own.get(name)

    def setting_names(self) -> tuple[str, ...]:
        """All names that :meth:`setting` knows."""
        return (*(n for n in self.settings if n != "method_settings"), *self.settings.get("method_settings", {}))


def decides(method: str, name: str, settings: Mapping[str, object]) -> bool:
    """Whether the setting ``name``, among ``settings``, has a say in a training of ``method``."""
    if name in _NOT_OF_ONE:
        return False
    known = _known_settings()
    if name in known and known[name].free:
        return False
    if name in ("c", "c_rel", "eps"):
        explores = method in METHODS and issubclass(METHODS[method], DSTEE)
        return explores and name != ("c" if settings.get("c_rel") else "c_rel")
    if name == "order" and method == STR:
        return False
    if name in _OF_UPDATES and method in METHODS and not METHODS[method].updates:
        return False
    return not (method == DENSE and name in known and known[name].group == "method")


@functools.cache
def _known_settings() -> dict[str, Setting]:
    return {field.name: setting(field) for field in dataclasses.fields(Config)}


def own_settings(config: Mapping[str, Any], method: str) -> dict[str, Any]:
    """:attr:`Row.settings` of one training of a run with the settings ``config``, of this or an older version.

    A setting that the run does not name has its default: before there was such a setting, runs were as with it.

    Raises:
        ValueError: ``method_settings`` is no object.
    """
    whole: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Config)}
    whole |= config
    found = {name: list(v) if isinstance(v, tuple) else v for name, v in whole.items() if decides(method, name, whole)}
    given = whole["method_settings"] or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"method_settings of the run is no object, but {given!r}")
    own = {n.rpartition(".")[2]: v for n, v in given.items() if n.rpartition(".")[0] == (method if whole["compare"] else "")}
    return {**found, "method_settings": own} if own else found


def label_of(config: Mapping[str, Any], method: str) -> str:
    """What a table calls the rows of ``method`` in a run with the settings ``config``. Raises ValueError: it is no text."""
    label = config.get("label") or method_name(method)
    if not is_text(label):
        raise ValueError(f"label of the run is no text, but {label!r}")
    return str(label)


def known_method(key: object) -> str:
    """``key``, if it is a method's.

    Raises:
        ValueError: there is no such method.
    """
    if isinstance(key, str) and (key in METHODS or key in (STR, DENSE)):
        return key  # looking for plugins takes time, and rows are many
    if not isinstance(key, str) or key not in method_keys():
        raise ValueError(f"unknown method {key!r}{did_you_mean(key, method_keys())}")
    return key


def as_outcome(entries: Mapping[str, object]) -> Outcome:
    """The numbers of a result that was read from a file; its ``method`` and ``seed`` are not looked at.

    Raises:
        ValueError: an entry is missing, unknown, or no number of its kind.
    """
    names = {f.name for f in dataclasses.fields(Outcome)}
    others = {f.name for f in dataclasses.fields(Result)} | {"method", "seed"}
    if wrong := sorted((names - _MAY_LACK - entries.keys()) | (entries.keys() - names - others)):
        raise ValueError(f"{', '.join(map(repr, wrong))} missing or unknown")
    values: dict[str, Any] = {name: entries[name] for name in names if name in entries}
    for name, value in values.items():
        if value is None and name in _MAY_BE_NONE:
            continue
        if name == "digest":
            if not is_text(value):
                raise ValueError("digest is no text")
        elif name == "scores":
            values[name] = _scores(value)
        elif name in _COUNTS:
            if type(value) is not int or not 0 <= value < 1 << 63:
                raise ValueError(f"{name} {value!r} is not a whole number")
        elif not is_number(value) or value < 0 or (name in _SHARES and value > 1 + 1e-9):
            raise ValueError(f"{name} {value!r} is not a number {'in 0..1' if name in _SHARES else '>= 0'}")
    if (values["accuracy"] is None) != (values.get("diverged_at") is not None):
        raise ValueError("a result has an accuracy, or the step at which it diverged")
    return Outcome(**values)


def _scores(value: object) -> dict[str, float]:
    if not isinstance(value, dict) or len(value) > _MAX_ENTRIES or not all(map(is_text, value)):
        raise ValueError("scores are no object of names and numbers")
    for name, number in value.items():
        if not is_number(number) or not 0 <= number <= 1 or name == "accuracy":
            raise ValueError(f"the score {name!r} is {number!r}, not another number in 0..1")
    return value


def check_settings(settings: object) -> dict[str, Any]:
    """``settings``, if it is an object of names and plain values.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(settings, dict) or len(settings) > _MAX_ENTRIES:
        raise ValueError("settings are no object of names and values")
    for name, value in settings.items():
        inner = value.values() if isinstance(value, dict) and name == "method_settings" else value
        many = list(inner) if isinstance(value, list) or inner is not value else [value]
        if not is_text(name) or len(many) > _MAX_ENTRIES or not all(_is_plain(one) for one in many):
            raise ValueError(f"{name[:_MAX_TEXT]!r} has no value of a setting")
    return settings


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool) or is_number(value) or is_text(value)


def is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
