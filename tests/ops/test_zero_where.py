"""``zero_where`` beside ``masked_fill_``: the same bits, whatever the values and the layout."""

from __future__ import annotations

import pytest
import torch

from dstee.encoding import zero_where

ODD = [float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-40, -1.5, 3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32])
@pytest.mark.parametrize("shape", [(), (0,), (8,), (3, 5), (4, 3, 2, 2)])
def test_has_the_bits_of_masked_fill(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    for layout in (torch.contiguous_format, torch.channels_last) if len(shape) == 4 else (torch.contiguous_format,):
        n = torch.Size(shape).numel()
        values = torch.tensor(ODD).repeat(n // 8 + 1)[:n].view(shape)
        t = (values if dtype.is_floating_point else values.nan_to_num(5, 6, 7).int()).to(dtype).contiguous(memory_format=layout)
        where = torch.rand(shape, generator=generator) < 0.5
        expected = t.clone().masked_fill_(where, 0)
        version, strides = t._version, t.stride()
        zero_where(t, where)
        assert torch.equal(t.contiguous().view(-1).view(torch.uint8), expected.contiguous().view(-1).view(torch.uint8))
        assert t.stride() == strides and t._version > version


def test_parameters_that_need_gradients() -> None:
    p = torch.nn.Parameter(torch.ones(4))
    with torch.no_grad():
        zero_where(p, torch.tensor([True, False, True, False]))
    assert p.tolist() == [0, 1, 0, 1] and p.requires_grad and p.dtype == torch.float32
