"""``SparseModel.state_dict(full=True)``, format 1: packed masks, whole on every process; and the way back from both formats.

    {"format_version": 1, "t": int, "round": int, "seed": int, "method": dict, "schedule": dict, "digest": str,
     "layers": {name: {"shape": [int], "nnz": int,
                       "mask": uint8 [ceil(n/8)], "mask_digest": str,            the packed mask
                       "counts": int16 [n], "counts_digest": str,                only with counters
                       "previous": uint8 [ceil(n/8)], "previous_digest": str,    only after an update
                       "budget": int,                                            only where updates move budgets
                       "kept": {key: float32 of the weight's shape}, "kept_digests": {key: str}}},  what the method keeps
     "numbers": {key: float}}                                                    as well

Tensors are in logical (row-major) order, whatever the memory format of the weight, and on the CPU. ``digest`` covers all that
is not a tensor. Nothing here is pickled code: the dict loads under ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dstee import _state_shaped, ops
from dstee._state_checks import (
    Checked,
    Restored,
    agree,
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
from dstee.distributed.ranks import agree_on
from dstee.distributed.state import gather
from dstee.encoding import MAX_ROUNDS, flat, mask_bytes
from dstee.memory_order import reorder, reorder_bits, row_major
from dstee.methods import Method
from dstee.schedule import UpdateSchedule
from dstee.sparse_layer import SparseLayer

FORMAT_VERSION = 1
_TENSORS = {"mask": torch.uint8, "counts": torch.int16, "previous": torch.uint8}
_BULK = {*_TENSORS, "kept"}
_HEAD = ("format_version", "t", "round", "seed", "method", "schedule", "digest", "layers")


def digest(t: Tensor) -> str:
    """blake2b over the bytes of a contiguous tensor."""
    return hashlib.blake2b(t.detach().cpu().numpy().data, digest_size=16).hexdigest()


def _head_digest(state: Mapping[str, Any]) -> str:
    layers = {name: {key: value for key, value in layer.items() if key not in _BULK} for name, layer in state["layers"].items()}
    plain = {**{key: state[key] for key in (*_HEAD, "numbers") if key != "digest" and key in state}, "layers": layers}
    return digest_of(plain)


def _same_digest(state: Mapping[str, Any]) -> bool:
    try:
        return isinstance(state["digest"], str) and state["digest"] == _head_digest(state)
    except (TypeError, ValueError, AttributeError, RecursionError):  # something in it is not plain: not ours
        return False


def encode_layer(layer: SparseLayer, budget: int | None = None) -> dict[str, Any]:
    state: dict[str, Any] = {"shape": list(layer.shape), "nnz": layer.nnz}
    tensors = {
        "mask": _whole_bits(layer, layer.mask_bits),
        "counts": None if layer.counts is None else _whole(layer, layer.counts),
        "previous": None if layer.previous_bits is None else _whole_bits(layer, layer.previous_bits),
    }
    for key, t in tensors.items():
        if t is not None:
            t = t.to("cpu", copy=True)
            state |= {key: t, f"{key}_digest": digest(t)}
    if budget is not None:
        state["budget"] = budget
    if layer.state:
        kept = {key: _whole(layer, flat(layer.fitted_state(key))).view(layer.shape).to("cpu", copy=True) for key in layer.state}
        state |= {"kept": kept, "kept_digests": {key: digest(t) for key, t in kept.items()}}
    return state


def _whole(layer: SparseLayer, values: Tensor) -> Tensor:
    """1-D ``values`` in the memory order of what this rank holds, for the whole weight in row-major order."""
    if layer.holders is not None:
        return gather(values, layer.where, layer.holders)
    return reorder(values, layer.shape, layer.strides, row_major(layer.shape))


def _whole_bits(layer: SparseLayer, bits: Tensor) -> Tensor:
    if layer.holders is None:
        return reorder_bits(bits, layer.shape, layer.strides, row_major(layer.shape))
    return ops.pack_mask(_whole(layer, ops.unpack_mask(bits, (layer.where.n,))))


def restore_layer(layer: SparseLayer, restored: Restored) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """mask_bits, counts and previous_bits for ``layer``. One that the state does not have keeps its mask and starts anew."""
    saved = restored.tensors.get(layer.name)
    if saved is None:
        active = layer.bools(layer.mask_bits)
        counted = restored.method.needs_counter or layer.counts is not None
        return layer.mask_bits, ops.encode_counts(active.int(), active, restored.round) if counted else None, None
    order = layer.local_shape, row_major(layer.local_shape), layer.strides
    device = layer.mask_bits.device
    mask, counts, previous = saved["mask"], saved["counts"], saved["previous"]
    assert mask is not None  # decode() has looked
    return (
        reorder_bits(mask, *order).to(device, copy=True),
        None if counts is None else reorder(counts, *order).to(device, copy=True),
        None if previous is None else reorder_bits(previous, *order).to(device, copy=True),
    )


def encode(
    t: int, round: int, seed: int, method: Method, schedule: UpdateSchedule, layers: Mapping[str, SparseLayer],
    budget: Mapping[str, int], numbers: Mapping[str, Tensor],
) -> dict[str, Any]:  # fmt: skip
    state: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "t": t,
        "round": round,
        "seed": seed,
        "method": method.to_dict(),
        "schedule": schedule.to_dict(),
        "layers": {name: encode_layer(layer, budget[name] if method.moves_budgets else None) for name, layer in layers.items()},
    }
    if numbers:
        state["numbers"] = {key: float(x) for key, x in numbers.items()}
    return state | {"digest": _head_digest(state)}


def decode(state: object, layers: Mapping[str, SparseLayer], strict: bool) -> Restored:
    """Checks all of ``state``, of either format, against the model and returns it; touches nothing. Ranks that hold parts of
    the layers come here together.

    Raises:
        ValueError: listing everything that is wrong, at once; the same on all ranks.
    """
    try:
        if isinstance(state, Mapping) and "head" in state:
            checked = _state_shaped.check(state, layers, strict)
        else:
            checked = _check(state, layers, strict)
    except ValueError as wrong:
        raise ValueError(agree_on(str(wrong), [layer.everyone for layer in layers.values()])) from None
    return agree(checked, layers.values())


def _check(state: object, layers: Mapping[str, SparseLayer], strict: bool) -> Checked:
    """What this rank finds in a state of format 1. Raises ValueError where it is too odd to look further."""
    if not isinstance(state, Mapping):
        raise ValueError(f"the sparse state must be a dict made by SparseModel.state_dict, got {type(state).__name__}")
    if not is_int(state.get("format_version"), FORMAT_VERSION, FORMAT_VERSION):
        raise ValueError(
            f"the sparse state has format version {state.get('format_version')!r} and no head, this dstee reads "
            f"{FORMAT_VERSION}, and {_state_shaped.FORMAT_VERSION} with a head: was it made by SparseModel.state_dict?"
        )
    problems = [f"{key} is missing" for key in _HEAD if key not in state]
    problems += [f"unknown entry {key!r}" for key in state if key not in (*_HEAD, "numbers")]
    if not isinstance(state.get("layers"), dict):
        problems.append("layers is no dict")
    if problems:
        raise error(problems)

    counted = any(isinstance(saved, dict) and "counts" in saved for saved in state["layers"].values())
    t, round, seed, method, schedule = read_progress(state, counted, problems)
    saved_name = match_layers(state["layers"], layers, strict, problems)
    numbers = state.get("numbers", {})
    check_numbers(numbers, method, problems)
    restored = Restored(t, round, seed, method, schedule, {}, {}, numbers, {}, {})  # type: ignore[arg-type]
    for name, layer in layers.items():
        if name in saved_name:
            saved = state["layers"][saved_name[name]]
            wrong = _check_layer(saved, layer, round, strict, method)
            problems += [f"{name}: {text}" for text in wrong]
            if not wrong:
                _take(restored, layer, saved)
    if not problems and not _same_digest(state):
        problems.append("digest does not match: the numbers in the state were damaged or edited")
    return Checked(restored, problems, [], state["digest"])


def _take(restored: Restored, layer: SparseLayer, saved: dict[str, Any]) -> None:
    tensors, kept, sharding = {key: saved.get(key) for key in _TENSORS}, saved.get("kept", {}), layer.sharding
    if sharding is not None:

        def part(t: Tensor) -> Tensor:
            return sharding.cut(t.view(layer.shape)).view(-1)

        for key, t in tensors.items():
            if t is not None:
                bits = key != "counts"
                tensors[key] = ops.pack_mask(part(ops.unpack_mask(t, (layer.numel,)))) if bits else part(t)
        kept = {key: sharding.cut(t) for key, t in kept.items()}
    restored.tensors[layer.name], restored.kept[layer.name] = tensors, kept
    restored.nnz[layer.name], restored.budget[layer.name] = saved["nnz"], saved.get("budget", saved["nnz"])


def _check_layer(saved: object, layer: SparseLayer, round: object, strict: bool, method: Method | None) -> list[str]:
    if not isinstance(saved, dict):
        return [f"expected a dict, got {type(saved).__name__}"]
    known = {"shape", "nnz", "budget", "kept", "kept_digests", *_TENSORS, *(f"{key}_digest" for key in _TENSORS)}
    wrong = [f"unknown entry {key!r}" for key in saved if key not in known]
    if not same_shape(saved.get("shape"), layer):
        return [*wrong, f"shape {saved.get('shape')!r}, the model has {list(layer.shape)}"]
    n = layer.numel
    wrong += check_weights_counted(saved, layer, strict, method)
    wrong += _check_kept(saved, layer, method)
    if "mask" not in saved:
        wrong.append("the mask is missing")
    if "counts" not in saved and method is not None and method.needs_counter:
        wrong.append(f"counts are missing, {method.name} needs them")
    for key, dtype in _TENSORS.items():
        if key in saved:
            wrong += _check_tensor(key, saved[key], saved.get(f"{key}_digest"), dtype, n if key == "counts" else mask_bytes(n))
    if wrong:
        return wrong
    for key in ("mask", "previous"):
        if key in saved:
            active = int(ops.count_active([saved[key]]))
            if key == "mask" and active != saved["nnz"]:  # the mask before may be of a method that moved budgets
                wrong.append(f"{key} has {active} active weights, nnz says {saved['nnz']}")
            if n % 8 and int(saved[key][-1]) >> n % 8:
                wrong.append(f"{key} has bits beyond its {n} weights")
    if "counts" in saved and isinstance(round, int) and is_int(round, 0, MAX_ROUNDS):
        out = counts_out_of_range(saved["counts"], round)
        wrong += [f"counts {out}"] if out else []
    return wrong


def _check_kept(saved: Mapping[str, Any], layer: SparseLayer, method: Method | None) -> list[str]:
    """What is wrong with the tensors that the method keeps of a layer."""
    kept, digests = saved.get("kept", {}), saved.get("kept_digests", {})
    if not isinstance(kept, dict) or not isinstance(digests, dict) or kept.keys() != digests.keys():
        return ["kept and kept_digests are no dicts with the same keys"]
    wrong = []
    for key, t in kept.items():
        if method is not None and key not in method.keeps:
            wrong.append(of_another_method(key, method))
        elif not is_dense(t):
            wrong.append(f"kept tensor {key!r} must be a dense tensor, got {type(t).__name__}")
        elif t.dtype != torch.float32 or t.shape != layer.shape or not t.is_contiguous() or t.is_neg():
            wrong.append(f"kept tensor {key!r} is {t.dtype} {list(t.shape)}, expected torch.float32 {list(layer.shape)}")
        elif digests[key] != digest(t):
            wrong.append(f"kept tensor {key!r} is damaged: its digest does not match")
    return wrong


def _check_tensor(key: str, t: object, saved_digest: object, dtype: torch.dtype, size: int) -> list[str]:
    """Sizes come before contents, so that a small file cannot declare a huge tensor."""
    if not is_dense(t):
        return [f"{key} must be a dense tensor, got {type(t).__name__}"]
    if t.dtype != dtype or t.shape != (size,) or not t.is_contiguous():
        return [f"{key} is {t.dtype} {list(t.shape)} stride {t.stride()}, expected {dtype} [{size}], contiguous"]
    if not isinstance(saved_digest, str) or saved_digest != digest(t):
        return [f"{key} is damaged: its digest does not match"]
    return []
