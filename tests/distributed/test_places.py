"""``Where`` against torch's own cutting: what lies on which rank, for every layout."""

from __future__ import annotations

import pytest
import torch
from support import layouts
from support.layouts import LAYOUTS, Odd
from support.processes import Launcher
from torch import Tensor
from torch.distributed.tensor import DTensor

from dstee.distributed import where

pytestmark = pytest.mark.ranks
EVERY = [pytest.param(name, n, marks=[pytest.mark.slow] * (n > 4)) for name, one in LAYOUTS.items() for n in one.ranks]


def look(rank: int, name: str, n: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Places by torch, by ``Where`` and by cutting; one backward, and the values."""
    layout = LAYOUTS[name]
    by_torch = layouts.places(layout, n)
    model = layout.lay(Odd(), n)
    model(layouts.inputs()).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    layouts.replay(model, by_torch, 1)
    found, values = {}, {}
    for key, p in layouts.named(model).items():
        w = where.of_dtensor(p) if isinstance(p, DTensor) else where.whole(p.numel())
        assert w.total == p.numel()
        found[key] = w.to_global(torch.arange(w.n))
        assert torch.equal(w.cut(torch.arange(w.total)).reshape(-1), found[key])
        values[f"weight {key}"] = layouts.local(p)
        if p.grad is not None:
            assert not isinstance(p, DTensor) or p.grad.placements == p.placements
            values[f"grad {key}"] = layouts.local(p.grad)
    return by_torch, found, values


@pytest.mark.parametrize(("name", "n"), EVERY)
def test_where_is_torchs(launcher: Launcher, name: str, n: int) -> None:
    by_torch, found, values = zip(*launcher.run(n, look, name, n), strict=True)
    for rank in range(n):
        assert by_torch[rank].keys() == found[rank].keys()
        for key, index in by_torch[rank].items():
            assert torch.equal(index, found[rank][key]), (rank, key)
            assert (index.diff() > 0).all()
    model = Odd()
    layouts.replay(model, layouts.held(model), 1)
    whole = layouts.assemble(values, by_torch)
    for key, p in layouts.named(model).items():
        assert torch.equal(whole[f"weight {key}"], p.detach().view(-1))
        assert p.grad is None or torch.equal(whole[f"grad {key}"], p.grad.view(-1))


def test_shards_are_uneven_and_some_are_empty(launcher: Launcher) -> None:
    sizes = [{key: len(i) for key, i in of_rank[0].items()} for of_rank in launcher.run(3, look, "fsdp", 3)]
    assert [s["first.weight"] for s in sizes] == [15, 15, 5] and [s["row.weight"] for s in sizes] == [33, 0, 0]
