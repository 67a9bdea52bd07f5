"""``SparseModel.state_dict()``, format 2: tensors with the shape of their weight, and one text that says all the rest.

    {"head": str,
     "layers": {name: {"mask": uint8,             bit 0: active, bit 1: active before the last update; equal before the first
                       "counts": int16,           only with counters, as they are stored (dstee.encoding.flip_counts)
                       "kept": {key: float32}}}}  only for methods that keep tensors, all of them from the start

The head is JSON:

    {"format_version": 2, "t": int, "round": int, "seed": int, "method": dict, "schedule": dict, "numbers": {key: float},
     "layers": {name: {"shape": [int], "nnz": int, "updated": bool,
                       "fingerprints": {"mask": int, "counts": int, "kept.KEY": int},
                       "budget": int}},           only where updates move budgets
     "digest": str}                               of the head without it

Which keys there are depends on the model and its method alone, never on how long it has been trained: checkpoints that are read
into the tensors of a fresh model's state find them all. A kept tensor that was never asked for is 0 and has no fingerprint.
Tensors are plain, row-major and on the CPU. The fingerprints (dstee.distributed.state) are those of the whole tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dstee import ops
from dstee._files import parse_json
from dstee._state_checks import (
    Restored,
    check_numbers,
    check_weights_counted,
    counts_out_of_range,
    digest_of,
    error,
    is_dense,
    is_int,
    match_layers,
    of_another_method,
    read_progress,
    same_shape,
)
from dstee.distributed.state import fingerprints
from dstee.distributed.where import whole
from dstee.encoding import MAX_ROUNDS
from dstee.methods import Method
from dstee.schedule import UpdateSchedule
from dstee.sparse_layer import SparseLayer, reorder, row_major

FORMAT_VERSION = 2
_HEAD = {"format_version", "t", "round", "seed", "method", "schedule", "numbers", "layers", "digest"}
_LAYER = {"shape", "nnz", "updated", "fingerprints", "budget"}
_KEPT = "kept."


def encode(
    t: int, round: int, seed: int, method: Method, schedule: UpdateSchedule, layers: Mapping[str, SparseLayer],
    budget: Mapping[str, int], numbers: Mapping[str, Tensor],
) -> dict[str, Any]:  # fmt: skip
    tensors, described = {}, {}
    for name, layer in layers.items():
        tensors[name], described[name] = _encode_layer(layer, method)
        if method.moves_budgets:
            described[name]["budget"] = budget[name]
    head = {
        "format_version": FORMAT_VERSION,
        "t": t,
        "round": round,
        "seed": seed,
        "method": method.to_dict(),
        "schedule": schedule.to_dict(),
        "numbers": {key: float(x) for key, x in numbers.items()},
        "layers": described,
    }
    return {"head": json.dumps(head | {"digest": digest_of(head)}), "layers": tensors}


def _encode_layer(layer: SparseLayer, method: Method) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a layer, and what the head says of it."""
    layer.follow()
    active = layer.bools(layer.mask_bits)
    before = active if layer.previous_bits is None else layer.bools(layer.previous_bits)
    flat = {"mask": (active.byte() | before.byte() << 1).reshape(-1)}
    if layer.counts is not None:
        flat["counts"] = reorder(layer.counts, layer.shape, layer.strides, row_major(layer.shape))
    for key, t in layer.state.items():
        flat[_KEPT + key] = layer.fit_float(t).reshape(-1)
    found = fingerprints(list(flat.values()), whole(layer.numel)).tolist()
    shaped = {key: t.view(layer.shape).to("cpu", copy=True) for key, t in flat.items()}
    tensors: dict[str, Any] = {key: t for key, t in shaped.items() if not key.startswith(_KEPT)}
    if method.keeps:
        fresh = {key: torch.zeros(layer.shape) for key in method.keeps if key not in layer.state}
        tensors["kept"] = {key: shaped[_KEPT + key] for key in layer.state} | fresh
    return tensors, {
        "shape": list(layer.shape),
        "nnz": layer.nnz,
        "updated": layer.previous_bits is not None,
        "fingerprints": dict(zip(flat, found, strict=True)),
    }


def decode(state: Mapping[str, Any], layers: Mapping[str, SparseLayer], strict: bool) -> Restored:
    """Checks all of ``state``, which has a head, against the model and returns it; touches nothing.

    Raises:
        ValueError: listing everything that is wrong, at once.
    """
    head = _read_head(state["head"])
    problems = [f"unknown entry {key!r}" for key in state if key not in ("head", "layers")]
    saved = state.get("layers")
    if not isinstance(saved, dict):
        raise error([*problems, "layers is no dict"])
    described: dict[str, Any] = head["layers"]
    counted = any("counts" in _fingerprints_in(entry) for entry in described.values())
    t, round, seed, method, schedule = read_progress(head, counted, problems)
    saved_name = match_layers(described, layers, strict, problems)
    if strict:
        problems += [f"{name!r}: tensors that the head does not tell of" for name in saved if name not in described]
    check_numbers(head["numbers"], method, problems)
    restored = Restored(t, round, seed, method, schedule, {}, {}, head["numbers"], {}, {})  # type: ignore[arg-type]
    for name, layer in layers.items():
        if name in saved_name:
            entry: Any = described[saved_name[name]]
            tensors: Any = saved.get(saved_name[name])
            wrong = _check_layer(entry, tensors, layer, strict, method) or _check_contents(entry, tensors, layer, round)
            problems += [f"{name}: {text}" for text in wrong]
            if not wrong:
                _take(restored, name, entry, tensors)
    if not problems and head["digest"] != digest_of({key: value for key, value in head.items() if key != "digest"}):
        problems.append("digest does not match: the head of the state was damaged or edited")
    if problems:
        raise error(problems)
    return restored


def _read_head(text: object) -> dict[str, Any]:
    if not isinstance(text, str):
        raise error([f"head must be a JSON text, got {type(text).__name__}"])
    try:
        head = parse_json(text, finite=False)  # a method's numbers may be anything
    except ValueError as wrong:
        raise error([f"head is not JSON: {wrong}"]) from None
    if not isinstance(head, dict):
        raise error([f"head must hold a JSON object, got {type(head).__name__}"])
    if not is_int(head.get("format_version"), FORMAT_VERSION, FORMAT_VERSION):
        raise error([f"head has format version {head.get('format_version')!r}, this dstee reads {FORMAT_VERSION}"])
    problems = [f"{key} is missing in the head" for key in sorted(_HEAD - head.keys())]
    problems += [f"unknown entry {key!r} in the head" for key in head if key not in _HEAD]
    if not isinstance(head.get("layers"), dict):
        problems.append("layers is no object in the head")
    if problems:
        raise error(problems)
    return head


def _fingerprints_in(entry: object) -> dict[str, Any]:
    found = entry.get("fingerprints") if isinstance(entry, dict) else None
    return found if isinstance(found, dict) else {}


def _check_layer(entry: object, tensors: object, layer: SparseLayer, strict: bool, method: Method | None) -> list[str]:
    """What is wrong with a layer before its values are looked at: sizes come first, a small file may declare a huge tensor."""
    if not isinstance(entry, dict):
        return [f"expected an object in the head, got {type(entry).__name__}"]
    wrong = [f"unknown entry {key!r} in the head" for key in entry if key not in _LAYER]
    if not same_shape(entry.get("shape"), layer):
        return [*wrong, f"shape {entry.get('shape')!r}, the model has {list(layer.shape)}"]
    wrong += check_weights_counted(entry, layer, strict, method)
    if not isinstance(entry.get("updated"), bool):
        wrong.append(f"updated must be true or false, got {entry.get('updated')!r}")
    known = _fingerprints_in(entry)
    if "mask" not in known or not all(is_int(value, -(2**63), 2**63 - 1) for value in known.values()):
        wrong.append(f"fingerprints must be ints of 64 bits, that of the mask one of them, got {entry.get('fingerprints')!r}")
    if not isinstance(tensors, dict):
        return [*wrong, "its tensors are missing" if tensors is None else f"expected a dict, got {type(tensors).__name__}"]
    wrong += [f"unknown entry {key!r}" for key in tensors if key not in ("mask", "counts", "kept")]
    if "mask" not in tensors:
        wrong.append("the mask is missing")
    if "counts" in tensors and "counts" not in known:
        wrong.append("counts have no fingerprint")
    if "counts" not in tensors and "counts" in known:
        wrong.append(_not_read("counts is missing", "with counters (track_exploration=True)"))
    elif "counts" not in tensors and method is not None and method.needs_counter:
        wrong.append(f"counts are missing, {method.name} needs them")
    kept = tensors.get("kept", {})
    if not isinstance(kept, dict):
        return [*wrong, f"kept is no dict, got {type(kept).__name__}"]
    there = {"mask", "counts", *(f"{_KEPT}{key}" for key in kept)}
    wrong += [_not_read(f"{key} is missing", "with the method of the state") for key in known if key not in there]
    if method is not None:
        wrong += [of_another_method(key, method) for key in kept if key not in method.keeps]
    for key, dtype in (("mask", torch.uint8), ("counts", torch.int16)):
        if key in tensors:
            wrong += _check_tensor(key, tensors[key], dtype, layer)
    for key, t in kept.items():
        wrong += _check_tensor(f"kept tensor {key!r}", t, torch.float32, layer)
    return wrong


def _not_read(what: str, how: str) -> str:
    return f"{what}, but has a fingerprint in the head: to read it into a fresh model's state, make the model sparse {how}"


def _check_tensor(key: str, t: object, dtype: torch.dtype, layer: SparseLayer) -> list[str]:
    if not is_dense(t):
        return [f"{key} must be a dense tensor, got {type(t).__name__}"]
    if t.dtype != dtype or t.shape != layer.shape or not t.is_contiguous() or t.is_neg():
        got = f"{t.dtype} {list(t.shape)} stride {t.stride()}"
        return [f"{key} is {got}, expected {dtype} {list(layer.shape)}, contiguous"]
    return []


def _check_contents(entry: dict[str, Any], tensors: dict[str, Any], layer: SparseLayer, round: object) -> list[str]:
    """What is wrong with the values of tensors that have passed :func:`_check_layer`."""
    kept = {f"{_KEPT}{key}": t for key, t in tensors.get("kept", {}).items()}
    known = entry["fingerprints"]
    there = [(key, t.detach()) for key, t in (*tensors.items(), *kept.items()) if key != "kept"]
    flat = {key: t.reshape(-1).to(tensors["mask"].device) for key, t in there if key in known}
    found = fingerprints(list(flat.values()), whole(layer.numel)).tolist()
    wrong = [f"{key} is damaged: its fingerprint does not match" for key, x in zip(flat, found, strict=True) if x != known[key]]
    wrong += [f"{key} is not 0 and has no fingerprint" for key, t in there if key not in known and t.view(torch.int32).any()]
    if wrong:
        return wrong
    mask = flat["mask"]
    if mask.numel() and (most := int(mask.max())) > 3:
        return [f"mask holds {most}, expected 0 to 3: one bit for active, one for active before the last update"]
    active = int((mask & 1).sum())
    if active != entry["nnz"]:
        wrong.append(f"mask has {active} active weights, nnz says {entry['nnz']}")
    if not entry["updated"] and ((mask ^ mask >> 1) & 1).any():
        wrong.append("mask differs from the one before the last update, but there was none")
    if "counts" in flat and isinstance(round, int) and is_int(round, 0, MAX_ROUNDS):
        out = counts_out_of_range(flat["counts"], round)
        wrong += [f"counts {out}"] if out else []
    return wrong


def _take(restored: Restored, name: str, entry: dict[str, Any], tensors: dict[str, Any]) -> None:
    mask = tensors["mask"].reshape(-1)
    restored.tensors[name] = {
        "mask": ops.pack_mask((mask & 1).bool()),
        "previous": ops.pack_mask(mask > 1) if entry["updated"] else None,
        "counts": tensors["counts"].reshape(-1) if "counts" in tensors else None,
    }
    restored.nnz[name], restored.budget[name] = entry["nnz"], entry.get("budget", entry["nnz"])
    known = entry["fingerprints"]
    restored.kept[name] = {key: t for key, t in tensors.get("kept", {}).items() if f"{_KEPT}{key}" in known}
