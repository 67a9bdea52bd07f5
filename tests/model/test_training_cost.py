"""The cost of a training whose density changes, against sums by hand."""

from dataclasses import dataclass

import pytest
import torch

import dstee
from dstee import metrics
from dstee.methods import METHODS, SET, Method, Project, RigL, Static
from dstee.schedule import UpdateSchedule
from dstee.training_cost import TrainingCost

SIZES = {"0.weight": 6 * 5, "2.weight": 5 * 4}


def trained(method, steps, every=3, sparsity=0.5):
    """A training with its cost, and the active weights before each step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4))
    sparse = dstee.sparsify(model, sparsity, method=method, schedule=UpdateSchedule(every, stop=steps + 1))
    optimizer = dstee.SparseSGD(model.named_parameters(), sparse, lr=0.1)
    cost, seen = TrainingCost(sparse), []
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.randn(8, 6)), torch.arange(8) % 4).backward()
        before = cost.nnz_of(sparse)
        cost.add(before, cost.needs_dense_gradient(sparse, sparse.step(optimizer)))
        seen.append(before)
    return sparse, cost, seen


@dataclass(frozen=True)
class Halving(Method):
    """Starts dense; each update halves every layer, and reads the dense gradient."""

    name = "halving"
    key = "test-halving"
    needs_gradients = True
    starts_denser = moves_budgets = True

    def start(self, s):
        return s.dense_masks()

    def total(self, u):
        return sum(n // 2 for n in u.nnz.tolist())

    def plan(self, u):
        return [Project([n // 2 for n in u.nnz.tolist()])]


def test_a_density_that_falls_by_hand():
    sparse, cost, seen = trained(Halving(), 7)
    assert [sum(nnz.values()) for nnz in seen] == [50, 50, 50, 25, 25, 25, 12]
    assert cost.mean_density() == (3 * 50 + 3 * 25 + 12) / (7 * 50)
    assert (cost.steps, cost.dense_steps) == (7, 2)
    flops = cost.flops(sparse, torch.zeros(1, 6))
    forwards = [2 * sum(nnz.values()) for nnz in seen]  # each weight is used once, two FLOPs
    expected = sum(3 * f for f in forwards) + sum(100 - forwards[i] for i in (2, 5))
    assert flops.sparse_training == expected / 7
    assert (flops.dense_inference, flops.sparse_inference, flops.dense_training) == (100, 24, 300)


@pytest.mark.parametrize("method", [RigL(), SET(), Static(), RigL(order="after")])
def test_one_density_costs_what_the_formula_says(method):
    sparse, cost, _ = trained(method, 11)
    assert cost.mean_density() == metrics.density(sparse)
    assert cost.flops(sparse, torch.zeros(1, 6)) == metrics.flops(sparse, torch.zeros(1, 6), steps=11)


def test_every_gradient_dense():
    sparse, cost, seen = trained(METHODS["snfs"](), 9)
    mean = sum(2 * sum(nnz.values()) for nnz in seen) / 9
    assert cost.flops(sparse, torch.zeros(1, 6)).sparse_training == pytest.approx(2 * mean + 100)
    assert cost.dense_steps == 9


def test_the_state_goes_on():
    _, cost, _ = trained(Halving(), 5)
    other = TrainingCost(SIZES)
    other.load_state_dict(cost.state_dict())
    for one in (cost, other):
        one.add({"0.weight": 3, "2.weight": 1}, True)
    assert other.state_dict() == cost.state_dict() and other.mean_density() == cost.mean_density()


@pytest.mark.parametrize(
    "change",
    [
        {"steps": -1}, {"dense_steps": 3}, {"active": {"0.weight": 1}}, {"active": {"0.weight": 61, "2.weight": 0}},
        {"active_if_dense": {"0.weight": 31, "2.weight": 0}}, {"active": None}, {"steps": True}, {"more": 1},
    ],
)  # fmt: skip
def test_an_impossible_state_is_refused(change):
    cost = TrainingCost(SIZES)
    good = {
        "steps": 2, "dense_steps": 1,
        "active": {"0.weight": 60, "2.weight": 0}, "active_if_dense": {"0.weight": 30, "2.weight": 0},
    }  # fmt: skip
    with pytest.raises(ValueError, match="cost"):
        cost.load_state_dict({**good, **change})
    assert cost.steps == 0
    cost.load_state_dict(good)
    assert cost.mean_density() == 60 / 100


def test_what_has_no_mean_and_other_layers():
    cost = TrainingCost(SIZES)
    with pytest.raises(ValueError, match="no step"):
        cost.mean_density()
    with pytest.raises(ValueError, match=r"expected active weights of 0.weight, 2.weight, got them of a"):
        cost.add({"a": 1}, False)


@pytest.mark.parametrize(
    ("key", "bounded"), [("set", True), ("rigl", True), ("dst-ee", True), ("deepr", False), ("mest", False)]
)
def test_only_swaps_by_the_schedule_bound_exploration(key, bounded):
    sparse, _, _ = trained(METHODS[key](), 4)
    assert sparse.method.is_bounded is bounded
    limit = metrics.exploration_limit(sparse).total
    assert limit < 1 if bounded else limit == 1


def test_steps_with_an_update():
    schedule = UpdateSchedule(4, stop=9)
    assert list(RigL().update_steps(schedule, 100)) == [4, 8] and list(RigL().update_steps(schedule, 7)) == [4]
    assert list(Static().update_steps(schedule, 100)) == []
    assert METHODS["deepr"]().update_steps(schedule, 100) == [1, 2, 3, 4, 5, 6, 7, 8]
