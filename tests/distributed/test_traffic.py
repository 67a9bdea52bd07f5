"""What an update sends: few messages, as many for any number of ranks, and kilobytes a tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import layouts
from support.layouts import LAYOUTS, Odd
from support.processes import Launcher
from support.rank_training import Run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytestmark = pytest.mark.ranks


class Traffic(TorchDispatchMode):
    """Counts collectives and the bytes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.name():
            self.calls += 1
            self.bytes += sum(t.numel() * t.element_size() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        return func(*args, **(kwargs or {}))


def count(rank: int, name: str, run: Run, ties: bool = False) -> tuple[list[tuple[int, int]], int]:
    """(calls, bytes) of each step, and the number of sparse layers. ``ties``: gradients of one layer are whole numbers."""
    import dstee

    n = dist.get_world_size()
    where = layouts.places(LAYOUTS[name], n)
    model = LAYOUTS[name].lay(Odd(), n)
    sparse = run.sparsify(model)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.125, momentum=0.9)
    found = []
    for step in range(1, run.steps + 1):
        layouts.replay(model, where, step)
        if not ties:
            p = layouts.named(model)["fourth.weight"]
            layouts.set_gradient(p, layouts.gradient("another", p.shape, step), where["fourth.weight"])
        with Traffic() as traffic:
            sparse.step(optimizer)
        found.append((traffic.calls, traffic.bytes))
    return found, len(sparse.layers)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", ["dst-ee", "dst-ee-c", "set", "rigl-no-regrow", "gmp"])
def test_traffic_of_an_update(launcher: Launcher, method: str, ties: bool) -> None:
    """Ties are told apart by more bytes of the keys, and by those of the index."""
    most = 18 if ties else 12
    run = Run(method, steps=8)
    of_two = None
    for n in (2, 4):
        by_rank = launcher.run(n, count, "fsdp", run, ties)
        steps, layers = by_rank[0]
        assert all(other == by_rank[0] for other in by_rank)
        updates, between = steps[1::2], steps[::2]
        assert all(1 <= calls <= most for calls, _ in updates), updates
        assert all(sent <= 16 * 1024 * layers for _, sent in updates), updates
        assert all(calls <= 1 for calls, _ in between), between
        of_two = of_two or steps
        assert steps == of_two, f"{n} ranks send something else than 2"


@pytest.mark.slow
def test_traffic_of_eight_ranks(launcher: Launcher) -> None:
    run = Run(steps=8)
    assert launcher.run(8, count, "fsdp", run)[0] == launcher.run(2, count, "fsdp", run)[0]


def test_copies_send_nothing(launcher: Launcher) -> None:
    steps, _ = launcher.run(2, count, "copies", Run(steps=4))[0]
    assert steps == [(0, 0)] * 4


def probe(rank: int) -> tuple[int, int]:
    with Traffic() as traffic:
        dist.all_reduce(torch.zeros(8, dtype=torch.int32))
        dist.broadcast(torch.zeros(2), 0)
    return traffic.calls, traffic.bytes


def test_the_count_itself(launcher: Launcher) -> None:
    assert launcher.run(2, probe) == [(2, 40)] * 2
