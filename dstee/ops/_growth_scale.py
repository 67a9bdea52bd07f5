"""``growth_scale``: the signal that growth would just take, per layer, on a fixed sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dstee import _checks
from dstee.ops._call import call, declare

declare(
    "growth_scale(Tensor[] signals, Tensor[] mask_bits, int[] k, Tensor? k_tensor, int round, Tensor? round_tensor) -> Tensor",
    lambda signals, mask_bits, *rest: mask_bits[0].new_empty(len(signals), dtype=torch.float32),
)


def growth_scale(
    signals: Sequence[Tensor],
    mask_bits: Sequence[Tensor],
    k: Sequence[int] | Tensor,
    round: int | Tensor,
) -> Tensor:
    """About the k-th largest abs(signal) among the inactive weights, per layer: the unit of a scaled exploration bonus.

    Exact by definition, on a sample of S = min(n, 8192) of a layer's n weights. Stratum s of S covers the flat indices
    ``s*n // S`` to ``(s+1)*n // S - 1``; in it lies one index, ``start + (h * length >> 32)`` with the 32-bit hash ``h =
    mix(mix(s) ^ round)``. Of those that are inactive the ``ceil(k*S / n)``-th largest abs(signal) counts, the first at least,
    the last where there are fewer; NaN comes after all. A NaN, no inactive one or 0 gives 2**-126, Inf stays.

    Args:
        signals: what growth ranks, gradients as a rule; float32, bfloat16 or float16, dense storage; all on one device.
        mask_bits: uint8 [ceil(n/8)] each, the masks before the update.
        k: weights to grow per layer: a list of ints, or an int64 tensor [L] on the device, clipped to 0..n.
        round: mask updates done before this one, as in :func:`drop_grow_`.

    Returns:
        float32 [L] on the signals' device, no host sync: ``bonus_scale`` of :func:`drop_grow_`.

    Raises:
        TypeError, ValueError: an argument does not fit; the text names it and its list index.
    """
    signals = _checks.tensor_list("signals", signals)
    mask_bits = _checks.tensor_list("mask_bits", mask_bits, len(signals))
    if not signals:
        return torch.zeros(0)
    device = signals[0].device
    k_list, k_tensor = _checks.split_k(k, len(signals), device)
    round, round_tensor = _checks.split_round(round, device)

    def check() -> None:
        _checks.check_layers(signals, mask_bits, grads=[], momenta=[], of="signals")
        for i, k_i in enumerate(k_list):
            if k_i > signals[i].numel():
                raise ValueError(f"k[{i}] must be in 0..{signals[i].numel()} (the weights of signals[{i}]), got {k_i}")

    return call(
        "growth_scale", device, check,
        signals, mask_bits, k_list, k_tensor, round, round_tensor,
    )  # fmt: skip
