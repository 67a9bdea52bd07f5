"""Cases whose momenta are those of the active weights alone, and what must be left of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from support import oracle

from dstee import encoding
from dstee.testing import Case, assert_same_bits, place

__all__ = ["assert_packed", "can_be_packed", "packed"]


def can_be_packed(case: Case) -> bool:
    """Not where the momentum is ranked, which is then needed at all positions."""
    ranked = (case.options.get("drop_scores"), case.options.get("grow_signal"))
    return case.momenta is not None and not any(tensors is case.momenta for tensors in ranked)


def packed(case: Case) -> Case:
    """A copy of the case with its momenta packed, in guarded memory that starts on odd elements, too."""
    run = case.clone()
    assert run.momenta is not None
    masks = run.masks()
    flat = [encoding.flat(m)[mask] for m, mask in zip(run.momenta, masks, strict=True)]
    momenta = [place(m, odd=i % 2 * 3) for i, m in enumerate(flat)]
    return replace(run, momenta=momenta, options=run.options | {"packed_momenta": True})


def assert_packed(run: Case, layers: list[oracle.Layer], updates: int) -> None:
    """``run`` (after a call) holds what the oracle left of the case with momenta at all positions."""
    assert run.momenta is not None
    for i, layer in enumerate(layers):
        assert layer.m is not None
        left = torch.from_numpy(layer.m[layer.mask].astype("int64"))
        got = torch.from_numpy(oracle.bits_of(run.momenta[i]).astype("int64"))
        nan = run.momenta[i].isnan() & torch.from_numpy(oracle.to_float32(layer.m[layer.mask], run.momenta[i].dtype)).isnan()
        assert_same_bits(got.masked_fill(nan, 0), left.masked_fill(nan, 0), f"momenta[{i}] of {run.description}")
    oracle.assert_layers(replace(run, momenta=None), [replace(layer, m=None) for layer in layers], updates)
    run.assert_margins()
