"""SNFS, DSR, DeepR and MEST beside their definitions in plain numbers, their totals, resumed trainings and refusals."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from support.plain_dynamic import Plain, PlainDeepR, PlainDSR, PlainMEST, PlainSNFS
from support.small_models import assert_invariant, convnet, differing, set_gradients, snapshot
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import dstee
from dstee.methods import DSR, MEST, SNFS, DeepR, Method, Swap, Update

SCHEDULE = dstee.UpdateSchedule(every=2, stop=20, drop=dstee.CosineDrop(0.5, 0.02))


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 10, False), nn.Linear(10, 8, False), nn.Linear(8, 4, False))


def make(
    method: Method, sparsity: Any = 0.7, schedule: dstee.UpdateSchedule = SCHEDULE
) -> tuple[dstee.SparseModel, dstee.SparseSGD]:
    sparse = dstee.sparsify(net(), sparsity, method=method, schedule=schedule, seed=3)
    return sparse, dstee.SparseSGD(sparse.model.parameters(), sparse, lr=0.05, momentum=0.9)


DENSE_LAST = {"0.weight": 0.9, "1.weight": 0.5, "2.weight": 0.0}
FULL = {"0.weight": 0.1, "1.weight": 0.15, "2.weight": 0.0}
CASES: list[tuple[Method, type[Plain], Any]] = [
    (SNFS(), PlainSNFS, 0.7),
    (SNFS(beta=0.0), PlainSNFS, DENSE_LAST),
    (SNFS(beta=0.99), PlainSNFS, FULL),  # layers above 80 %, some of them favoured
    (DSR(threshold=0.05), PlainDSR, 0.7),
    (DSR(threshold=1e-3, share=0.5), PlainDSR, DENSE_LAST),
    (DSR(threshold=1.0), PlainDSR, FULL),  # more than there is place for
    (DeepR(), PlainDeepR, 0.7),
    (DeepR(l1=0.5, noise=2.0), PlainDeepR, DENSE_LAST),  # a dense layer: what crosses 0 comes back anew
    (MEST(), PlainMEST, 0.7),
    (MEST(exchange=1.0, halve_at=0.5), PlainMEST, 0.7),  # each layer is empty for a moment
    (MEST(lam=3.0, exchange=0.3), PlainMEST, DENSE_LAST),
    (MEST(soft=True), PlainMEST, DENSE_LAST),
    (MEST(soft=True, exchange=1.5, lam=0.5), PlainMEST, DENSE_LAST),  # beyond the size of 1.weight
]


@pytest.mark.parametrize(("method", "plain", "sparsity"), CASES)
def test_every_step_is_the_definition(method: Method, plain: type[Plain], sparsity: Any) -> None:
    sparse, optimizer = make(method, sparsity)
    expected, masks = plain(sparse, 0.9), set()
    for step in range(1, 23):
        set_gradients(sparse.model, step)
        lr = optimizer.param_groups[0]["lr"] = 0.1 / step
        expected.step([p.grad for p in sparse.model.parameters() if p.grad is not None], lr)
        assert sparse.step(optimizer) is expected.is_due()
        assert [layer.nnz for layer in sparse.layers.values()] == expected.nnz
        for i, (name, layer) in enumerate(sparse.layers.items()):
            assert sparse.mask(name).flatten().tolist() == expected.active[i], (step, name)
            assert torch.equal(layer.param.detach().flatten(), expected.w[i]), (step, name)
            buffer = optimizer.momentum_buffer(layer)
            assert buffer is not None and torch.equal(buffer.flatten(), expected.m[i]), (step, name)
        assert_invariant(sparse, optimizer)
        masks.add(str(expected.active))
    assert len(masks) > 6 and sum(expected.nnz) == sum(expected.budget), "it moves, and ends at the budget"
    if isinstance(expected, PlainDSR):
        assert float(sparse._numbers["threshold"]) == expected.threshold != method.threshold  # type: ignore[attr-defined]


OPTIMIZERS = {
    "SparseSGD": lambda sparse: dstee.SparseSGD(sparse.model.parameters(), sparse, lr=0.05, momentum=0.9),
    "SGD": lambda sparse: torch.optim.SGD(sparse.model.parameters(), lr=0.05, momentum=0.9),
    "Adam": lambda sparse: torch.optim.Adam(sparse.model.parameters(), lr=0.05),
}
RESUMED = [SNFS(beta=0.7), DSR(threshold=0.02), DeepR(noise=0.1), MEST(lam=0.1), MEST(soft=True)]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("method", RESUMED)
def test_resumed_in_the_middle_to_the_bit(method: Method, kind: str) -> None:
    def start(method: Method | str, seed: int) -> tuple[dstee.SparseModel, torch.optim.Optimizer]:
        model = convnet(seed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        sparse = dstee.sparsify(model, 0.6, method=method, schedule=SCHEDULE, seed=seed)
        return sparse, OPTIMIZERS[kind](sparse)

    def train(sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            set_gradients(sparse.model, step)
            sparse.step(optimizer)

    whole, optimizer = start(method, 0)
    train(whole, optimizer, range(9))
    file = io.BytesIO()
    torch.save([whole.model.state_dict(), whole.state_dict(), optimizer.state_dict()], file)
    train(whole, optimizer, range(9, 21))
    file.seek(0)
    weights, masks, state = torch.load(file, weights_only=True)
    resumed, other = start(method.key, 1)
    resumed.model.load_state_dict(weights)
    resumed.load_state_dict(masks)
    other.load_state_dict(state)
    train(resumed, other, range(9, 21))
    assert resumed.method == method and whole.round == resumed.round >= 9
    assert not differing(snapshot(whole, optimizer), snapshot(resumed, other))
    assert whole.state_dict(full=True)["digest"] == resumed.state_dict(full=True)["digest"]
    for name, layer in whole.state_dict(full=True)["layers"].items():
        kept = resumed.state_dict(full=True)["layers"][name].get("kept", {})
        assert kept.keys() == layer.get("kept", {}).keys() == set(method.keeps)
        assert all(torch.equal(kept[key], t) for key, t in layer.get("kept", {}).items())


# --- rare cases ----------------------------------------------------------------------------------------------------------

ONCE = dstee.UpdateSchedule(every=1, drop=dstee.ConstantDrop(0.5))


def two_layers(method: Method, schedule: dstee.UpdateSchedule = ONCE) -> tuple[dstee.SparseModel, dstee.SparseSGD]:
    """Layers "0.weight" and "1.weight" of 8 weights, the first four of each active, all weights 1."""
    model = nn.Sequential(nn.Linear(4, 2, False), nn.Linear(2, 4, False))
    for p in model.parameters():
        nn.init.ones_(p)
    masks = {name: (torch.arange(8) < 4).view(p.shape) for name, p in model.named_parameters()}
    sparse = dstee.sparsify(model, method=method, schedule=schedule, masks=masks)
    return sparse, dstee.SparseSGD(model.parameters(), sparse, lr=0.0)


def active(sparse: dstee.SparseModel) -> list[list[int]]:
    return [sparse.mask(name).flatten().nonzero().flatten().tolist() for name in sparse.layers]


def step(sparse: dstee.SparseModel, optimizer: dstee.SparseSGD, *gradients: float | list[float]) -> None:
    for layer, g in zip(sparse.layers.values(), gradients, strict=True):
        layer.param.grad = torch.tensor(g if isinstance(g, list) else [g] * 8).view(layer.param.shape)
    sparse.step(optimizer)


def test_snfs_without_momentum_grows_evenly_by_index() -> None:
    sparse, optimizer = two_layers(SNFS())
    step(sparse, optimizer, 0.0, 0.0)
    assert active(sparse) == [[0, 1, 2, 3]] * 2, "the two of each layer that were dropped have the lowest indices"


def test_snfs_moves_weights_where_momentum_is() -> None:
    sparse, optimizer = two_layers(SNFS())
    step(sparse, optimizer, 3.0, 1.0)
    assert active(sparse) == [[0, 1, 2, 3, 4], [0, 2, 3]], "three to one; ties by index, the dropped 0 and 1 first"
    sparse, optimizer = two_layers(SNFS())
    step(sparse, optimizer, [1.0] * 7 + [math.nan], 0.0)
    assert active(sparse) == [[0, 1, 2, 3, 4, 5], [2, 3]], "NaN is grown last and is no share"
    for _ in range(3):  # the second layer empties, the first is dense and keeps all
        step(sparse, optimizer, 1.0, 0.0)
    assert active(sparse) == [[0, 1, 2, 3, 4, 5, 6, 7], []] and sparse.nnz == 8


def test_snfs_spares_a_full_layer_no_more_than_the_schedule() -> None:
    model = nn.Sequential(nn.Linear(20, 1, False), nn.Linear(1, 20, False))
    for p in model.parameters():
        nn.init.constant_(p, 1.0)
    masks = {"0.weight": torch.arange(20).view(1, 20) < 17, "1.weight": torch.arange(20).view(20, 1) < 4}
    schedule = dstee.UpdateSchedule(every=1, drop=dstee.ConstantDrop(0.1))
    sparse = dstee.sparsify(model, method=SNFS(), schedule=schedule, masks=masks)
    for p, g in zip(model.parameters(), (3.0, 1.0), strict=True):
        p.grad = torch.where(torch.arange(20) < (17 if g == 3 else 4), g, 2 * g).view(p.shape)
    sparse.step(dstee.SparseSGD(model.parameters(), sparse, lr=0.0))
    assert active(sparse) == [list(range(2, 19)), [1, 2, 3, 4]], "10 % of 17, not the inactive 15 %; then 2.25 and 0.75"


def test_snfs_without_regrowth_drops_what_finds_a_place() -> None:
    sparse, optimizer = two_layers(SNFS(regrow=False), dstee.UpdateSchedule(every=1, drop=dstee.ConstantDrop(1.0)))
    for _ in range(3):
        step(sparse, optimizer, 3.0, 1.0)
        assert sparse.nnz == 8
    sparse, optimizer = make(SNFS(regrow=False), FULL, ONCE)
    before = sparse.nnz
    for i in range(6):
        set_gradients(sparse.model, i)
        sparse.step(optimizer)
        assert sparse.nnz == before


def test_snfs_averages_the_whole_gradient() -> None:
    sparse, optimizer = two_layers(SNFS(beta=0.5), dstee.UpdateSchedule(every=9))
    step(sparse, optimizer, 3.0, 1.0)
    step(sparse, optimizer, 5.0, 0.0)
    sparse.model.zero_grad()
    set_gradients(sparse.model, 0)
    sparse.layers["1.weight"].param.grad = None  # a layer that the loss did not reach
    sparse.layers["0.weight"].param.grad = torch.ones(2, 4)
    sparse.step(optimizer)
    assert [layer.state["momentum"].unique().tolist() for layer in sparse.layers.values()] == [[4.25], [0.5]]


def test_dsr_gives_an_empty_layer_nothing() -> None:
    sparse, optimizer = two_layers(DSR(threshold=0.5))
    with torch.no_grad():
        sparse.layers["0.weight"].param.mul_(0.25)
    step(sparse, optimizer, 1.0, 1.0)
    assert active(sparse) == [[], [0, 1, 2, 3, 4, 5, 6, 7]] and float(sparse._numbers["threshold"]) == 0.25


@pytest.mark.parametrize(("found", "factor"), [(8, 2.0), (9, 1.0), (11, 1.0), (12, 0.5)])
def test_dsr_doubles_or_halves_its_threshold(found: int, factor: float) -> None:
    model = nn.Sequential(nn.Linear(50, 1, False))
    with torch.no_grad():
        model[0].weight.copy_(torch.where(torch.arange(50) < found, 0.01, 1.0))
    masks = {"0.weight": torch.arange(50).view(1, 50) < 20}
    sparse = dstee.sparsify(model, method=DSR(threshold=0.25, share=0.5), schedule=ONCE, masks=masks)
    model[0].weight.grad = torch.zeros(1, 50)
    sparse.step(dstee.SparseSGD(model.parameters(), sparse, lr=0.0))
    assert float(sparse._numbers["threshold"]) == 0.25 * factor
    assert sparse.nnz == 20 and not sparse.mask("0.weight")[0, :found].any() and sparse.mask("0.weight")[0, found:20].all()


def test_deepr_drops_what_is_0_and_not_what_is_new() -> None:
    sparse, optimizer = two_layers(DeepR(l1=0.0, noise=0.0))
    with torch.no_grad():
        sparse.layers["0.weight"].param.zero_()
    step(sparse, optimizer, 0.0, 0.0)
    first = active(sparse)
    assert sparse.nnz == 8 and first[1] == [0, 1, 2, 3], "four of the first layer, any"
    assert not sparse.layers["0.weight"].param.any()
    step(sparse, optimizer, 0.0, 0.0)
    step(sparse, optimizer, 0.0, 0.0)
    assert active(sparse) == first and sparse.layers["0.weight"].param.abs().unique().tolist() == [0.0, pytest.approx(1e-12)]


def test_deepr_keeps_signs_and_has_no_last_round() -> None:
    sparse, optimizer = make(DeepR(l1=1.0, noise=3.0), schedule=dstee.UpdateSchedule())
    sparse.set_progress(10**6, 10**6)
    signs: dict[str, torch.Tensor] = {}
    for i in range(12):
        set_gradients(sparse.model, i)
        assert sparse.step(optimizer)
        for name, layer in sparse.layers.items():
            sign, w = layer.state["sign"].sign(), layer.param.detach()
            assert torch.equal(signs.setdefault(name, sign), sign) and sign.abs().min() == 1
            assert (w * sign >= 0).all()


def test_mest_grows_above_its_budget_and_comes_back() -> None:
    sparse, optimizer = two_layers(MEST(soft=True, exchange=0.5), dstee.UpdateSchedule(every=1, stop=5))
    totals = []
    for i in range(6):
        step(sparse, optimizer, float(i), 1.0)
        totals.append([layer.nnz for layer in sparse.layers.values()])
    assert totals == [[6, 6], [6, 6], [5, 5], [4, 4], [4, 4], [4, 4]]


class NoSync(TorchDispatchMode):
    """Fails where a tensor's value is asked for, which would make a host wait for its GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", [*RESUMED, SNFS(regrow=False), DSR(regrow=True)])
def test_no_hook_waits_for_the_device(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dstee.allocation, "_check", lambda *args: None)  # on the CPU alone, where it costs no wait
    sparse, optimizer = make(method)
    for i in range(2):
        set_gradients(sparse.model, i)
        sparse.step(optimizer)
        layers = list(sparse.layers.values())
        u = Update(4, i, 0, SCHEDULE, layers, sparse._numbers, [optimizer], budget=sparse.budget)
        with NoSync(), torch.no_grad():
            method.after_step(u)
            for action in method.plan(u):
                assert isinstance(action, Swap)
                u.dropping = action.drop(u)
                for make_numbers in (action.grow, action.drop_by, action.grow_by):
                    if callable(make_numbers):
                        make_numbers(u)


@pytest.mark.parametrize(
    ("make_method", "message"),
    [
        (lambda: SNFS(beta=1.0), r"beta must be in \[0, 1\)"),
        (lambda: SNFS(beta=math.nan), r"beta must be in \[0, 1\)"),
        (lambda: DSR(threshold=0.0), r"threshold must be in \(0, 1\]"),
        (lambda: DSR(share=1.5), r"share must be in \(0, 1\]"),
        (lambda: DSR(share=math.nan), r"share must be in \(0, 1\]"),
        (lambda: DeepR(l1=-1e-5), "l1 must be a finite number >= 0"),
        (lambda: DeepR(noise=math.inf), "noise must be a finite number >= 0"),
        (lambda: DeepR(order="replace"), "every step of DeepR is an update"),
        (lambda: DeepR(regrow=False), "regrow must be True"),
        (lambda: DeepR(reset_regrown=False), "reset_regrown must be True"),
        (lambda: MEST(soft=1), "soft must be True or False"),
        (lambda: MEST(exchange=1.5), "exchange must be a share"),
        (lambda: MEST(soft=True, exchange=-0.1), "exchange must be a share"),
        (lambda: MEST(lam=math.nan), "lam must be a finite number"),
        (lambda: MEST(halve_at=2.0), "halve_at must be in"),
        (lambda: dstee.sparsify(net(), method="mest"), "MEST must reach its sparsity by the last mask update"),
    ],
)
def test_refusals(make_method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method()
