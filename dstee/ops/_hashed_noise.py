"""``hashed_noise``: noise that is a hash, the same bits on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dstee import _budget_checks, _checks
from dstee.ops._call import call, declare
from dstee.sparsity_distribution import seed64

# Four seeds for each tensor.
declare("hashed_noise_(Tensor(a!)[] out, int[] seeds, int[] where) -> ()", lambda *args: None)


def hashed_noise(
    shape: int | Sequence[int],
    seed: int,
    step: int,
    *,
    where: Sequence[int] | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Noise from a hash of (seed, flat index, step): nearly normal, mean 0, variance 1/3, within -2..2.

    The sum of four uniform integers of 24 bits, minus its mean: ``float32(u1 + u2 + u3 + u4 - (2**25 - 2)) * 2**-24``, exact up
    to that one conversion. Multiply by ``3**0.5`` for variance 1.

    Args:
        shape: of the result, or its number of elements.
        seed, step: any ints; u_j hashes the index with a 64-bit seed derived from (seed, step, j).
        where: (base, run, pitch) for a part of a larger tensor, as in :func:`drop_grow_`.
        device: of the result; default the CPU.

    Returns:
        float32 of ``shape``, contiguous.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    for name, value in (("seed", seed), ("step", step)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    size = _checks.check_shape([shape] if isinstance(shape, int) else shape)
    out = [torch.empty(size, dtype=torch.float32, device="cpu" if device is None else device)]
    places = _budget_checks.read_places(None if where is None else [where], out)
    seeds = [seed64("noise", seed, str(j), step) for j in range(4)]
    call("hashed_noise_", out[0].device, lambda: None, out, seeds, places)
    return out[0]
