"""The kernels of another commit, called by this commit's Python: what differs between the two is the kernels alone."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dstee import backends
from dstee.backends import version_counters

from ..before import Build
from ..session import Contender, Setting
from .dstee import Backend

__all__ = ["Before", "adapter", "contenders"]

KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
NEUTRAL = {"regrow": True, "reset_regrown": False}
"""What an argument that the other commit has not got must be; else its default, None or an empty list."""

_libraries: list[torch.library.Library] = []  # one that is let go of takes its ops along


def contenders(builds: Sequence[Build]) -> list[Contender]:
    """The updates and the steps of other commits."""
    found = []
    for one in builds:
        rule = f"the compiled kernels of commit {one['commit'][:12]}"
        for op in ("drop_grow", "masked_sgd"):
            found.append(
                Contender(one["name"], op, rule, functools.partial(Before, build=one), step=one["name"], asked=True,
                          why_not=_why_not)
            )  # fmt: skip
    return found


def _why_not(device: str, dtype: str) -> str | None:
    return None if device == "cpu" else "the kernels of other commits are built for the CPU only"


class Before(Backend):
    """As dstee's own backends, through the public functions."""

    def __init__(self, setting: Setting, build: Build) -> None:
        if build["name"] not in backends.BACKENDS:
            backends.BACKENDS[build["name"]] = _load(build)
        super().__init__(setting, build["name"])


def _load(build: Build) -> backends.Backend:
    library = torch.library.Library(build["space"], "DEF")
    _libraries.append(library)
    for schema in build["schemas"].values():
        library.define(schema)
    torch.ops.load_library(build["library"])

    @functools.cache
    def function(op: str) -> Callable[..., None]:
        kernel = getattr(getattr(torch.ops, build["space"]), op).default
        take = adapter(getattr(torch.ops.dstee, op).default._schema, kernel._schema)
        written = version_counters.written(op)

        def call(*args: Any) -> None:
            kernel.redispatch(KEYS, *take(args))
            for i in written:
                version_counters.bump(args[i])

        return call

    return backends.Backend(build["name"], lambda op, device: _why_not(device.type, ""), function, guards_itself=True)


def adapter(ours: torch.FunctionSchema, theirs: torch.FunctionSchema) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """From the arguments of this commit's op to those of the other's, by name and type.

    Raises:
        RuntimeError: the other op wants an argument that is not known here; or, when called, an argument that it has not got
            says something.
    """
    own, other = ([(a.name, str(a.type)) for a in schema.arguments] for schema in (ours, theirs))
    if own == other:
        return lambda args: args
    place = {name: i for i, (name, _) in enumerate(own)}
    takes: list[Callable[[Sequence[Any]], Any]] = []
    used: set[str] = set()
    for (name, kind), argument in zip(other, theirs.arguments, strict=True):
        if (name, kind) in own:
            used.add(name)
            takes.append(operator.itemgetter(place[name]))
        elif name in FIELDS and "sgd" in place:
            used |= {"sgd", "lr"}
            takes.append(functools.partial(FIELDS[name], place["sgd"], place["lr"]))
        elif argument.has_default_value():
            takes.append(functools.partial(_constant, argument.default_value))
        else:
            raise RuntimeError(f"its {theirs.name} wants {name} ({kind}), which this commit's has not got")
    defaults = [a.default_value if a.has_default_value() else None for a in ours.arguments]
    left = [(name, i) for name, i in place.items() if name not in used]

    def take(args: Sequence[Any]) -> list[Any]:
        args = [*args, *defaults[len(args) :]]
        for name, i in left:
            if not is_neutral(args[i], NEUTRAL.get(name, defaults[i])):
                raise RuntimeError(f"its {theirs.name} has no argument {name}")
        return [one(args) for one in takes]

    return take


def is_neutral(value: Any, default: Any) -> bool:
    return value is None or value is default or (isinstance(value, list) and not value)


def _constant(value: Any, args: Sequence[Any]) -> Any:
    return value


def _field(at: int, kind: type, sgd: int, lr: int, args: Sequence[Any]) -> Any:
    """A number of the packed SGD rule, of which 0.1.0 had an argument for each."""
    return kind(args[sgd][at]) if args[sgd] else kind(0)


def _has_rule(sgd: int, lr: int, args: Sequence[Any]) -> bool:
    return bool(args[sgd])


def _lr_tensor(sgd: int, lr: int, args: Sequence[Any]) -> Any:
    return args[lr]


FIELDS: dict[str, Callable[[int, int, Sequence[Any]], Any]] = {
    "sgd": _has_rule,
    "lr_tensor": _lr_tensor,
    **{
        name: functools.partial(_field, at, bool if at > 3 else float)
        for at, name in enumerate(("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "first_step"))
    },
}
"""Arguments of 0.1.0 that the list ``sgd`` and the tensor ``lr`` stand for since."""
