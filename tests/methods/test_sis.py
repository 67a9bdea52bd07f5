"""SIS as a method: dense, one update that keeps what layers give, then static; resumed to the bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.small_models import assert_invariant, differing, snapshot
from torch import Tensor, nn

import dstee
from dstee.methods import METHODS, SIS, method_from_dict
from dstee.methods.sis_layer import sparsify_layer

Batches = list[tuple[Tensor, Tensor]]
SCHEDULE = dstee.UpdateSchedule(every=2, stop=9)  # 2/3 of it is step 6


def data(*shape: int, batches: int = 3) -> Batches:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(24, *shape, generator=generator), torch.randint(4, (24,), generator=generator)) for _ in range(batches)
    ]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def make(model: nn.Module, batches: Batches, **settings: Any) -> tuple[dstee.SparseModel, dstee.SparseSGD]:
    sparse = dstee.sparsify(model, 0.7, method=SIS(**settings), schedule=SCHEDULE, batches=batches)
    return sparse, dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)


def train(sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer, batches: Batches, steps: range) -> list[bool]:
    changed = []
    for step in steps:
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(sparse.model(x), y).backward()
        changed.append(sparse.step(optimizer))
    return changed


@pytest.mark.parametrize("kind", ["fused", "torch"])
def test_dense_then_one_update_then_static(kind: str) -> None:
    batches, model = data(10), net()
    sparse, optimizer = make(model, batches)
    used = optimizer if kind == "fused" else torch.optim.AdamW(model.parameters(), lr=1e-2)
    assert sparse.nnz == sparse.numel
    assert train(sparse, used, batches, range(5)) == [False] * 5
    assert sparse.nnz == sparse.numel
    assert train(sparse, used, batches, range(5, 9)) == [True, False, False, False]
    budget = dstee.sparsify(net(), 0.7)
    assert {name: layer.nnz for name, layer in sparse.layers.items()} == {n: s.nnz for n, s in budget.layers.items()}
    assert_invariant(sparse, used)
    assert sparse.round == 1 and all(module.training for module in model.modules())


def test_each_layer_is_what_its_samples_make_it() -> None:
    """The update replaces the weights of the step before it, by what the function finds on rows of the batches."""
    batches, model = data(10), net()
    sparse, optimizer = make(model, batches, samples=30, penalty="l0", iterations=20)
    train(sparse, optimizer, batches, range(5))
    twin = copy.deepcopy(model)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    plain.load_state_dict({**copy.deepcopy(optimizer.state_dict()), "param_groups": plain.state_dict()["param_groups"]})
    x, y = batches[5 % 3]
    rng = torch.get_rng_state()
    nn.functional.cross_entropy(twin(x), y).backward()
    plain.step()
    torch.set_rng_state(rng)
    assert train(sparse, optimizer, batches, range(5, 6)) == [True]
    twin.eval()
    rows = torch.arange(30) * 48 // 30  # two batches hold as many; of them these
    h = torch.cat([x for x, _ in batches[:2]])[rows]
    for i in (0, 3, 5):
        layer: Any = twin[i]
        before = layer(h).detach()
        name, kind = f"{i}.weight", "identity" if i == 5 else "relu"
        outputs = before if i == 5 else before.relu()
        kept = sparsify_layer(
            layer.weight.detach(), layer.bias.detach(), h, outputs, sparse.layers[name].nnz, kind, penalty="l0", iterations=20
        )
        assert torch.equal(sparse.mask(name), kept.mask), name
        torch.testing.assert_close(model.get_parameter(name), kept.weight, rtol=1e-3, atol=1e-5)
        h = outputs


@pytest.mark.parametrize("stop", [4, 6, 7])
def test_resuming_gives_the_same_bits(stop: int) -> None:
    batches, model = data(10), net()
    model[2].p = 0.0
    sparse, optimizer = make(model, batches)
    train(sparse, optimizer, batches, range(stop))
    saved = copy.deepcopy((model.state_dict(), sparse.state_dict(), optimizer.state_dict()))
    again = net(1)
    again[2].p = 0.0
    resumed, other = make(again, batches)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1], strict=False)
    other.load_state_dict(saved[2])
    for one in ((sparse, optimizer), (resumed, other)):
        train(*one, batches, range(stop, 9))
    assert not differing(snapshot(sparse, optimizer), snapshot(resumed, other))


def test_groups_keep_their_parts_and_what_is_not_seen_its_largest() -> None:
    torch.manual_seed(0)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, groups=2, bias=False)
            self.up = nn.ConvTranspose2d(6, 3, 2)
            self.out = nn.Linear(3, 4)

        def forward(self, image: Tensor) -> Tensor:
            return self.out(self.up(self.conv(image).relu()).mean((2, 3)))

    model, batches = Mixed(), data(4, 6, 6)
    sparse, optimizer = make(model, batches, iterations=10)
    before = model.up.weight.detach().clone()
    train(sparse, torch.optim.SGD(model.parameters(), lr=0.0), batches, range(6))
    halves = sparse.mask("conv.weight").chunk(2)
    assert [int(m.sum()) for m in halves] == [-(-sparse.layers["conv.weight"].nnz // 2), sparse.layers["conv.weight"].nnz // 2]
    k = sparse.layers["up.weight"].nnz
    smallest = before.abs().flatten().topk(k).values[-1]
    assert torch.equal(model.up.weight, before.where(before.abs() >= smallest, 0))
    assert_invariant(sparse, optimizer)


def test_inputs_may_be_several() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(10, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.b(self.a(x).relu() * scale)

    results = []
    plain = data(10)
    for pack in (lambda x: (x, torch.ones(1)), lambda x: {"x": x, "scale": torch.ones(1)}):
        torch.manual_seed(0)
        model = Two()
        sparse = dstee.sparsify(model, 0.7, method=SIS(), schedule=SCHEDULE, batches=[(pack(x), y) for x, y in plain])
        optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
        for x, y in (plain * 2)[:6]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x, torch.ones(1)), y).backward()
            sparse.step(optimizer)
        results.append(snapshot(sparse, optimizer))
        assert sparse.round == 1
    assert not differing(*results)


def test_it_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="SIS looks at data: pass batches="):
        dstee.sparsify(net(), 0.7, method="sis", schedule=SCHEDULE)
    with pytest.raises(ValueError, match="SIS must reach its sparsity by the last mask update"):
        dstee.sparsify(net(), 0.7, method="sis", batches=data(10))
    batches = data(10)
    sparse, optimizer = make(net(), batches)
    train(sparse, optimizer, batches, range(5))
    before = snapshot(sparse, optimizer)
    sparse.batches = None
    with pytest.raises(RuntimeError, match=r"SIS looks at data at step 6: set sparse\.batches"):
        train(sparse, optimizer, batches, range(5, 6))
    assert not differing(before, snapshot(sparse, optimizer))
    sparse.batches = batches
    assert train(sparse, optimizer, batches, range(5, 6)) == [True]


def test_settings() -> None:
    method = SIS(share=0.5, samples=100, penalty="l0")
    assert METHODS["sis"] is SIS and method_from_dict(method.to_dict()) == method
    for wrong, text in (
        ({"share": 1.0}, "share must be between 0 and 1"),
        ({"samples": 0}, "samples must be an int of at least 1"),
        ({"iterations": 2.5}, "iterations must be an int of at least 1"),
        ({"penalty": "l2"}, "penalty must be 'l1' or 'l0'"),
    ):
        with pytest.raises(ValueError, match=text):
            SIS(**wrong)
