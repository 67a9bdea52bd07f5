"""Propositions 1 and 2: the terms by pencil, the counts beside a plain loop, the closed form beside the engine."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from dstee.experiments.theory.convergence import bound_constant, limit_of_static, mean_of_static, mean_squares
from dstee.experiments.theory.inequality import FORMS, Terms, measure, violations
from dstee.experiments.theory.problems import PROBLEMS, RIDGE, Logistic, Quadratic, minimum
from dstee.experiments.theory.results import MethodResult
from dstee.experiments.theory.rounds import METHODS, Gradient, Round, first_masks, learning_rates, rounds

STATIC, SET, RIGL, DSTEE = METHODS
QUIET = Gradient(0.0, 1, [0])


@pytest.fixture(autouse=True)
def one_thread():
    """As the command has it: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(*numbers):
    """[1, 1, d]: one seed, one draw."""
    return torch.tensor([[numbers]], dtype=torch.float64)


def quadratic(diagonal, optimum, start):
    hessian = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    return Quadratic(hessian[None], torch.tensor([optimum], dtype=torch.float64), torch.tensor([start], dtype=torch.float32))


# --- by pencil -----------------------------------------------------------------------------------------------------------


def test_terms_of_one_round_by_pencil():
    """F = (w1 - 1)^2 / 2 + (w2 - 2)^2 / 4, so L = 1; two steps of alpha = 1/32; w1 = 1/2 is dropped for w2."""
    problem = quadratic([1.0, 0.5], [1.0, 2.0], [0.5, 0.0])
    one = Round(rows(0.5, 0.0), rows(0, 1).bool(), rows(0.0, 127 / 2048))  # w2: 0, 1/32, 1/32 - (1/32 - 2) / 64
    found = measure(problem, [one], torch.tensor([1 / 32]).double(), every=2, sigma=3.0)
    before, dropped, after = 1 / 8 + 1, 1 / 2 + 1, 1 / 2 + (2 - 127 / 2048) ** 2 / 4
    expected = {
        "change": after - before,
        "full": (1 / 4 + 1) / 192,  # the gradient is (-1/2, -1); alpha dT / 12 = 1/192
        "masked": 1 / 192,
        "kept": 1 / 192,  # it is (-1, -1) after the drop
        "noise": 9 / 32**2 * 4 / 2,
        "tau2": 1.0,
        "tau_factor": 2 / 32 * 4 / 3 / 4,
        "drop_loss": dropped - before,
    }
    for name, value in expected.items():
        assert getattr(found, name).shape == (1, 1, 1)
        assert getattr(found, name).item() == pytest.approx(value, rel=1e-14), name
    assert 0 < found.rounding.item() < 1e-6
    excess = {key: found.excess(form).item() for key, form in FORMS.items()}
    assert excess["printed"] == pytest.approx(after - before + 1.25 / 192 - 18 / 1024 - 1 / 48, rel=1e-12)
    assert excess["masked_gradient"] == pytest.approx(excess["printed"] - 0.25 / 192, rel=1e-12)
    assert excess["corrected"] == pytest.approx(after - dropped + 1 / 192 - 18 / 1024, rel=1e-12)


def test_rounds_of_rigl_by_pencil():
    """H = 1, two of three weights active, one step of 1/16 a round: the smaller goes, the largest gradient comes."""
    problem = quadratic([1.0, 1.0, 1.0], [1.0, 0.0, 8.0], [1.0, 0.25, 5.0])
    lr = learning_rates(problem, 1)
    assert lr.tolist() == [1 / 16]
    made = list(rounds(problem, RIGL, torch.tensor([[True, True, False]]), lr, 1, 2, QUIET))
    first, second = made
    assert first.before.tolist() == first.masked.tolist() == [[[1.0, 0.25, 0.0]]]
    assert first.after.tolist() == second.before.tolist() == [[[1.0, 0.25 - 1 / 64, 0.0]]]
    assert second.mask.tolist() == [[[True, False, True]]] and second.masked.tolist() == [[[1.0, 0.0, 0.0]]]
    assert second.after.tolist() == [[[1.0, 0.0, 0.5]]]


def test_weights_of_zero_have_no_mask_incurred_error():
    problem = quadratic([1.0, 1.0], [1.0, 1.0], [0.0, 0.0])
    found = measure(problem, rounds(problem, STATIC, torch.tensor([[True, False]]), learning_rates(problem, 3), 3, 2, QUIET),
                    learning_rates(problem, 3), 3, 0.0)  # fmt: skip
    assert found.tau2.tolist() == [[[0.0]], [[0.0]]]


# --- beside a plain loop -------------------------------------------------------------------------------------------------


def plain_excesses(f, g, w, mask, smooth, every, count, rigl):
    """The left sides less the right ones, by form, in numpy and float64; w is masked already."""
    lr = float(np.float32(1 / (16 * smooth * every)))
    found = {key: [] for key in ("printed", "masked_gradient", "corrected")}
    for _ in range(count):
        before = w
        if rigl and found["printed"]:
            k = int(np.ceil(0.3 * mask.sum()))
            drop = sorted(np.flatnonzero(mask), key=lambda i: abs(w[i]))[:k]
            mask = mask.copy()
            mask[drop] = False
            grow = sorted(np.flatnonzero(~mask), key=lambda i: -abs(last[i]))[:k]
            mask[grow] = True
        start = w = before * mask
        for _ in range(every):
            last = g(w)
            w = w - lr * last * mask
        factor, error = lr * every / 12, 2 * lr * smooth**2 * every**2 / 3 * ((before - start) ** 2).sum()
        change = f(w) - f(before)
        found["printed"].append(change + factor * (g(before) ** 2).sum() - error)
        found["masked_gradient"].append(change + factor * ((g(before) * mask) ** 2).sum() - error)
        found["corrected"].append(change + factor * ((g(start) * mask) ** 2).sum() - max(f(start) - f(before), 0))
    return {key: np.array(values) for key, values in found.items()}


@pytest.mark.parametrize("method", [STATIC, RIGL], ids=["static", "rigl"])
@pytest.mark.parametrize("kind", ["quadratic", "logistic"])
def test_excess_and_violations_are_those_of_a_plain_loop(kind, method):
    random = np.random.default_rng(5)
    dim, every, count = 12, 4, 70
    start, mask = (0.1 * random.normal(size=dim)).astype(np.float32), np.arange(dim) % 3 == 0
    if kind == "quadratic":
        a = random.normal(size=(dim, 8 * dim))
        h, optimum = a @ a.T / dim, random.normal(size=dim)
        problem = Quadratic(torch.from_numpy(h)[None], torch.from_numpy(optimum)[None], torch.from_numpy(start)[None])
        smooth = np.linalg.norm(h, 2)

        def f(w):
            return (w - optimum) @ h @ (w - optimum) / 2

        def g(w):
            return h @ (w - optimum)
    else:
        x = random.normal(size=(30, dim))
        y = np.sign(x.sum(1) + random.normal(size=30))
        problem = Logistic(torch.from_numpy(x)[None], torch.from_numpy(y)[None], torch.from_numpy(start)[None])
        smooth = np.linalg.norm(x, 2) ** 2 / 30 / 4 + RIDGE

        def f(w):
            return np.log1p(np.exp(-y * (x @ w))).mean() + RIDGE / 2 * w @ w

        def g(w):
            return -(y / (1 + np.exp(y * (x @ w)))) @ x / 30 + RIDGE * w

    assert problem.smoothness.item() == pytest.approx(smooth, rel=1e-12)
    lr = learning_rates(problem, every)
    made = rounds(problem, method, torch.from_numpy(mask)[None], lr, every, count, QUIET)
    terms = measure(problem, made, lr, every, 0.0)
    expected = plain_excesses(f, g, start * mask.astype(float), mask, smooth, every, count, method is RIGL)
    for key, values in expected.items():
        found = terms.excess(FORMS[key])[:, 0, 0].numpy()
        np.testing.assert_allclose(found, values, atol=2e-6 * abs(f(start)))
        assert violations(terms, FORMS[key]).shown.sum() == (values > 0).sum(), key
    assert (expected["printed"] > 0).any() and not (expected["corrected"] > 0).any()


# --- counting ------------------------------------------------------------------------------------------------------------


def holding(draws=1, spread=0.0):
    """Terms of 5 rounds and 3 seeds that violate nothing."""
    terms = Terms(*torch.zeros(9, 5, 3, draws, dtype=torch.float64).unbind())
    terms.change.add_(-1 + spread * torch.linspace(-1, 1, draws).double() if draws > 1 else -1)
    terms.rounding.fill_(1e-6)
    return terms


def test_planted_violations_are_counted():
    terms = holding()
    terms.change[1, 2] = 0.25
    terms.change[4, 0] = 2e-6
    terms.change[3, 1] = 0.5e-6  # rounding may have made it
    for form in FORMS.values():
        found = violations(terms, form)
        assert found.shown.nonzero().tolist() == [[1, 2], [4, 0]] and not found.unclear.any()
    terms.drop_loss[1, 2] = 0.5
    assert violations(terms, FORMS["corrected"]).shown.nonzero().tolist() == [[4, 0]]


def test_one_tau_is_the_largest_of_all_rounds_of_a_seed():
    terms = dataclasses.replace(holding(), tau_factor=torch.ones(5, 3, 1).double())
    terms.tau2[0, 1] = 0.5
    terms.change[:, 1:] = 0.25
    assert violations(terms, FORMS["printed"]).shown.sum(0).tolist() == [0, 4, 5]
    assert violations(terms, FORMS["one_tau"]).shown.sum(0).tolist() == [0, 0, 5]


def test_draws_give_an_interval():
    """Mean and deviation by hand: draws at m - s, m and m + s have the half width 4.303 s / sqrt(3) = 2.484 s."""
    terms = holding(3, 0.1)
    assert not violations(terms, FORMS["printed"]).shown.any() and not violations(terms, FORMS["printed"]).unclear.any()
    terms.change[0, 0] += 1.26  # 0.26 +- 0.2484
    terms.change[0, 1] += 1.24  # 0.24 +- 0.2484
    terms.change[0, 2] += 0.76  # -0.24 +- 0.2484
    terms.change[1, 0] += 0.74
    found = violations(terms, FORMS["printed"])
    assert found.shown.nonzero().tolist() == [[0, 0]] and found.unclear.nonzero().tolist() == [[0, 1], [0, 2]]


def test_bound_says_where_dropping_costs_more_than_the_tau_term():
    terms = dataclasses.replace(holding(), tau_factor=torch.full((5, 3, 1), 2.0).double())
    terms.tau2[2] = 0.25
    terms.drop_loss[2, 0], terms.drop_loss[2, 1], terms.drop_loss[4, 1] = 0.4, 0.7, 0.1
    bound = MethodResult(RIGL, terms, {}).bound()
    assert bound.tau.tolist() == [0, 0, 0.5, 0, 0] and bound.tau_term.tolist() == [0, 0, 0.5, 0, 0]
    assert bound.drop_loss.tolist() == pytest.approx([0, 0, 1.1 / 3, 0, 0.1 / 3])
    assert bound.uncovered.tolist() == pytest.approx([0, 0, 1 / 3, 0, 1 / 3])


# --- problems and Proposition 2 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROBLEMS)
def test_gradient_hessian_and_smoothness(kind):
    problem = PROBLEMS[kind].random([0, 1, 7], 9, 5.0)
    torch.testing.assert_close(problem.smoothness, torch.ones(3).double())
    w = torch.randn(3, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (by_autograd,) = torch.autograd.grad(problem.loss(w).sum(), w)
    torch.testing.assert_close(problem.gradient(w.detach()), by_autograd)
    for i in range(3):
        hessian = torch.autograd.functional.hessian(lambda v, i=i: problem.loss(v.expand(3, 1, 9))[i, 0], w[i, 0].detach())
        torch.testing.assert_close(problem.hessian(i, w[i, 0].detach()), hessian)
        assert torch.linalg.eigvalsh(hessian)[-1] <= 1 + 1e-12
    alone = PROBLEMS[kind].random([7], 9, 5.0)
    assert torch.equal(alone.start[0], problem.start[2])


@pytest.mark.parametrize("kind", PROBLEMS)
def test_minimum_within_masks_has_no_gradient_there(kind):
    problem = PROBLEMS[kind].random([0, 1], 9, 100.0)
    masks = first_masks(9, 0.4, [0, 1])
    found = minimum(problem, masks)
    assert not found[~masks].any() and found[masks].all()
    gradient = problem.gradient(found[:, None])[:, 0]
    assert gradient[masks].abs().max() < 1e-11 and (gradient[~masks].abs() > 1e-6).all()
    torch.testing.assert_close(limit_of_static(problem, masks), gradient.square().sum(1))
    start = problem.loss((problem.start.double() * masks)[:, None])[:, 0]
    assert (bound_constant(problem, masks, 2.0) > 192 * (start - problem.loss(found[:, None])[:, 0])).all()


def test_closed_form_of_a_static_mask_is_what_the_engine_steps():
    seeds = [0, 1, 2]
    problem, masks = Quadratic.random(seeds, 20, 10.0), first_masks(20, 0.3, seeds)
    for count in (1, 4, 30):
        lr = learning_rates(problem, 5, count)
        means = mean_squares(problem, rounds(problem, STATIC, masks, lr, 5, count, Gradient(0.0, 1, seeds)))
        full, masked = mean_of_static(problem, masks, 5, count)
        torch.testing.assert_close(means.full, full, rtol=1e-5, atol=0)
        torch.testing.assert_close(means.masked, masked, rtol=1e-5, atol=0)
        assert not means.tau_term.any()
    full, masked = mean_of_static(problem, masks, 5, 10**12)
    torch.testing.assert_close(full, limit_of_static(problem, masks), rtol=1e-3, atol=0)
    assert (full > bound_constant(problem, masks, 0.0) / 10**6).all() and masked.max() < 1e-4


def test_noise_has_the_given_size_and_is_the_same_for_each_method():
    problem = Quadratic.random([0, 1], 10, 10.0)
    gradient = Gradient(3.0, 4000, [0, 1])
    w = problem.start.double()[:, None].expand(2, 4000, 10)
    noise = gradient(problem, w, gradient.generators()) - problem.gradient(w)
    assert noise.square().sum(-1).mean(1).tolist() == pytest.approx([9, 9], rel=0.05)
    assert noise.mean(1).abs().max() < 0.07 and not torch.equal(noise[0], noise[1])
    assert torch.equal(noise, gradient(problem, w, gradient.generators()) - problem.gradient(w))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.key)
def test_rounds_keep_the_density_and_what_is_outside_is_zero(method):
    seeds = [0, 1]
    problem, masks = Quadratic.random(seeds, 20, 10.0), first_masks(20, 0.25, seeds)
    made = list(rounds(problem, method, masks, learning_rates(problem, 3), 3, 6, Gradient(0.5, 3, seeds)))
    assert torch.equal(made[0].mask, masks[:, None].expand(2, 3, 20))
    for one, following in itertools.pairwise(made):
        assert (one.mask.sum(-1) == 5).all() and not one.after[~one.mask].any()
        assert torch.equal(one.after, following.before)
        assert torch.equal(one.mask, following.mask) or method.updates
    assert torch.equal(made[-1].mask, made[0].mask) is not method.updates
    assert not torch.equal(made[-1].after[:, 0], made[-1].after[:, 1])  # draws differ
