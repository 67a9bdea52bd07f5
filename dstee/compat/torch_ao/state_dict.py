"""``DSTEESparsifier.state_dict``: what it holds, and what is checked when it comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from dstee._state_checks import counts_out_of_range, is_int
from dstee.compat.plain_masks import check_mask
from dstee.compat.torch_ao.arguments import check_level, method_from_dict
from dstee.encoding import MAX_ROUNDS
from dstee.methods import Method
from dstee.schedule import UpdateSchedule

__all__ = ["Entry", "Progress", "Restored", "counts_problem", "decode", "encode"]

_NOT_SAVED = ("module", "module_fqn", "tensor_name")
_PROGRESS = ("t", "seed", "method", "schedule")


class Entry(TypedDict, total=False):
    """One layer: its mask, the updates it has seen and, for DST-EE, its counters (int16 [n], as the kernels store them)."""

    mask: Tensor
    round: int
    counts: Tensor


@dataclass(frozen=True)
class Progress:
    """What a sparsifier counts beside its layers."""

    t: int
    seed: int
    method: Method
    schedule: UpdateSchedule


@dataclass(frozen=True)
class Restored:
    """A state that has passed every check: by layer, its entry and the options of its group.

    ``progress`` is None in the state of another sparsifier, which has masks alone.
    """

    entries: dict[str, Entry]
    options: dict[str, dict[str, Any]]
    progress: Progress | None


def encode(state: Mapping[str, Mapping[str, Any]], groups: Sequence[Mapping[str, Any]], progress: Progress) -> dict[str, Any]:
    """``BaseSparsifier``'s ``state`` and ``groups``, and the progress; copies all tensors."""
    return {
        "state": {
            fqn: {key: v.detach().clone() if isinstance(v, Tensor) else v for key, v in entry.items()}
            for fqn, entry in state.items()
        },
        "groups": [{key: value for key, value in group.items() if key not in _NOT_SAVED} for group in groups],
        "t": progress.t,
        "seed": progress.seed,
        "method": progress.method.to_dict(),
        "schedule": progress.schedule.to_dict(),
    }


def decode(
    saved: object, shapes: Mapping[str, torch.Size], levels: Mapping[str, float], method: Method, strict: bool
) -> Restored:
    """Checks all of ``saved`` against a sparsifier's layers, by their shapes and sparsity levels; changes nothing.

    Args:
        method: the sparsifier's, for a state that names none.
        strict: the state must have these layers and no others; else those that both have are taken.

    Raises:
        RuntimeError: listing all that does not fit.
    """
    if (
        not isinstance(saved, Mapping)
        or not isinstance(saved.get("state"), Mapping)
        or not isinstance(saved.get("groups"), Sequence)
        or not all(isinstance(group, Mapping) and isinstance(group.get("tensor_fqn"), str) for group in saved["groups"])
    ):
        raise RuntimeError("the state holds no 'state' and 'groups': was it made by a sparsifier's state_dict()?")
    problems: list[str] = []
    missing = [key for key in _PROGRESS if key not in saved]
    if missing and len(missing) < len(_PROGRESS):
        problems.append(f"{', '.join(missing)}: missing from the state")
    progress = None if missing else _progress(saved, problems)
    method = method if progress is None else progress.method
    states, groups = saved["state"], {group["tensor_fqn"]: group for group in saved["groups"]}
    if len(groups) != len(saved["groups"]):
        problems.append("a layer stands twice among the groups")
    if strict:
        problems += [f"{fqn}: in the model, not in the state" for fqn in shapes if fqn not in states]
        problems += [f"{fqn}: in the state, no layer of this sparsifier" for fqn in states if fqn not in shapes]
    elif not set(shapes) & set(states):
        problems.append("no layer of the state is a layer of this sparsifier")
    common = shapes.keys() & states.keys()
    for fqn in common:
        level = groups[fqn].get("sparsity_level") if fqn in groups else levels[fqn]
        found = _check_entry(states[fqn], shapes[fqn], level, method, not missing)
        problems += [f"{fqn}: {text}" for text in found]
    if problems:
        raise RuntimeError("cannot load the sparsifier's state, nothing was changed:\n  " + "\n  ".join(sorted(problems)))
    options = {fqn: {key: v for key, v in groups.get(fqn, {}).items() if key not in ("tensor_fqn", "mask")} for fqn in common}
    return Restored({fqn: states[fqn] for fqn in common}, options, progress)


def _progress(saved: Mapping[str, Any], problems: list[str]) -> Progress | None:
    """The progress; what cannot be read is written to ``problems``."""
    t, seed = saved["t"], saved["seed"]
    for name, value, low, high in (("t", t, 0, 2**63 - 1), ("seed", seed, -(2**63), 2**64 - 1)):
        if not is_int(value, low, high):
            problems.append(f"{name} must be an int in {low}..{high}, got {value!r}")
    try:
        return Progress(t, seed, method_from_dict(saved["method"]), UpdateSchedule.from_dict(saved["schedule"]))
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        problems.append(str(error))
        return None


def _check_entry(entry: object, shape: torch.Size, level: object, method: Method, whole: bool) -> list[str]:
    if not isinstance(entry, Mapping):
        return [f"expected a dict, got {type(entry).__name__}"]
    try:
        check_mask("this layer", entry.get("mask"), shape)
        check_level("sparsity_level", level)
    except (ValueError, TypeError) as error:
        return [str(error)]
    if not whole:
        return []
    round, counts = entry.get("round"), entry.get("counts")
    if not isinstance(round, int) or not is_int(round, 0, MAX_ROUNDS - 1):
        return [f"round must be in 0..{MAX_ROUNDS - 1}, got {round!r}"]
    if counts is None:
        return [f"counts are missing, {method.name} needs them"] if method.needs_counter else []
    problem = counts_problem(counts, shape.numel(), round)
    return [f"counts {problem}"] if problem else []


def counts_problem(counts: object, n: int, round: int) -> str | None:
    """What is wrong with saved counters of a layer of ``n`` weights after ``round`` updates; None when nothing is."""
    if not isinstance(counts, Tensor) or counts.dtype != torch.int16 or counts.shape != (n,):
        return f"must be int16 [{n}]"
    return counts_out_of_range(counts, round)
