"""From lists of tensors to what the kernels read: a row of pointers and numbers per layer, and who owns which tile.

A kernel cannot take a list of tensors, so the rows lie in device memory. What was sent before is found again; new numbers go
through pinned memory, without a host sync, or, while a CUDA graph is captured, as arguments of a kernel.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = tl.constexpr(2048)  # weights of a program; a layer of no more than that needs no lists
CHUNK = tl.constexpr(1024)  # list entries of a program
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
LIST_OPTIONS = OPTIONS | {"num_warps": 4}
LAYER_OPTIONS = OPTIONS | {"num_warps": 16}  # few programs, which wait for reductions: few numbers a thread
STORE_OPTIONS = OPTIONS | {"num_warps": 1}

# Columns of a row, which stays as long as the tensors stay where they are. ADDRESSES come first.
W, M, BITS, COUNTS, DROP, GROW = (tl.constexpr(c) for c in range(6))
N, FIRST_TILE, FIRST_ENTRY, ENTRIES, FIRST_CHUNK, INDEX = (tl.constexpr(c) for c in range(6, 12))
COLUMNS = tl.constexpr(12)
# Columns of what comes with a call.
GRADIENT, K, SEED = (tl.constexpr(c) for c in range(3))
CALL_COLUMNS = tl.constexpr(3)

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
LARGEST = (1 << 31) - 4096  # weights of a layer stay below: indices of a tile behind the last one must not wrap
_KEPT = 256

_LEAST_SAMPLED, _MOST_SAMPLED = 1024, 4096


@dataclass
class Group:
    """Layers whose tensors have the same dtypes: one launch of a kernel serves them.

    rows: int64 [layers, COLUMNS]; calls: int64 [layers, CALL_COLUMNS]; tile_layer, chunk_layer: int32, the layer that owns a
    tile or a chunk of the lists; entries: room in the lists of all layers, for one side.
    """

    rows: Tensor
    calls: Tensor
    tile_layer: Tensor
    chunk_layer: Tensor
    layers: int
    entries: int
    types: dict[str, tl.dtype]


def expected_entries(n: int, k: int) -> int:
    """Entries that one side of a layer's lists almost surely needs: what sample.py lets pass, and some more.

    Rounded up in steps of a quarter octave, so that a schedule rarely changes it.
    """
    sampled = min(max(n / 64, _LEAST_SAMPLED), _MOST_SAMPLED)
    winners = k * sampled / n
    listed = 1.3 * (1.25 * winners + 10 * math.sqrt(winners) + 16) * n / sampled + 2048
    step = 1 << max(int(listed).bit_length() - 3, 0)
    return min(-(-int(listed) // step) * step, n)


def groups(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    mask_bits: Sequence[Tensor],
    counts: Sequence[Tensor] = (),
    drop_scores: Sequence[Tensor] = (),
    grow_signal: Sequence[Tensor] = (),
    seeds: Sequence[int] = (),
    k: Sequence[int] = (),
    *,
    lists: float = 0.0,
) -> list[Group]:
    """The non-empty layers by dtype. ``lists``: 0 when every layer gets tiles (masked SGD); else the share of the room that
    the lists of large layers should have, and only these get tiles.

    Raises:
        ValueError: a layer has 2^31 - 4096 weights or more.
    """
    found: dict[tuple[torch.dtype, ...], list[int]] = {}
    for i, p in enumerate(params):
        if p.numel() >= LARGEST:
            raise ValueError(f"params[{i}] has {p.numel()} weights, the Triton kernels take fewer than {LARGEST}: split it")
        if p.numel():
            drop = drop_scores[i].dtype if drop_scores else p.dtype
            grow = grow_signal[i].dtype if grow_signal else p.dtype
            found.setdefault((p.dtype, drop, grow), []).append(i)
    result = []
    for dtypes, index in found.items():
        rows, calls, tiles, chunks, entries = [], [], [], [], 0
        for i in index:
            p, n = params[i], params[i].numel()
            large = not lists or n > TILE.value
            room = 0
            if lists and large:
                # How many a tensor asks for is known on the device only: room for one in sixteen.
                room = max(int(expected_entries(n, k[i] if k else n // 16) * lists), 1)
            rows += [
                p.data_ptr(),
                momenta[i].data_ptr() if momenta else 0,
                mask_bits[i].data_ptr(),
                counts[i].data_ptr() if counts else 0,
                drop_scores[i].data_ptr() if drop_scores else 0,
                grow_signal[i].data_ptr() if grow_signal else 0,
                n, sum(tiles), entries, room, sum(chunks), i,
            ]  # fmt: skip
            calls += [grads[i].data_ptr() if grads else 0, k[i] if k else 0, seeds[i] if seeds else 0]
            tiles.append(triton.cdiv(n, TILE.value) if large else 0)
            chunks.append(triton.cdiv(room, CHUNK.value))
            entries += room
        device = params[0].device
        result.append(
            Group(
                on_device(rows, torch.int64, device).view(-1, COLUMNS.value),
                on_device(calls, torch.int64, device).view(-1, CALL_COLUMNS.value),
                owners(tiles, device),
                owners(chunks, device),
                len(index),
                entries,
                {"W_TYPE": TYPES[dtypes[0]], "DROP_TYPE": TYPES[dtypes[1]], "GROW_TYPE": TYPES[dtypes[2]]},
            )
        )
    return result


# --- around launches -----------------------------------------------------------------------------------------------------

_interpreter = threading.RLock()


@contextlib.contextmanager
def launching(device: torch.device) -> Iterator[None]:
    """A GPU is made current. The interpreter swaps functions while it runs: one thread at a time; numpy overflows silently."""
    if device.type == "cpu":
        with _interpreter, np.errstate(all="ignore"):
            yield
    else:
        with torch.get_device_module(device).device(device):
            yield


# --- numbers to the device -----------------------------------------------------------------------------------------------

_sent: OrderedDict[tuple, tuple[Tensor, int]] = OrderedDict()  # tensor, stream
_in_graphs: list[Tensor] = []  # a captured graph reads them for as long as it lives, which nobody can tell
_lock = threading.Lock()


def owners(counts: Sequence[int], device: torch.device) -> Tensor:
    """int32: layer i as often as ``counts[i]`` says."""
    return _cached(("owners", *counts), lambda: np.repeat(np.arange(len(counts), dtype=np.int32), counts), device)


def on_device(numbers: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers as a tensor that nobody changes."""
    array = np.array(numbers, dtype=np.int64 if dtype == torch.int64 else np.int32)
    return _cached((dtype, array.tobytes()), lambda: array, device)


def _cached(what: tuple, make, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.from_numpy(make())
    module = torch.get_device_module(device)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    stream = module.current_stream(device)
    key = (device, *what)
    with _lock:
        known = _sent.get(key)
        if known is not None and (capturing or known[1] == stream):  # on another stream it may not have arrived
            _sent.move_to_end(key)
            if capturing:
                _in_graphs.append(known[0])
            return known[0]
    array = make()
    if array.size == 0:
        return torch.empty(0, dtype=torch.from_numpy(array).dtype, device=device)
    if capturing:
        return _store(array, device)
    sent = torch.from_numpy(array).pin_memory().to(device, non_blocking=True)
    with _lock:
        _sent[key] = (sent, stream)
        if len(_sent) > _KEPT:
            _sent.popitem(last=False)
    return sent


_AT_ONCE = 64
_OFFSET = 1 << 62  # makes every argument an int64, whatever its value: else each mix of widths would compile anew


@triton.jit(do_not_specialize=[f"n{i}" for i in range(64)])
def store_kernel(
    out,
    n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, n11, n12, n13, n14, n15,
    n16, n17, n18, n19, n20, n21, n22, n23, n24, n25, n26, n27, n28, n29, n30, n31,
    n32, n33, n34, n35, n36, n37, n38, n39, n40, n41, n42, n43, n44, n45, n46, n47,
    n48, n49, n50, n51, n52, n53, n54, n55, n56, n57, n58, n59, n60, n61, n62, n63,
):  # fmt: skip
    numbers = (
        n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, n11, n12, n13, n14, n15,
        n16, n17, n18, n19, n20, n21, n22, n23, n24, n25, n26, n27, n28, n29, n30, n31,
        n32, n33, n34, n35, n36, n37, n38, n39, n40, n41, n42, n43, n44, n45, n46, n47,
        n48, n49, n50, n51, n52, n53, n54, n55, n56, n57, n58, n59, n60, n61, n62, n63,
    )  # fmt: skip
    for i in tl.static_range(64):
        tl.store(out + i, (numbers[i] & 0x3FFFFFFFFFFFFFFF).to(out.dtype.element_ty))


def _store(array: np.ndarray, device: torch.device) -> Tensor:
    """Every number by way of kernel arguments; in halves where one is negative, a seed say, or where all are small."""
    numbers = array
    if array.dtype != np.int64 or array.size == 0 or array.min() < 0 or array.max() >= _OFFSET:
        numbers = array.view(np.uint32)
    out_type = torch.int64 if numbers is array else torch.int32
    padded = numbers.tolist() + [0] * (-numbers.size % _AT_ONCE)
    out = torch.empty(len(padded), dtype=out_type, device=device)
    for start in range(0, len(padded), _AT_ONCE):
        store_kernel[(1,)](out[start:], *(_OFFSET + n for n in padded[start : start + _AT_ONCE]), **STORE_OPTIONS)
    return out.view(torch.from_numpy(array).dtype)[: array.size]
