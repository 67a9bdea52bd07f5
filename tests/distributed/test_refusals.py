"""What cannot be trained is refused in one sentence, by all ranks together: nobody waits for a rank that has raised."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from support import layouts
from support.layouts import LAYOUTS, Odd
from support.processes import Launcher
from support.rank_training import METHODS, Run
from support.refusals import refusal
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import dstee

pytestmark = pytest.mark.ranks


def still_there(rank: int) -> None:
    """After a refusal, ranks must still be at the same collective."""
    x = torch.tensor([rank])
    dist.all_reduce(x)
    assert int(x) == sum(range(dist.get_world_size()))


def sparsify(rank: int, model: nn.Module) -> None:
    try:
        dstee.sparsify(model, 0.5)
    finally:
        still_there(rank)


class One(nn.Module):
    """A plain layer, and one whose weight is given."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.plain = nn.Linear(6, 6)
        self.given = nn.Linear(1, 1) if weight.dim() == 2 else nn.Conv2d(1, 1, 1)
        self.given.weight = nn.Parameter(weight)


def mesh_of(*shape: int) -> DeviceMesh:
    return init_device_mesh("cpu", shape)


# --- placements ------------------------------------------------------------------------------------------------------------


def partial(rank: int) -> None:
    sparsify(rank, One(DTensor.from_local(torch.randn(6, 8), mesh_of(2), [Partial()])))


def two_inner_dimensions(rank: int) -> None:
    weight = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    sparsify(rank, One(distribute_tensor(weight, mesh_of(2, 2), [Shard(1), Shard(2)])))


def contradicting(rank: int) -> None:
    """Rank 1's shard is not what the placement says; rank 0's is."""
    mine = torch.randn(3 if rank == 0 else 2, 8)
    weight = DTensor.from_local(mine, mesh_of(2), [Shard(0)], run_check=False, shape=torch.Size([6, 8]), stride=(8, 1))
    sparsify(rank, One(weight))


def meta(rank: int) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    sparsify(rank, fully_shard(model, mesh=mesh_of(2)))


@pytest.mark.parametrize(
    ("n", "what", "words"),
    [
        (2, partial, "added up"),
        (4, two_inner_dimensions, "cut in dimensions"),
        (2, contradicting, "weight"),
        (2, meta, "memory"),
    ],
)
def test_weights_that_are_refused(launcher: Launcher, n: int, what: Callable[[int], None], words: str) -> None:
    kind, text = refusal(launcher.outcomes(n, what))
    assert kind in ("TypeError", "ValueError", "RuntimeError") and words in text, (kind, text)
    assert "weight" in text


# --- gradients -------------------------------------------------------------------------------------------------------------


def missing_gradient(rank: int, name: str, everywhere: bool) -> None:
    """An update is due, and one layer's gradient is missing, everywhere or on the last rank alone."""
    n = dist.get_world_size()
    run = Run(every=1)
    where = layouts.places(LAYOUTS[name], n)
    model = LAYOUTS[name].lay(Odd(), n)
    sparse = run.sparsify(model)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    layouts.replay(model, where, 1)
    if everywhere or rank == n - 1:
        layouts.named(model)["third.weight"].grad = None
    before = [layouts.local(p) for p in model.parameters()]
    bits = [layer.mask_bits.clone() for layer in sparse.layers.values()]
    try:
        sparse.step(optimizer)
    finally:
        still_there(rank)
        assert all(torch.equal(a, layouts.local(p)) for a, p in zip(before, model.parameters(), strict=True))
        assert all(torch.equal(a, layer.mask_bits) for a, layer in zip(bits, sparse.layers.values(), strict=True))
        assert (sparse.t, sparse.round) == (0, 0)


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize(("name", "n"), [("fsdp", 3), ("tp-columns", 2), ("hsdp", 4)])
def test_a_missing_gradient(launcher: Launcher, name: str, n: int, everywhere: bool) -> None:
    kind, text = refusal(launcher.outcomes(n, missing_gradient, name, everywhere))
    assert kind == "RuntimeError" and "third.weight" in text and "gradient" in text


def unsynchronised(rank: int) -> None:
    """``set_requires_gradient_sync(False)`` at an update leaves no gradients on the sharded parameters."""
    model = LAYOUTS["fsdp"].lay(Odd(), 2)
    sparse = Run(every=1).sparsify(model)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
    model.set_requires_gradient_sync(False)
    model(layouts.inputs()).sum().backward()
    try:
        sparse.step(optimizer)
    finally:
        still_there(rank)


def test_no_gradient_sync_at_an_update(launcher: Launcher) -> None:
    kind, text = refusal(launcher.outcomes(2, unsynchronised))
    assert kind == "RuntimeError" and "gradient" in text


def partial_gradient(rank: int) -> None:
    model = LAYOUTS["tp-columns"].lay(Odd(), 2)
    sparse = Run(every=1).sparsify(model)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
    layouts.replay(model, layouts.places(LAYOUTS["tp-columns"], 2), 1)
    p = model.get_parameter("third.weight")
    p._local_tensor.grad = None
    grad = DTensor.from_local(torch.ones(p.shape), p.device_mesh, [Partial()], run_check=False)
    p.grad = grad
    try:
        sparse.step(optimizer)
    finally:
        still_there(rank)


def test_a_partial_gradient(launcher: Launcher) -> None:
    _, text = refusal(launcher.outcomes(2, partial_gradient))
    assert "third.weight" in text and "Partial" in text


def otherwise_placed_gradient(rank: int) -> bool:
    """A gradient that every rank holds whole is cut to the parameter's shard."""
    where = layouts.places(LAYOUTS["tp-columns"], 2)
    found = []
    for whole in (False, True):
        model = LAYOUTS["tp-columns"].lay(Odd(), 2)
        sparse = Run(every=1).sparsify(model)
        optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.125)
        layouts.replay(model, where, 1)
        if whole:
            p = model.get_parameter("third.weight")
            grad = layouts.gradient("third.weight", p.shape, 1)
            p.grad = DTensor.from_local(grad, p.device_mesh, [Replicate()], run_check=False)
        sparse.step(optimizer)
        found.append([layouts.local(p) for p in model.parameters()])
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_gradient_with_another_placement(launcher: Launcher) -> None:
    outcomes = launcher.outcomes(2, otherwise_placed_gradient)
    if any(o.error for o in outcomes):
        _, text = refusal(outcomes)
        assert "third.weight" in text and "placement" in text
    else:
        assert [o.value for o in outcomes] == [True, True]


# --- optimizers ------------------------------------------------------------------------------------------------------------


def optimizer_before_wrapping(rank: int, kind: str) -> None:
    model = Odd()
    sparse = Run(every=1).sparsify(model)
    make = {"sparse-sgd": lambda ps: dstee.SparseSGD(ps, sparse, lr=0.1), "adamw": torch.optim.AdamW}[kind]
    optimizer = make(model.parameters())
    laid = LAYOUTS["fsdp"].lay(model, 2)
    layouts.replay(laid, layouts.places(LAYOUTS["fsdp"], 2), 1)
    try:
        sparse.step(optimizer)
    finally:
        still_there(rank)


@pytest.mark.parametrize("kind", ["sparse-sgd", "adamw"])
def test_an_optimizer_made_before_fully_shard(launcher: Launcher, kind: str) -> None:
    error, text = refusal(launcher.outcomes(2, optimizer_before_wrapping, kind))
    assert error == "ValueError" and "after wrapping" in text


# --- methods ---------------------------------------------------------------------------------------------------------------


def all_methods(rank: int, name: str) -> list[str]:
    return [key for key in METHODS if _fails(key, name)]


def _fails(key: str, name: str) -> bool:
    try:
        Run(key).sparsify(LAYOUTS[name].lay(Odd(), 2))
    except (TypeError, ValueError):
        return True
    return False


def test_ranks_agree_on_the_methods_that_they_refuse(launcher: Launcher) -> None:
    first, second = launcher.run(2, all_methods, "fsdp")
    assert first == second
