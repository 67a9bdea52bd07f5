"""``count_outside``: how many weights outside the masks are not 0, which is none while the invariant holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dstee import _checks
from dstee.ops._call import call, declare

declare(
    "count_outside(Tensor[] params, Tensor[] mask_bits) -> Tensor",
    lambda params, mask_bits: mask_bits[0].new_empty(len(params), dtype=torch.int64),
)


def count_outside(params: Sequence[Tensor], mask_bits: Sequence[Tensor]) -> Tensor:
    """Weights outside the masks that are not 0, per layer: int64 [L] on the weights' device, no host sync.

    NaN is not 0, -0.0 is. The op reads, and never writes.

    Args:
        params: weights, float32, bfloat16 or float16, dense storage; all on one device.
        mask_bits: uint8 [ceil(n/8)] each, as :func:`pack_mask` makes them.

    Raises:
        TypeError, ValueError: an argument does not fit; the text names it and its list index.
    """
    params = _checks.tensor_list("params", params)
    mask_bits = _checks.tensor_list("mask_bits", mask_bits, len(params))
    if not params:
        return torch.zeros(0, dtype=torch.int64)
    return call(
        "count_outside", params[0].device,
        lambda: _checks.check_layers(params, mask_bits, grads=[], momenta=[]),
        params, mask_bits,
    )  # fmt: skip
