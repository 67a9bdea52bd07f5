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
Tensors are row-major; plain and on the CPU where the weight is plain, otherwise DTensors placed as the weight is. Fingerprints
(dstee.distributed.state) are those of whole tensors, the same for every layout.
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
    Checked,
    Claim,
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
from dstee.distributed.ranks import sum_each
from dstee.distributed.state import fingerprints
from dstee.distributed.where import as_dtensor
from dstee.encoding import MAX_ROUNDS
from dstee.memory_order import reorder, row_major
from dstee.methods import Method
from dstee.schedule import UpdateSchedule
from dstee.sparse_layer import SparseLayer

FORMAT_VERSION = 2
_HEAD = {"format_version", "t", "round", "seed", "method", "schedule", "numbers", "layers", "digest"}
_LAYER = {"shape", "nnz", "updated", "fingerprints", "budget"}
_KEPT = "kept."
_ELSEWHERE = "for other ranks or layouts use torch.distributed.checkpoint, or state_dict(full=True)"


def encode(
    t: int, round: int, seed: int, method: Method, schedule: UpdateSchedule, layers: Mapping[str, SparseLayer],
    budget: Mapping[str, int], numbers: Mapping[str, Tensor],
) -> dict[str, Any]:  # fmt: skip
    flat = {name: _flat(layer) for name, layer in layers.items()}
    mine = [
        number for name, layer in layers.items() for number in fingerprints(list(flat[name].values()), layer.where).tolist()
    ]
    found = iter(sum_each(mine, [layer.holders for name, layer in layers.items() for _ in flat[name]]))
    described = {}
    for name, layer in layers.items():
        described[name] = {
            "shape": list(layer.shape),
            "nnz": layer.nnz,
            "updated": layer.previous_bits is not None,
            "fingerprints": {key: next(found) for key in flat[name]},
        }
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
    tensors = {name: _shaped(layer, flat[name], method) for name, layer in layers.items()}
    return {"head": json.dumps(head | {"digest": digest_of(head)}), "layers": tensors}


def _flat(layer: SparseLayer) -> dict[str, Tensor]:
    """What this rank holds of a layer, 1-D in row-major order, by the keys of its fingerprints."""
    active = layer.bools(layer.mask_bits)
    before = active if layer.previous_bits is None else layer.bools(layer.previous_bits)
    flat = {"mask": (active.byte() | before.byte() << 1).reshape(-1)}
    if layer.counts is not None:
        flat["counts"] = reorder(layer.counts, layer.local_shape, layer.strides, row_major(layer.local_shape))
    return flat | {f"{_KEPT}{key}": layer.fit_float(t).reshape(-1) for key, t in layer.state.items()}


def _shaped(layer: SparseLayer, flat: dict[str, Tensor], method: Method) -> dict[str, Any]:
    """:func:`_flat` as copies with the shape of the weight, placed as it is or on the CPU; kept tensors by themselves."""

    def shaped(t: Tensor) -> Tensor:
        t = t.view(layer.local_shape)
        return t.to("cpu", copy=True) if layer.sharding is None else layer.placed(t.clone())

    tensors: dict[str, Any] = {key: shaped(t) for key, t in flat.items() if not key.startswith(_KEPT)}
    if method.keeps:
        zeros = torch.zeros(layer.where.n, device=layer.mask_bits.device)
        tensors["kept"] = {
            key: shaped(flat.get(f"{_KEPT}{key}", zeros)) for key in dict.fromkeys((*method.keeps, *layer.state))
        }
    return tensors


def check(state: Mapping[str, Any], layers: Mapping[str, SparseLayer], strict: bool) -> Checked:
    """What this rank finds in ``state``, which has a head. Raises ValueError where it is too odd to look further."""
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
    claims: list[Claim] = []
    for name, layer in layers.items():
        if name in saved_name:
            entry: Any = described[saved_name[name]]
            flat: dict[str, Tensor] = {}
            wrong = _check_layer(entry, saved.get(saved_name[name]), layer, strict, method, flat)
            wrong = wrong or _check_contents(entry, flat, layer, round, claims)
            problems += [f"{name}: {text}" for text in wrong]
            if not wrong:
                _take(restored, layer, entry, flat)
    if not problems and head["digest"] != digest_of({key: value for key, value in head.items() if key != "digest"}):
        problems.append("digest does not match: the head of the state was damaged or edited")
    return Checked(restored, problems, claims, head["digest"])


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


def _check_layer(
    entry: object, tensors: object, layer: SparseLayer, strict: bool, method: Method | None, flat: dict[str, Tensor]
) -> list[str]:
    """What is wrong with a layer before its values are looked at: sizes come first, a small file may declare a huge tensor.
    ``flat`` is filled with what this rank holds of it."""
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
            wrong += _read_part(key, tensors[key], dtype, layer, flat)
    for key, t in kept.items():
        wrong += _read_part(f"{_KEPT}{key}", t, torch.float32, layer, flat)
    return wrong


def _not_read(what: str, how: str) -> str:
    return f"{what}, but has a fingerprint in the head: to read it into a fresh model's state, make the model sparse {how}"


def _read_part(key: str, t: object, dtype: torch.dtype, layer: SparseLayer, flat: dict[str, Tensor]) -> list[str]:
    """Puts what this rank holds of ``t`` into ``flat``, or says what is wrong with it."""
    sharding, cut = layer.sharding, as_dtensor(t) if isinstance(t, Tensor) else None
    if cut is not None and (sharding is None or not sharding.fits(cut)):
        weight = "plain" if sharding is None else f"{list(layer.shape)} placed {sharding.placements} on {sharding.mesh}"
        got = f"{list(cut.shape)} placed {tuple(cut.placements)} on {cut.device_mesh}"
        return [f"{key} is {got}, but the weight is {weight}: {_ELSEWHERE}"]
    here, shape = (t, layer.shape) if cut is None else (cut._local_tensor, layer.local_shape)
    if not is_dense(here):
        return [f"{key} must be a dense tensor, got {type(here).__name__}"]
    if here.dtype != dtype or here.shape != shape or not here.is_contiguous() or here.is_neg():
        got = f"{here.dtype} {list(here.shape)} stride {here.stride()}"
        hint = "" if sharding is None else f": {_ELSEWHERE}"
        return [f"{key} is {got}, expected {dtype} {list(shape)}, contiguous{hint}"]
    here = here.detach() if sharding is None or cut is not None else sharding.cut(here)
    flat[key] = here.reshape(-1).to(layer.mask_bits.device)
    return []


def _check_contents(
    entry: dict[str, Any], flat: dict[str, Tensor], layer: SparseLayer, round: object, claims: list[Claim]
) -> list[str]:
    """What is wrong with values that have passed :func:`_check_layer`; what takes all parts of them goes to ``claims``."""
    known, mask = entry["fingerprints"], flat["mask"]
    told = {key: t for key, t in flat.items() if key in known}
    damaged = " is damaged: its fingerprint does not match"
    if layer.sharding is not None:
        damaged = f" is damaged, or not this rank's part: the fingerprint does not match; {_ELSEWHERE}"
    for key, number in zip(told, fingerprints(list(told.values()), layer.where).tolist(), strict=True):
        claims.append(Claim(layer, number, known[key], key.replace("{", "{{").replace("}", "}}") + damaged))
    active = f"mask has {{}} active weights, nnz says {entry['nnz']}"
    claims.append(Claim(layer, int((mask & 1).sum()), entry["nnz"], active))
    wrong = []
    for key, t in flat.items():
        if key not in known and t.view(torch.int32).any():
            wrong.append(f"{key} is not 0 and has no fingerprint")
    if mask.numel() and (most := int(mask.max())) > 3:
        wrong.append(f"mask holds {most}, expected 0 to 3: one bit for active, one for active before the last update")
    elif not entry["updated"] and ((mask ^ mask >> 1) & 1).any():
        wrong.append("mask differs from the one before the last update, but there was none")
    if "counts" in flat and isinstance(round, int) and is_int(round, 0, MAX_ROUNDS):
        out = counts_out_of_range(flat["counts"], round)
        wrong += [f"counts {out}"] if out else []
    return wrong


def _take(restored: Restored, layer: SparseLayer, entry: dict[str, Any], flat: dict[str, Tensor]) -> None:
    mask, name = flat["mask"], layer.name
    restored.tensors[name] = {
        "mask": ops.pack_mask((mask & 1).bool()),
        "previous": ops.pack_mask(mask > 1) if entry["updated"] else None,
        "counts": flat.get("counts"),
    }
    restored.nnz[name], restored.budget[name] = entry["nnz"], entry.get("budget", entry["nnz"])
    kept = {key.removeprefix(_KEPT): t for key, t in flat.items() if key.startswith(_KEPT) and key in entry["fingerprints"]}
    restored.kept[name] = {key: t.view(layer.local_shape) for key, t in kept.items()}
