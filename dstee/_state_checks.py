"""What both formats of ``SparseModel.state_dict`` check, and what a state is once it has passed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor

from dstee._dispatch import is_wrapper
from dstee.distributed.ranks import Ranks, agree_on, reduce_each, sum_each
from dstee.encoding import MAX_ROUNDS
from dstee.methods import Method, method_from_dict
from dstee.parameter_names import match_names
from dstee.schedule import UpdateSchedule
from dstee.sparse_layer import SparseLayer

T = TypeVar("T")


@dataclass(frozen=True)
class Restored:
    """A state that has passed every check.

    ``tensors[name]``: mask and previous (packed) and counts, 1-D in row-major order, the absent ones None. ``kept``: float32 of
    the weight's shape. Of weights that are cut among ranks, this rank's part.
    """

    t: int
    round: int
    seed: int
    method: Method
    schedule: UpdateSchedule
    nnz: dict[str, int]
    tensors: dict[str, dict[str, Tensor | None]]
    numbers: dict[str, float]
    budget: dict[str, int]
    kept: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Claim:
    """What the state says of the whole of a layer and this rank knows a part of: the parts must add up, modulo 2^64."""

    layer: SparseLayer
    mine: int
    expected: int
    otherwise: str
    """What is wrong where they do not; {} is what they add up to."""


@dataclass(frozen=True)
class Checked:
    """A state after all that one rank alone can find out. ``restored`` is good where there are no ``problems`` and the
    ``claims`` hold; ``digest`` tells it from other states."""

    restored: Restored
    problems: list[str]
    claims: list[Claim]
    digest: str


def agree(checked: Checked, layers: Iterable[SparseLayer]) -> Restored:
    """What is restored. All ranks that hold parts of the layers come here together; plain ones have no others.

    Raises:
        ValueError: what is wrong, the same text on all ranks.
    """
    everyone = list(dict.fromkeys(layer.everyone for layer in layers))
    if any(everyone):
        refuse(checked.problems, everyone)
        number = int(checked.digest[:15], 16)
        largest = reduce_each(torch.tensor([number, -number] * len(everyone)), [r for r in everyone for _ in range(2)], True)
        differ = bool((largest[::2] + largest[1::2]).any())
        refuse(["the ranks load different states: all of them must read the same one"] * differ, everyone)
    totals = sum_each([claim.mine for claim in checked.claims], [claim.layer.holders for claim in checked.claims])
    broken = [(claim, total) for claim, total in zip(checked.claims, totals, strict=True) if total != claim.expected]
    refuse(checked.problems + [f"{c.layer.name}: {c.otherwise.format(total)}" for c, total in broken], everyone)
    return checked.restored


def refuse(problems: list[str], everyone: Iterable[Ranks | None]) -> None:
    """Raises ValueError where there are problems, on any rank."""
    text = agree_on(str(error(problems)) if problems else None, everyone)
    if text is not None:
        raise ValueError(text)


def is_int(value: object, low: int, high: int) -> bool:
    """Whether ``value`` is an int (no bool) in low..high."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object, low: float = -sys.float_info.max, high: float = sys.float_info.max) -> bool:
    """Whether ``value`` is a finite number (no bool) in low..high."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def is_dense(t: object) -> TypeGuard[Tensor]:
    """Whether ``t`` is a tensor whose values can be read from its own memory, all of which is there."""
    if not isinstance(t, Tensor) or t.layout is not torch.strided or t.is_meta or t.is_nested or is_wrapper(t):
        return False
    if not t.numel():
        return True
    last = t.storage_offset() + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.untyped_storage().nbytes() >= (last + 1) * t.element_size()


def counts_out_of_range(counts: Tensor, round: int) -> str | None:
    """What is wrong with the numbers in stored counters after ``round`` updates; None when nothing is."""
    if not counts.numel():
        return None
    low, high = (int(x) for x in counts.aminmax())
    return f"lie in {low}..{high}, expected 0..{round}" if low < 0 or high > round else None


def digest_of(plain: object) -> str:
    """blake2b over what is not a tensor, as JSON with sorted keys.

    Raises:
        TypeError, ValueError, RecursionError: it is not plain.
    """
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()


def error(problems: list[str]) -> ValueError:
    return ValueError("cannot load the sparse state, nothing was changed:\n  " + "\n  ".join(problems))


def read_progress(
    values: Mapping[str, Any], counted: bool, problems: list[str]
) -> tuple[int, int, int, Method | None, UpdateSchedule | None]:
    """t, round, seed, method and schedule; what is wrong with them goes to ``problems``. ``counted``: there are counters."""
    t, round, seed = values["t"], values["round"], values["seed"]
    if not is_int(t, 0, 2**63 - 1):
        problems.append(f"t must be a step number, got {t!r}")
    most = MAX_ROUNDS - 1 if counted else 2**63 - 1  # only counters limit the rounds
    if not is_int(round, 0, most):
        problems.append(f"round must be in 0..{most}, got {round!r}")
    elif is_int(t, 0, 2**63 - 1) and round > t:
        problems.append(f"round is {round}, more than the {t} steps taken")
    if not is_int(seed, -(2**63), 2**64 - 1):
        problems.append(f"seed must be an int of 64 bits, got {seed!r}")
    method = _read("method", method_from_dict, values["method"], problems)
    schedule = _read("schedule", UpdateSchedule.from_dict, values["schedule"], problems)
    return t, round, seed, method, schedule


def _read(key: str, from_dict: Callable[[dict[str, Any]], T], value: object, problems: list[str]) -> T | None:
    if not isinstance(value, dict) or not all(isinstance(v, (str, int, float, bool)) for v in (*value, *value.values())):
        problems.append(f"{key} is no dict of plain values")
        return None
    try:
        return from_dict(value)
    except (ValueError, TypeError, OverflowError) as wrong:
        problems.append(f"{key}: {wrong}")
        return None


def match_layers(
    saved: Iterable[object], layers: Mapping[str, SparseLayer], strict: bool, problems: list[str]
) -> dict[str, str]:
    """Name in the model -> saved name, of the layers that both have; the others go to ``problems`` where all must match."""
    names = list(saved)
    matched = match_names([name for name in names if isinstance(name, str)], layers)
    found = {ours: name for name, ours in matched.items()}
    if strict or not matched:
        problems += [f"{name}: in the model, not in the state" for name in layers if name not in found]
        problems += [f"{name!r}: in the state, no sparse layer of the model" for name in names if name not in matched]
    return found


def check_numbers(numbers: object, method: Method | None, problems: list[str]) -> None:
    """The method's numbers are those that it keeps."""
    if method is not None and (
        not isinstance(numbers, dict)
        or numbers.keys() != method.initial_numbers().keys()
        or not all(type(x) is float for x in numbers.values())
    ):
        expected = sorted(method.initial_numbers())
        problems.append(f"numbers are {numbers!r}, {method.name} keeps {expected}: they are another method's")


def same_shape(shape: object, layer: SparseLayer) -> bool:
    return isinstance(shape, list) and all(type(d) is int for d in shape) and shape == list(layer.shape)


def check_weights_counted(saved: Mapping[str, Any], layer: SparseLayer, strict: bool, method: Method | None) -> list[str]:
    """What is wrong with ``nnz`` and ``budget`` of a layer, by themselves and for this model."""
    nnz, budget, n = saved.get("nnz"), saved.get("budget"), layer.numel
    if not is_int(nnz, 0, n):
        return [f"nnz must be in 0..{n}, got {nnz!r}"]
    wrong = []
    moves = method is not None and method.moves_budgets
    if not is_int(budget, 0, n) and (moves or "budget" in saved):
        wrong.append(f"budget must be in 0..{n}, got {budget!r}")
    chosen = moves or (method is not None and method.chooses_budgets)
    if strict and not chosen and nnz != layer.nnz:
        wrong.append(f"{nnz} active weights, the model has {layer.nnz} (strict=False takes over the saved number)")
    return wrong


def of_another_method(key: object, method: Method) -> str:
    return f"kept tensor {key!r} is none of {method.name}'s, {list(method.keeps)}: it is another method's"
