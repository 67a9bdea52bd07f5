"""Numbers to the device, where kernels read them: a kernel cannot take a list.

What was sent before is found again; new numbers go through pinned memory, without a host sync, or, while a CUDA graph is
captured, as arguments of a kernel.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import STORE_OPTIONS

_KEPT = 256
_sent: OrderedDict[tuple, tuple[Tensor, torch.Stream]] = OrderedDict()
_in_graphs: list[Tensor] = []  # a captured graph reads them for as long as it lives, which nobody can tell
_lock = threading.Lock()


def owners(counts: Sequence[int], device: torch.device) -> Tensor:
    """int32: layer i as often as ``counts[i]`` says."""
    return _cached(("owners", *counts), lambda: np.repeat(np.arange(len(counts), dtype=np.int32), counts), device)


def on_device(numbers: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers as a tensor that nobody changes."""
    array = np.array(numbers, dtype=np.int64 if dtype == torch.int64 else np.int32)
    return _cached((dtype, array.tobytes()), lambda: array, device)


def _cached(what: tuple, make: Callable[[], np.ndarray], device: torch.device) -> Tensor:
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
