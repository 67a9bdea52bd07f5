"""How a number of active weights is shared out among layers, in exact integers, on the device of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from dstee import _dispatch

__all__ = ["allocate"]

_SHARE_BITS, _BUDGET_BITS = 31, 48


def allocate(budget: int | Tensor, shares: Tensor, capacity: Tensor) -> Tensor:
    """Shares ``budget`` out among layers: in proportion to ``shares``, none beyond its ``capacity``, by largest remainder.

    A layer whose part would exceed its capacity gets that; what is left goes to the others, in proportion again. Parts are then
    rounded down, and one more goes to those with the largest remainders, the first layer on ties, until the budget is spent.
    Layers with a share of 0 get what the others have no room for, evenly.

    Args:
        budget: active weights in all, 0 to 2**48, an int or a one-element int64 tensor; clipped to the sum of ``capacity``.
        shares: [L], >= 0: int64 below 2**31; or floating-point, of which the ratios to the largest count, to 2**-30, NaN as 0.
        capacity: int64 [L], >= 0: the sizes of the layers.

    Returns:
        int64 [L] on the device of ``shares``, its sum the budget. No host sync: on a GPU numbers out of range go unnoticed.

    Raises:
        TypeError, ValueError: an argument does not fit; on the CPU also a number out of range.
    """
    for name, t in (("shares", shares), ("capacity", capacity)):
        if not isinstance(t, Tensor) or t.dim() != 1:
            raise TypeError(f"{name} must be a tensor [L], got {list(t.shape) if isinstance(t, Tensor) else type(t).__name__}")
        _dispatch.refuse_no_memory(name, t)
    if capacity.dtype != torch.int64 or (shares.dtype != torch.int64 and not shares.is_floating_point()):
        raise TypeError(f"shares must be int64 or floating-point and capacity int64, got {shares.dtype} and {capacity.dtype}")
    if shares.shape != capacity.shape or shares.device != capacity.device:
        raise ValueError(
            f"capacity is {list(capacity.shape)} on {capacity.device}, "
            f"expected {list(shares.shape)} on {shares.device} as shares"
        )
    if isinstance(budget, Tensor) and (budget.dtype != torch.int64 or budget.numel() != 1):
        raise TypeError(f"budget must be an int or a one-element int64 tensor, got {budget.dtype} {list(budget.shape)}")
    left = torch.as_tensor(budget, dtype=torch.int64, device=shares.device).view(())
    if shares.is_floating_point():
        whole = shares.double().nan_to_num(0.0, posinf=torch.finfo(torch.float64).max)
        shares = (whole / whole.amax().clamp(min=2.0**-1022) * 2 ** (_SHARE_BITS - 1)).long() if whole.numel() else whole.long()
    if shares.device.type == "cpu" and not _dispatch.is_traced():
        _check("shares", shares, 2**_SHARE_BITS - 1)
        _check("capacity", capacity, 2**_BUDGET_BITS)
        _check("budget", left, 2**_BUDGET_BITS)
    left = torch.minimum(left, capacity.sum())
    parts = _fill(left, shares, capacity)
    return parts + _fill(left - parts.sum(), (shares == 0).long(), capacity)


def _check(name: str, t: Tensor, most: int) -> None:
    bad = (t < 0) | (t > most)
    if bool(bad.any()):
        where = f"[{int(bad.nonzero()[0])}]" if t.dim() else ""
        raise ValueError(f"{name}{where} must be in 0..{most}, got {int(t[bad][0] if t.dim() else t)}")


def _fill(budget: Tensor, shares: Tensor, capacity: Tensor) -> Tensor:
    """As :func:`allocate`, but layers with a share of 0 get nothing; the budget may be more than the others have room for."""
    # Layers fill up in the order of capacity / share: the first for which the rest of the budget does not suffice, and all
    # after it, get their proportion of that rest.
    order = _by_ratio(capacity, shares)
    share = shares[order]
    room = torch.where(share > 0, capacity[order], 0)
    rest = budget - room.cumsum(0) + room
    rest_shares = share.flip(0).cumsum(0).flip(0)
    part, _ = _muldiv(rest.clamp(min=0), share, rest_shares.clamp(min=1))
    open_ = ((part < room) & (share > 0)).cumsum(0) > 0
    first = (~open_).sum().clamp(max=max(len(room) - 1, 0))
    left = rest.index_select(0, first.view(1)).view(()) if len(room) else budget  # rest[first] would sync
    spare = torch.where(open_.any(), left, 0)
    total = torch.where(open_, share, 0).sum().clamp(min=1)
    part, remainder = _muldiv(spare, torch.where(open_, share, 0), total)
    part = torch.where(open_, part, room)
    parts, remainders = torch.zeros_like(part), torch.full_like(part, -1)
    parts[order], remainders[order] = part, torch.where(open_ & (share > 0), remainder, -1)
    more = torch.where(open_.any(), budget - parts.sum(), 0)
    best = remainders.sort(descending=True, stable=True).indices
    parts[best] += (torch.arange(len(parts), device=parts.device) < more).long()
    return parts


def _by_ratio(a: Tensor, b: Tensor) -> Tensor:
    """Indices by a / b ascending, exactly, b = 0 last: fractions of 31-bit denominators differ in the first 62 bits."""
    divisor = b.clamp(min=1)
    keys = [a // divisor]
    rest = a % divisor
    for _ in range(2):
        keys.append((rest << _SHARE_BITS) // divisor)
        rest = (rest << _SHARE_BITS) % divisor
    order = torch.arange(len(a), device=a.device)
    for key in (*keys[::-1], (b == 0).long()):
        order = order[key[order].sort(stable=True).indices]
    return order


def _muldiv(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of a * b / c for a up to 2**48, b <= c, b below 2**31, c below 2**42: in two digits of a."""
    high, rest = a.bitwise_right_shift(20) * b // c, a.bitwise_right_shift(20) * b % c
    low = (rest << 20) + (a & 0xF_FFFF) * b
    return (high << 20) + low // c, low % c
