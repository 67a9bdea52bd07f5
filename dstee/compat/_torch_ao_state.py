"""``DSTEESparsifier.state_dict``: what it holds, and what is checked when it comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dstee.encoding import MAX_ROUNDS
from dstee.methods import method_from_dict
from dstee.schedule import UpdateSchedule

if TYPE_CHECKING:
    from dstee.compat.torch_ao import DSTEESparsifier

_NOT_SAVED = ("module", "module_fqn", "tensor_name")
_EXTRA = ("t", "seed", "method", "schedule")


def check_mask(name: str, mask: Any, shape: torch.Size) -> None:
    """Raises ValueError unless ``mask`` is a tensor of 0 and 1 with this shape."""
    if not isinstance(mask, Tensor) or mask.shape != shape:
        got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"the mask of {name} is {got}, expected a tensor of shape {list(shape)}")
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"the mask of {name} holds other values than 0 and 1")


def encode(sparsifier: DSTEESparsifier) -> dict[str, Any]:
    state = {
        fqn: {key: v.detach().clone() if isinstance(v, Tensor) else v for key, v in entry.items()}
        for fqn, entry in sparsifier.state.items()
    }
    groups = [{key: value for key, value in group.items() if key not in _NOT_SAVED} for group in sparsifier.groups]
    return {
        "state": state,
        "groups": groups,
        "t": sparsifier.t,
        "seed": sparsifier.seed,
        "method": sparsifier.method.to_dict(),
        "schedule": sparsifier.schedule.to_dict(),
    }


def restore(sparsifier: DSTEESparsifier, saved: Mapping[str, Any], strict: bool) -> None:
    if not sparsifier.groups or sparsifier._squashed:
        raise RuntimeError("load_state_dict() before prepare(): call prepare(model, config) with the same layers first")
    if not isinstance(saved, Mapping) or not all(key in saved for key in ("state", "groups")):
        raise RuntimeError("the state holds no 'state' and 'groups': was it made by a sparsifier's state_dict()?")
    problems: list[str] = []
    missing = [key for key in _EXTRA if key not in saved]
    if missing and len(missing) < len(_EXTRA):
        problems.append(f"{', '.join(missing)}: missing from the state")
    values = None if missing else _values(sparsifier, saved, problems)
    method = sparsifier.method if values is None else values[2]
    own = {group["tensor_fqn"]: group for group in sparsifier.groups}
    states, configs = saved["state"], {g.get("tensor_fqn"): g for g in saved["groups"] if isinstance(g, Mapping)}
    if strict:
        problems += [f"{fqn}: in the model, not in the state" for fqn in own if fqn not in states]
        problems += [f"{fqn}: in the state, no layer of this sparsifier" for fqn in states if fqn not in own]
    elif not set(own) & set(states):
        problems.append("no layer of the state is a layer of this sparsifier")
    for fqn in own.keys() & states.keys():
        level = configs.get(fqn, own[fqn]).get("sparsity_level")
        found = _check_entry(sparsifier, own[fqn], states[fqn], level, method, not missing)
        problems += [f"{fqn}: {text}" for text in found]
    if problems:
        raise RuntimeError("cannot load the sparsifier's state, nothing was changed:\n  " + "\n  ".join(sorted(problems)))

    for fqn in own.keys() & states.keys():
        _restore_entry(sparsifier, own[fqn], states[fqn], method.needs_counter)
        own[fqn].update({k: v for k, v in configs.get(fqn, {}).items() if k in own[fqn] and k not in ("tensor_fqn", "mask")})
    if values is not None:
        sparsifier.t, sparsifier.seed, sparsifier.method, sparsifier.schedule = values


def _values(sparsifier: DSTEESparsifier, saved: Mapping[str, Any], problems: list[str]) -> tuple[Any, ...]:
    """t, seed, method and schedule; what cannot be read is written to ``problems``."""
    from dstee.compat.torch_ao import Magnitude

    t, seed, method, schedule = saved["t"], saved["seed"], sparsifier.method, sparsifier.schedule
    for name, value in (("t", t), ("seed", seed)):
        if type(value) is not int or (name == "t" and value < 0):
            problems.append(f"{name} must be an int, got {value!r}")
    try:
        plain = dict(saved["method"])
        if plain.get("method") == Magnitude.key:
            plain.pop("method")
            method = Magnitude(**plain)
        else:
            method = method_from_dict(plain)
        schedule = UpdateSchedule.from_dict(saved["schedule"])
    except (ValueError, TypeError) as error:
        problems.append(str(error))
    return t, seed, method, schedule


def _check_entry(
    sparsifier: DSTEESparsifier, group: Mapping[str, Any], entry: Any, level: Any, method: Any, whole: bool
) -> list[str]:
    from dstee.compat.torch_ao import check_level

    if not isinstance(entry, Mapping):
        return [f"expected a dict, got {type(entry).__name__}"]
    original = sparsifier._original(group)
    try:
        check_mask("this layer", entry.get("mask"), original.shape)
        check_level("sparsity_level", level)
    except (ValueError, TypeError) as error:
        return [str(error)]
    if not whole:
        return []
    round, counts, n = entry.get("round"), entry.get("counts"), original.numel()
    if type(round) is not int or not 0 <= round < MAX_ROUNDS:
        return [f"round must be in 0..{MAX_ROUNDS - 1}, got {round!r}"]
    if counts is None:
        return [f"counts are missing, {method.name} needs them"] if method.needs_counter else []
    if not isinstance(counts, Tensor) or counts.dtype != torch.int16 or counts.shape != (n,):
        return [f"counts must be int16 [{n}]"]
    low, high = (int(x) for x in counts.aminmax())
    return [] if low >= 0 and high <= round else [f"counts lie in {low}..{high}, expected 0..{round}"]


def _restore_entry(sparsifier: DSTEESparsifier, group: dict[str, Any], entry: Mapping[str, Any], counted: bool) -> None:
    mask = sparsifier._mask_module(group).mask
    mask.copy_(entry["mask"])
    state: dict[str, Any] = {"mask": mask, "round": entry.get("round", 0)}
    if isinstance(entry.get("counts"), Tensor):
        state["counts"] = entry["counts"].to(mask.device, copy=True)
    elif counted:
        state["counts"] = torch.zeros(mask.numel(), dtype=torch.int16, device=mask.device)
    sparsifier.state[group["tensor_fqn"]] = state
