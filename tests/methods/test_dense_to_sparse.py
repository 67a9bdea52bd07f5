"""GMP, GraNet, one-shot, ADMM and GaP: budgets and masks beside their definitions, resumed trainings and refusals."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from support.small_models import set_gradients
from torch import Tensor, nn

import dstee
from dstee.methods import ADMM, GMP, GaP, GraNet, KeepGlobal, Method, OneShot, Start, Update

SCHEDULE = dstee.UpdateSchedule(every=2, stop=20)  # updates at 2, 4 ... 18
SIZES, TOTAL, TARGET = [120, 80, 32], 232, 70


def make(method: Method, optimizer: str = "sparse", schedule: dstee.UpdateSchedule = SCHEDULE):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10, False), nn.Linear(10, 8, False), nn.Linear(8, 4, False))
    sparse = dstee.sparsify(model, 1 - TARGET / TOTAL, method=method, schedule=schedule, seed=3)
    if optimizer == "sparse":
        return sparse, dstee.SparseSGD(model.parameters(), sparse, lr=0.05, momentum=0.9)
    kind = {"sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), "adam": lambda p: torch.optim.Adam(p, lr=0.01)}
    return sparse, kind[optimizer](model.parameters())


def step(sparse, optimizer, t: int) -> None:
    set_gradients(sparse.model, t)
    sparse.step(optimizer)


def masks(sparse) -> list[Tensor]:
    return [layer.active() for layer in sparse.layers.values()]


def largest(weights: list[Tensor], k: int) -> list[Tensor]:
    order = torch.cat([w.abs().flatten() for w in weights]).sort(descending=True, stable=True).indices
    flat = torch.zeros(order.numel(), dtype=torch.bool)
    flat[order[:k]] = True
    return [m.view(w.shape) for m, w in zip(flat.split([w.numel() for w in weights]), weights, strict=True)]


METHODS = [GMP(), GMP(begin=0.2, end=0.7, power=2.0), GraNet(), GraNet(start_density=1.0, end=0.6), OneShot(), ADMM(rho=0.1),
           ADMM(scope="global", rho=0.1), GaP(groups=2, cycles=2), GaP()]  # fmt: skip


def expected_total(method: Method, t: int, budget: list[int]) -> int:
    t = min(t // 2 * 2, 18)
    if isinstance(method, OneShot):
        return TOTAL if t < 10 else TARGET
    if isinstance(method, ADMM):
        return TOTAL if t < 12 else TARGET
    if isinstance(method, GaP):
        phases = method.groups * method.cycles
        done = sum(9 * i <= t // 2 * phases for i in range(1, phases + 1))
        groups = [[0, 1], [2]] if method.groups == 2 else [[0], [1], [2]]
        dense = [] if done == phases else groups[done % len(groups)]
        return sum(SIZES[i] if i in dense else budget[i] for i in range(3))
    start, begin, power = (method.start_density, 0.0, 3) if isinstance(method, GraNet) else (1.0, method.begin, method.power)
    left = min(1.0, max(0.0, (method.end - t / 18) / (method.end - begin)))
    return TARGET + round((start * TOTAL - TARGET) * left**power)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_totals_at_every_step(method: Method) -> None:
    sparse, optimizer = make(method)
    budget = list(sparse.budget.values())
    assert sum(budget) == TARGET
    for t in range(1, 23):
        step(sparse, optimizer, t)
        assert sum(int(m.sum()) for m in masks(sparse)) == expected_total(method, t, budget), t


@pytest.mark.parametrize("method", [GMP(), OneShot(), ADMM(), ADMM(scope="global")], ids=str)
def test_masks_and_weights_are_the_definition(method: Method) -> None:
    sparse, optimizer = make(method, "sgd")
    plain = copy.deepcopy([p.detach() for p in sparse.model.parameters()])
    momenta = [torch.zeros_like(w) for w in plain]
    z: list[Tensor] = []
    dual = [torch.zeros_like(w) for w in plain]
    active = [torch.ones_like(w, dtype=torch.bool) for w in plain]
    budget = list(sparse.budget.values())

    def cut(x: list[Tensor]) -> list[Tensor]:
        if isinstance(method, ADMM) and method.scope == "layer":
            return [largest([one], k)[0] for one, k in zip(x, budget, strict=True)]
        return largest(x, TARGET)

    for t in range(1, 23):
        set_gradients(sparse.model, t)
        grads = [p.grad.clone() for p in sparse.model.parameters()]
        sparse.step(optimizer)
        for i in range(3):
            if isinstance(method, ADMM) and 6 < t <= 12:
                grads[i] = grads[i] + method.rho * (plain[i] - z[i] + dual[i])
            momenta[i] = (momenta[i] * 0.9 + grads[i]) * active[i]
            plain[i] = torch.add(plain[i], momenta[i], alpha=-0.05) * active[i]
        if isinstance(method, ADMM) and t in (6, 8, 10):
            x = [w + d for w, d in zip(plain, dual, strict=True)]
            z = [v * m for v, m in zip(x, cut(x), strict=True)]
            if t > 6:
                dual = [d + (w - v) for d, w, v in zip(dual, plain, z, strict=True)]
        elif isinstance(method, GMP) and t % 2 == 0 and t <= 18:
            active = largest(plain, expected_total(method, t, budget))
        elif (isinstance(method, OneShot) and t == 10) or (isinstance(method, ADMM) and t == 12):
            active = cut(plain)
        plain = [w * m for w, m in zip(plain, active, strict=True)]
        momenta = [b * m for b, m in zip(momenta, active, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(masks(sparse), active, strict=True)), t
        assert all(torch.equal(p, w) for p, w in zip(sparse.model.parameters(), plain, strict=True)), t


@pytest.mark.parametrize("optimizer", ["sparse", "sgd", "adam"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_resumes_to_the_bit(method: Method, optimizer: str) -> None:
    sparse, opt = make(method, optimizer)
    saved = {}
    for t in range(1, 23):
        step(sparse, opt, t)
        if t in (3, 9, 15, 19):
            saved[t] = copy.deepcopy((sparse.model.state_dict(), sparse.state_dict(), opt.state_dict()))
    for at, (weights, state, moments) in saved.items():
        other, opt2 = make(method, optimizer)
        other.model.load_state_dict(weights)
        other.load_state_dict(state)
        opt2.load_state_dict(moments)
        for t in range(at + 1, 23):
            step(other, opt2, t)
        assert all(torch.equal(a, b) for a, b in zip(other.model.parameters(), sparse.model.parameters(), strict=True))


class Short(GMP):
    """Stops above the target."""

    name, key = "short", "short"

    def start(self, s: Start) -> Mapping[str, Tensor]:
        return s.dense_masks()

    def plan(self, u: Update) -> list[KeepGlobal]:
        return [KeepGlobal(self.total)]

    def total(self, u: Update) -> int:
        return u.target + 5


def test_a_schedule_that_ends_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match=f"short ends with {TARGET + 5} active weights.*asks for {TARGET}"):
        make(Short())


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_needs_stop_and_own_masks(method: Method) -> None:
    with pytest.raises(ValueError, match="must reach its sparsity"):
        make(method, schedule=dstee.UpdateSchedule(every=2))
    with pytest.raises(ValueError, match="leave out masks"):
        dstee.sparsify(nn.Linear(8, 8), 0.5, method=method, schedule=SCHEDULE, masks="magnitude")


def test_refusals() -> None:
    for cls, values in [(GMP, {"end": 0.0}), (GMP, {"begin": 1.0}), (GMP, {"power": 0.0}), (GraNet, {"start_density": 0.0}),
                        (GraNet, {"end": 2.0}), (OneShot, {"at": 0.0}), (ADMM, {"rho": 0.0}), (ADMM, {"scope": "all"}),
                        (ADMM, {"begin": 0.7}), (GaP, {"groups": 0}), (GaP, {"cycles": True})]:  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(values))} must be"):
            cls(**values)
    with pytest.raises(ValueError, match="raise start_density"):
        make(GraNet(start_density=0.1))
    with pytest.raises(ValueError, match="8 phases"):
        make(GaP(), schedule=dstee.UpdateSchedule(every=2, stop=16))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_frozen_layer_stays(method: Method) -> None:
    sparse, optimizer = make(method)
    first = sparse.layers["0.weight"]
    before, weights = first.active(), first.param.detach().clone()
    first.param.requires_grad_(False)
    for t in range(1, 23):
        set_gradients(sparse.model, t)
        first.param.grad = None
        sparse.step(optimizer)
    assert torch.equal(first.active(), before) and torch.equal(first.param, weights)
    budget = list(sparse.budget.values())
    assert sum(int(m.sum()) for m in masks(sparse)[1:]) == sum(budget[1:])


@pytest.mark.parametrize("method", [GraNet(), GraNet(start_density=1.0, end=0.6)], ids=str)
def test_granet_prunes_globally_then_swaps_by_gradient(method: GraNet) -> None:
    sparse, optimizer = make(method, "sgd")
    params = list(sparse.model.parameters())
    for t in range(1, 20):
        active, momenta = masks(sparse), [optimizer.state[p].get("momentum_buffer") for p in params]
        momenta = [torch.zeros_like(p) if m is None else m.clone() for p, m in zip(params, momenta, strict=True)]
        plain = [p.detach().clone() for p in params]
        set_gradients(sparse.model, t)
        grads = [p.grad.clone() for p in params]
        sparse.step(optimizer)
        if t % 2 == 0 and t <= 18:
            plain = [torch.add(w, (m * 0.9 + g) * a, alpha=-0.05) * a
                     for w, m, g, a in zip(plain, momenta, grads, active, strict=True)]  # fmt: skip
            ranked = [torch.where(a, w.abs() + 1, 0) for w, a in zip(plain, active, strict=True)]
            kept = largest(ranked, expected_total(method, t, []))
            for i in range(3):
                n = int(kept[i].sum())
                k = SCHEDULE.swap_count(n, t) if n < SIZES[i] else 0
                stay = largest([torch.where(kept[i], plain[i].abs() + 1, 0)], n - k)[0]
                come = largest([torch.where(stay, 0, grads[i].abs() + 1)], k)[0]
                assert torch.equal(masks(sparse)[i], stay | come), (t, i)


def test_gap_prunes_one_group_by_magnitude_and_grows_the_next_at_zero() -> None:
    sparse, optimizer = make(GaP(groups=3, cycles=1), "sgd")  # phases end at 6, 12 and 18
    params, budget = list(sparse.model.parameters()), list(sparse.budget.values())
    for t in range(1, 20):
        old = masks(sparse)
        step(sparse, optimizer, t)
        new = masks(sparse)
        if t not in (6, 12, 18):
            assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
            continue
        ended = t // 6 - 1
        assert int(new[ended].sum()) == budget[ended] and bool(old[ended].all())
        if ended < 2:
            assert bool(new[ended + 1].all()) and not params[ended + 1][~old[ended + 1]].any()


def test_what_must_end_is_refused_without_an_end_later_too() -> None:
    sparse = dstee.sparsify(nn.Linear(20, 10), 0.5, method="set")
    with pytest.raises(ValueError, match=r"GMP must reach its sparsity by the last mask update, but with .* no last one"):
        sparse.method = GMP()
    sparse.schedule = dstee.UpdateSchedule(every=2, stop=9)
    sparse.method = GMP()
    with pytest.raises(ValueError, match=r"GMP must reach its sparsity by the last mask update, but with .* there is none"):
        sparse.schedule = dstee.UpdateSchedule(every=10, stop=10)
    assert sparse.schedule.stop == 9
