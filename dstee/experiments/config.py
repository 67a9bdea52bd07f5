"""The configuration of a training: its fields, their defaults and what they may be.

One table serves the command line, the configuration file and the run folder. Precedence: option, file, default for the
data set, general default.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, get_args

from dstee._console import UsageError
from dstee._lookup import did_you_mean
from dstee.experiments.data import DATA_SETS, find_source
from dstee.experiments.method_settings import STR, Value, check_settings, make_method, of_method, parse_pairs
from dstee.experiments.models.registry import MODELS, find_model
from dstee.experiments.references import takes
from dstee.methods import METHODS, Method, known_methods
from dstee.methods.base import Group
from dstee.schedule import known_drops
from dstee.soft_sparsification import SoftThreshold
from dstee.sparsification import Distribution

__all__ = [
    "COMPARED", "DENSE", "STR", "Config", "Setting", "differences", "grouped_keys", "method_group", "method_keys",
    "method_name", "setting",
]  # fmt: skip

DENSE = "dense"
"""The training without a mask, beside the methods of :mod:`dstee.methods`."""
COMPARED = (DENSE, "static", "set", "rigl", "dst-ee")

LOGS = ("tensorboard", "wandb")
"""Where a training can be logged beside its own files; :mod:`dstee.experiments.loggers` does it."""

T = TypeVar("T")
Limit = tuple[str, Callable[[T], bool]]


def method_keys() -> tuple[str, ...]:
    """What may be trained, as the command line names it."""
    return (*known_methods(), STR, DENSE)


def method_name(key: str) -> str:
    """What tables and pictures call it."""
    return METHODS[key].name if key in METHODS else SoftThreshold.name if key == STR else key


def method_group(key: str) -> Group:
    """Under which heading of a table it stands."""
    return METHODS[key].group if key in METHODS else "dense-to-sparse" if key == STR else "dense"


def grouped_keys() -> tuple[str, ...]:
    """All methods, in the order of a table."""
    return tuple(key for group in get_args(Group) for key in method_keys() if method_group(key) == group)


@dataclass(frozen=True)
class Setting:
    """What the command line says of a field of :class:`Config`, and which values it takes.

    ``free``: it does not decide the bits and may change when a run is resumed. ``choices``: all values there are; ``names``:
    those that have names, beside which there are references to functions.
    """

    group: str
    text: str
    limit: tuple[str, Callable[..., bool]] | None = None
    choices: Callable[[], tuple[str, ...]] | None = None
    free: bool = False
    names: Callable[[], tuple[str, ...]] | None = None


def setting(field: dataclasses.Field[object]) -> Setting:
    found = field.metadata["setting"]
    assert isinstance(found, Setting)
    return found


def _field(
    group: str, text: str, default: T, limit: Limit[T] | None = None, choices: Callable[[], tuple[str, ...]] | None = None,
    free: bool = False, names: Callable[[], tuple[str, ...]] | None = None,
) -> T:  # fmt: skip
    return dataclasses.field(default=default, metadata={"setting": Setting(group, text, limit, choices, free, names)})


def _of(*choices: str) -> Callable[[], tuple[str, ...]]:
    return lambda: choices


def _drop_keys() -> tuple[str, ...]:
    return tuple(known_drops())


def _at_least(low: float) -> tuple[str, Callable[[float], bool]]:
    return f">= {low:g}", lambda x: x >= low


_POSITIVE: Limit[float] = ("> 0", lambda x: x > 0)
_BELOW_ONE: Limit[float] = ("in [0, 1)", lambda x: 0 <= x < 1)
_SHARE: Limit[float] = ("in (0, 1]", lambda x: 0 < x <= 1)
_WIDTHS: Limit[tuple[int, ...]] = (
    "a list of 1 to 16 widths from 1 to 65536", lambda x: 1 <= len(x) <= 16 and all(1 <= w <= 65536 for w in x)
)  # fmt: skip
_STEPS: Limit[tuple[int, ...]] = ("a list of at most 100 steps from 1 on", lambda x: len(x) <= 100 and all(n >= 1 for n in x))
_LABEL: Limit[str] = ("one line of at most 100 printable characters", lambda x: len(x) <= 100 and (x.isprintable() or not x))
_TOO_LARGE = 2**31
"""For any whole number: that many epochs, steps or samples are a slip, and lists of them would fill the memory."""
_SEED: Limit[int] = ("in 0..2^31-1", lambda x: 0 <= x < 2**31)


@dataclass(frozen=True)
class Config:
    """Everything that decides the bits of a run; see ``dstee train --help`` for the meaning of each field."""

    data: str = _field("data", "data set, or a function of your own that loads one, as package.module:load", "digits",
                       names=lambda: tuple(DATA_SETS))  # fmt: skip
    compare: bool | str = _field(
        "run", "train several methods instead of one: dense, static, SET, RigL and DST-EE, or all, or a list of them", False
    )
    method: str = _field("method", "how the mask is trained", "dst-ee", choices=method_keys)
    method_settings: tuple[tuple[str, Value], ...] = _field(
        "method", "a setting of the method's own, as beta=0.99; in a comparison snfs.beta=0.99; as often as needed", ()
    )
    seed: int = _field("run", "first seed: initial weights, initial mask, order of the data", 0, _SEED)
    seeds: int = _field("run", "number of seeds (default 1, with --compare 3)", 1, ("in 1..1000", lambda x: 1 <= x <= 1000))
    batch_seeds: bool = _field("run", "train all seeds of a method at once: MLPs by SGD; part of what decides the bits", False)
    label: str = _field("run", "what tables call the training (default: the method's name)", "", _LABEL, free=True)
    sparsity: float = _field("method", "share of weights that are zero", 0.98, _BELOW_ONE)
    distribution: Distribution = _field(  # noqa: RUF009  # a string
        "method", "how the active weights are shared out", "erk", choices=_of(*get_args(Distribution))
    )
    # On digits RigL grows gradients of 1e-4 to 2e-2, the median inactive one is 1e-5. With c = 1e-3 a weight that was never
    # active gets c * ln(t) = 3e-3 to 7e-3: it competes with the gradients instead of drowning in them or drowning them.
    c: float = _field("method", "DST-EE: weight of exploration (paper, Eq. 1)", 1e-3, _at_least(0))
    c_rel: float = _field("method", "DST-EE: the same in units of the gradient, instead of c; 0: by c", 0.0, _at_least(0))
    eps: float = _field("method", "DST-EE: offset of the counters (paper, Eq. 1)", 1.0, _POSITIVE)
    every: int = _field("method", "optimizer steps from one mask update to the next", 20, _at_least(1))
    drop_fraction: float = _field("method", "share of a layer's active weights that an update swaps, at first", 0.3, _SHARE)
    drop_schedule: str = _field("method", "how that share falls", "cosine", choices=_drop_keys)
    drop_floor: float = _field("method", "what it falls to", 0.0, _BELOW_ONE)
    stop_fraction: float = _field("method", "share of the training after which the mask stays", 0.75, _SHARE)
    order: str = _field(
        "method", "an update comes after the SGD step or replaces it (default: the method's own)", "default",
        choices=_of("default", "after", "replace"),
    )  # fmt: skip
    model: str = _field("model", "network, or a function of your own that makes one, as package.module:make", "mlp",
                        names=lambda: tuple(MODELS))  # fmt: skip
    hidden: tuple[int, ...] = _field("model", "widths of the hidden layers of an mlp, as 512,256", (512, 256), _WIDTHS)
    train_limit: int = _field("data", "train on that many images, the first ones; 0: on all", 0, _at_least(0))
    validation: int = _field("data", "hold out that many training images, the last ones, to choose by", 0, _at_least(0))
    augment: bool = _field("data", "crop and flip the training images at random", False)
    epochs: int = _field("training", "passes over the training data", 60, _at_least(1))
    batch_size: int = _field("training", "samples per step", 64, _at_least(2))
    optimizer: str = _field("training", "optimizer of the active weights", "sgd", choices=_of("sgd", "adam"))
    lr: float = _field("training", "learning rate at first", 0.1, _at_least(0))
    lr_schedule: str = _field("training", "how it falls, to 0 at the end", "cosine", choices=_of("cosine", "constant"))
    warmup_epochs: int = _field("training", "epochs in which it rises to lr in equal steps, first of all", 0, _at_least(0))
    momentum: float = _field("training", "momentum of SGD", 0.9, _BELOW_ONE)
    weight_decay: float = _field("training", "weight decay of the optimizer", 5e-4, _at_least(0))
    nesterov: bool = _field("training", "Nesterov momentum of SGD", True)
    label_smoothing: float = _field("training", "share of a label that is spread over all classes", 0.0, _BELOW_ONE)
    precision: str = _field("training", "of the forward and backward", "float32", choices=_of("float32", "bfloat16"))
    device: str = _field("run", "where the network is trained", "cpu", choices=_of("cpu", "cuda"))
    threads: int = _field(
        "run", "threads of the arithmetic; part of what decides the bits", 1, ("in 1..1024", lambda x: 1 <= x <= 1024)
    )
    workers: int = _field(
        "run", "threads that read images from their files", 4, ("in 1..256", lambda x: 1 <= x <= 256), free=True
    )
    checkpoint_every: int = _field("run", "optimizer steps from one checkpoint to the next", 400, _at_least(1), free=True)
    keep_checkpoints: int = _field(
        "run", "checkpoints that are kept per training, until the run has finished", 2, _at_least(1), free=True
    )
    keep_masks: bool = _field("run", "keep the masks of every recorded update, for pictures of their overlap", False, free=True)
    ignored_at: tuple[int, ...] = _field("run", "mask updates of which to measure what they ignored (Fig. 1), as 60,200", (),
                                         _STEPS, free=True)  # fmt: skip
    ignored_steps: int = _field("run", "steps after such an update at which to look what is important", 100, _at_least(1),
                                free=True)  # fmt: skip

    log: str = _field("run", "log to tensorboard or wandb too; as often as needed", "", free=True)

    @staticmethod
    def resolve(given: Mapping[str, object]) -> Config:
        """The configuration from whatever ``given`` names, the rest from the defaults.

        Raises:
            UsageError: an unknown name, a wrong type or a number out of range; all of them, in one line.
        """
        fields = {f.name: f for f in dataclasses.fields(Config)}
        wrong = []
        for name in given:
            if name not in fields:
                wrong.append(f"unknown setting {name!r}{did_you_mean(name, fields)}")
        data = given.get("data", Config.data)
        of_data: Mapping[str, object] = {}
        try:
            of_data = find_source(data).settings if isinstance(data, str) else {}
        except UsageError as error:
            wrong.append(str(error))
        values = {**of_data}
        if given.get("compare"):
            values["seeds"] = 3
        values |= {name: given[name] for name in given if name in fields}
        for name, value in values.items():
            try:
                values[name] = _CHECKS.get(name, partial(_checked, fields[name]))(value)
            except UsageError as error:
                wrong.append(str(error))
        if not wrong:
            wrong += _contradictions({**{name: f.default for name, f in fields.items()}, **values}, of_data)
        if wrong:
            raise UsageError("; ".join(wrong))
        settings = values.pop("method_settings", {})
        config = Config(**values)  # type: ignore[arg-type]  # just checked
        checked = check_settings(settings, config.methods(), bool(config.compare))
        return dataclasses.replace(config, method_settings=tuple(sorted(checked.items())))

    def to_dict(self) -> dict[str, object]:
        """Plain types, as stored in JSON; :meth:`resolve` reads it back."""
        values = dataclasses.asdict(self)
        lists = {"hidden": list(self.hidden), "ignored_at": list(self.ignored_at)}
        return {**values, **lists, "method_settings": dict(self.method_settings)}

    def identity(self) -> dict[str, object]:
        """The settings that decide the result; the others may change when a run is resumed."""
        free = {f.name for f in dataclasses.fields(self) if setting(f).free}
        free |= {"c" if self.c_rel else "c_rel"}
        # Runs without these settings are as they were before there were any.
        free |= {f.name for f in dataclasses.fields(self) if f.name in _SINCE_0_1_0 and getattr(self, f.name) == f.default}
        return {name: value for name, value in self.to_dict().items() if name not in free}

    def of_training(self, method: str) -> dict[str, object]:
        """The settings that decide one training; how many others stand beside it does not matter to it."""
        others = ("compare", "method", "method_settings", "seed", "seeds")
        own = self.settings_of(method)
        rest = {name: value for name, value in self.identity().items() if name not in others}
        return {**rest, "method_settings": own} if own else rest

    def settings_of(self, method: str) -> dict[str, Value]:
        """What ``--set`` says of one method."""
        return of_method(dict(self.method_settings), method, bool(self.compare))

    def make(self, method: str) -> Method | None:
        """The method with what the configuration says of its settings; None for what is none (dense, STR).

        Raises:
            UsageError: the method's own objection.
        """
        shared: dict[str, object] = {"eps": self.eps, **({"c_rel": self.c_rel} if self.c_rel else {"c": self.c})}
        if self.order != "default":
            shared["order"] = self.order
        return make_method(method, self.settings_of(method), shared)

    def methods(self) -> tuple[str, ...]:
        """The keys of what the run trains, for each seed."""
        if isinstance(self.compare, str):
            return grouped_keys() if self.compare == "all" else tuple(self.compare.split(","))
        return COMPARED if self.compare else (self.method,)

    def trials(self) -> list[tuple[str, int]]:
        """(method, seed) of every training of the run, in order."""
        return [(method, self.seed + i) for i in range(self.seeds) for method in self.methods()]

    def trainings(self) -> list[tuple[str, tuple[int, ...]]]:
        """(method, seeds) of what is trained together, in order."""
        if self.batch_seeds:
            return [(method, tuple(range(self.seed, self.seed + self.seeds))) for method in self.methods()]
        return [(method, (seed,)) for method, seed in self.trials()]


_SINCE_0_1_0 = {
    "batch_seeds", "method_settings", "model", "train_limit", "validation", "augment", "optimizer", "warmup_epochs",
    "label_smoothing", "precision", "device",
}  # fmt: skip


def _checked_comparison(value: object) -> bool | str:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise UsageError(f"compare must be true, false, all or a list of methods, got {value!r}")
    keys = [] if value == "all" else value.split(",")
    for key in keys:
        if key not in method_keys():
            hint = did_you_mean(key, method_keys())
            raise UsageError(f"compare: unknown method {key!r}{hint}, expected all or some of {','.join(grouped_keys())}")
        if keys.count(key) > 1:
            raise UsageError(f"compare: {key} is given twice")
    return value


def _checked_settings(value: object) -> object:
    """As an object, whose values are checked when the methods are known; of the command line a list of texts."""
    return parse_pairs(value) if isinstance(value, list) else dict(value) if isinstance(value, tuple) else value


def _checked_model(value: object) -> object:
    if not isinstance(value, str):
        raise UsageError(f"model must be a name, got {value!r}")
    find_model(value)
    return value


def _checked_log(value: object) -> object:
    """Names with commas; of the command line a list of them."""
    names = value.split(",") if isinstance(value, str) and value else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"log must be one of {', '.join(LOGS)}, or some with commas, got {value!r}")
    for name in names:
        if name not in LOGS:
            raise UsageError(f"log: unknown {name!r}{did_you_mean(name, LOGS)}, expected {' or '.join(LOGS)}")
    return ",".join(dict.fromkeys(names))


_CHECKS: dict[str, Callable[[object], object]] = {
    "compare": _checked_comparison,
    "method_settings": _checked_settings,
    "model": _checked_model,
    "log": _checked_log,
}


def _checked(field: dataclasses.Field[object], value: object) -> object:
    default, name = field.default, field.name
    if isinstance(default, tuple):
        if not isinstance(value, (list, tuple)) or not all(type(item) is int for item in value):
            raise UsageError(f"{name} must be a list of whole numbers, got {value!r}")
        value = tuple(value)
    elif isinstance(default, float):
        if type(value) not in (int, float) or not -sys.float_info.max <= value <= sys.float_info.max:  # type: ignore[operator]
            raise UsageError(f"{name} must be a finite number, got {value!r}")
        value = float(value)  # type: ignore[arg-type]
    elif type(value) is not type(default):
        raise UsageError(f"{name} must be of type {type(default).__name__}, got {value!r}")
    elif isinstance(value, int) and abs(value) >= _TOO_LARGE:
        raise UsageError(f"{name} must be below 2^31, got {value}")
    choices, limit = setting(field).choices, setting(field).limit
    if choices and value not in choices():
        raise UsageError(f"{name} must be one of {', '.join(choices())}, got {value!r}{did_you_mean(value, choices())}")
    if limit and not limit[1](value):
        percent = setting(field).text.startswith("share") and isinstance(value, float) and 1 < value < 100
        hint = f": {value:g} % is {value / 100:g}" if percent else ""  # type: ignore[operator]  # a float
        raise UsageError(f"{name} must be {limit[0]}, got {json.dumps(value)}{hint}")
    return value


def _contradictions(values: Mapping[str, Any], of_data: Mapping[str, object]) -> list[str]:
    """Settings, each valid, that exclude each other, or that were given and would do nothing. Those of methods may do nothing:
    a comparison and a grid share them."""
    given = {f.name for f in dataclasses.fields(Config) if values[f.name] not in (f.default, of_data.get(f.name, f.default))}
    optimizer, model, drop = values["optimizer"], values["model"], values["drop_schedule"]
    floors = any(f.name == "floor" for f in dataclasses.fields(known_drops()[drop]))
    useless = {name: f"{optimizer} has none" for name in ("momentum", "nesterov") if optimizer != "sgd"}
    useless |= {} if takes(find_model(model), "hidden") else {"hidden": f"the model {model} has widths of its own"}
    useless |= {} if floors else {"drop_floor": f"the drop schedule {drop} has none"}
    useless |= {} if values["ignored_at"] else {"ignored_steps": "ignored_at names no updates to measure"}
    useless |= {"method": "compare names the methods"} if values["compare"] else {}
    wrong = [f"{name} would do nothing, {why}: leave it out" for name, why in useless.items() if name in given]
    if optimizer == "sgd" and values["nesterov"] and values["momentum"] == 0:
        wrong.append("nesterov needs a momentum > 0: pass --no-nesterov or a momentum")
    if values["c_rel"] and "c" in given:
        wrong.append("c and c_rel are both given: c_rel is c in units of the gradient; pass one")
    if values["compare"] and values["label"]:
        wrong.append("label would give all methods of the comparison one name: leave it out")
    if floors and values["drop_floor"] > values["drop_fraction"]:
        wrong.append(f"drop_floor must be at most drop_fraction {values['drop_fraction']:g}, got {values['drop_floor']:g}")
    if values["warmup_epochs"] >= values["epochs"]:
        wrong.append(f"warmup_epochs must be less than epochs {values['epochs']}, got {values['warmup_epochs']}")
    return wrong


def differences(here: Mapping[str, object], there: Mapping[str, object]) -> list[str]:
    """``name: there -> here`` for every setting in which two configurations differ."""
    names = sorted(set(here) | set(there))
    return [
        f"{n} is {json.dumps(there.get(n))} there, {json.dumps(here.get(n))} here" for n in names if here.get(n) != there.get(n)
    ]
