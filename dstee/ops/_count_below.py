"""``count_below``: how many active weights are closer to zero than a threshold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dstee import _checks
from dstee.ops._call import call, declare

declare(
    "count_below(Tensor[] tensors, Tensor[] mask_bits, Tensor thresholds) -> Tensor",
    lambda tensors, mask_bits, thresholds: mask_bits[0].new_empty(len(tensors), dtype=torch.int64),
)


def count_below(tensors: Sequence[Tensor], mask_bits: Sequence[Tensor], thresholds: Tensor) -> Tensor:
    """Active weights with ``abs(float32(w)) < threshold``, per layer: int64 [L] on the weights' device, no host sync.

    NaN is below nothing, and nothing is below NaN.

    Args:
        tensors: weights, or what stands for them; float32, bfloat16 or float16, dense storage; all on one device.
        mask_bits: uint8 [ceil(n/8)] each, as :func:`pack_mask` makes them.
        thresholds: float32 [L] on the device.

    Raises:
        TypeError, ValueError: an argument does not fit; the text names it and its list index.
    """
    tensors = _checks.tensor_list("tensors", tensors)
    mask_bits = _checks.tensor_list("mask_bits", mask_bits, len(tensors))
    _checks.check_per_layer("thresholds", thresholds, torch.float32, (len(tensors),), tensors[0].device if tensors else None)
    if not tensors:
        return torch.zeros(0, dtype=torch.int64)
    return call(
        "count_below", tensors[0].device,
        lambda: _checks.check_layers(tensors, mask_bits, grads=[], momenta=[], of="tensors"),
        tensors, mask_bits, thresholds,
    )  # fmt: skip
