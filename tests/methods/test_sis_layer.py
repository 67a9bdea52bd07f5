"""One layer of SIS: by hand, against the optimality conditions of what it solves, and against magnitudes alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dstee.methods.sis_layer import _Problem, _split, distance, sparsify_layer


def case(seed: int, out: int = 6, n: int = 10, samples: int = 40, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """A dense layer, correlated inputs, and what it gives before and after relu."""
    generator = torch.Generator().manual_seed(seed)
    double = {"generator": generator, "dtype": torch.float64}
    weight, bias = torch.randn(out, n, **double), torch.randn(out, **double)
    inputs = torch.randn(samples, n, **double) @ torch.randn(n, n, **double)
    before = inputs @ weight.T + bias
    return tuple(t.to(dtype) for t in (weight, bias, inputs, before, before.relu()))


def white(samples: int, n: int, seed: int) -> Tensor:
    """Inputs with orthonormal columns, scaled to mean square 1."""
    noise = torch.randn(samples, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(noise).Q * samples**0.5


def error(weight: Tensor, bias: Tensor, inputs: Tensor, outputs: Tensor, activation: Any) -> float:
    return float(distance(inputs @ weight.T, bias, outputs, activation).square().sum(1).mean().sqrt())


def test_the_distance_by_hand() -> None:
    products, outputs = torch.tensor([[3.0, 3.0, -1.0, 2.0]]), torch.tensor([[5.0, 0.0, 0.0, 0.0]])
    bias = torch.tensor([1.0, 1.0, 0.0, -2.0])
    assert distance(products, bias, outputs, "relu").tolist() == [[-1, 4, 0, 0]]
    assert distance(products, bias, outputs, "identity").tolist() == [[-1, 4, -1, 0]]


@pytest.mark.parametrize("penalty", ["l1", "l0"])
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_exactly_sparse_weights_come_back(penalty: Any, activation: Any) -> None:
    """Given dense weights that do the same on these inputs, orthogonal to each other but for one direction they lack."""
    inputs = white(60, 9, 1)
    inputs[:, 8] = 0  # what the weights have there does nothing
    generator = torch.Generator().manual_seed(2)
    sparse = torch.zeros(5, 9, dtype=torch.float64)
    for i in range(5):
        sparse[i, torch.randperm(8, generator=generator)[:3]] = torch.randn(3, generator=generator, dtype=torch.float64)
    bias = torch.full((5,), 0.5, dtype=torch.float64)
    outputs = inputs @ sparse.T + bias
    dense = sparse.clone()
    dense[:, 8] = 100.0
    kept = sparsify_layer(
        dense,
        bias,
        inputs,
        outputs.relu() if activation == "relu" else outputs,
        15,
        activation,
        penalty=penalty,
        iterations=200,
    )
    assert torch.equal(kept.mask, sparse != 0), "magnitudes would keep the last column"
    torch.testing.assert_close(kept.weight, sparse, rtol=1e-5, atol=1e-7)
    assert kept.eta < 1e-6


def test_with_white_inputs_the_penalty_is_soft_thresholding() -> None:
    """min lambda |W|_1 + |X W^T - X V^T|^2 / 2 with X^T X = s I: W = V shrunk by what leaves k of them."""
    inputs = white(30, 7, 3)
    weight = torch.randn(4, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    problem = _Problem(inputs, inputs @ weight.T, torch.zeros(4, dtype=torch.float64), "identity")
    level = weight.abs().flatten().sort().values[-12]
    torch.testing.assert_close(_split(problem, 11, "l1", 300), weight - weight.clamp(-level, level))
    best = sparsify_layer(weight, None, inputs, inputs @ weight.T, 11, "identity").weight
    torch.testing.assert_close(best, weight.where(weight.abs() > level, 0))


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_it_solves_the_penalised_problem(activation: Any) -> None:
    """Fermat's rule with the lambda that it found: the gradient is -lambda sign(w) at active weights, no larger elsewhere."""
    _, bias, inputs, before, after = case(5)
    problem = _Problem(inputs, after if activation == "relu" else before, bias, activation)
    weight = _split(problem, 25, "l1", 3000)
    active = weight != 0
    assert int(active.sum()) == 25
    gradient = problem.off(problem.inputs @ weight.T).T @ problem.inputs
    at_active = -(gradient * weight.sign())[active]
    assert at_active.mean() > 0
    torch.testing.assert_close(at_active, at_active.mean().expand(25), rtol=1e-5, atol=1e-8)
    assert gradient[~active].abs().max() <= at_active.mean() * (1 + 1e-5)


@pytest.mark.parametrize("penalty", ["l1", "l0"])
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_never_further_off_than_the_largest_weights(penalty: Any, activation: Any) -> None:
    gains = []
    for seed, k in itertools.product(range(4), (0, 1, 7, 30, 59, 60)):
        weight, bias, inputs, before, after = case(seed, samples=8 if seed % 2 else 40)
        outputs = after if activation == "relu" else before
        kept = sparsify_layer(weight, bias, inputs, outputs, k, activation, penalty=penalty)
        assert int(kept.mask.sum()) == k and not kept.weight[~kept.mask].any()
        assert kept.eta == pytest.approx(error(kept.weight, bias, inputs, outputs, activation), rel=1e-9, abs=1e-12)
        order = weight.abs().flatten().argsort(descending=True)
        largest = torch.zeros(60, dtype=torch.float64)
        largest[order[:k]] = weight.flatten()[order[:k]]
        limit = error(largest.view_as(weight), bias, inputs, outputs, activation)
        assert kept.eta <= limit + 1e-12
        gains.append(kept.eta / limit if 1 < k < 59 else 1)
    assert min(gains) < 0.3, "and much nearer where there is a choice"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_again_in_the_weights_dtype(dtype: torch.dtype) -> None:
    weight, bias, inputs, _, outputs = case(6, dtype=dtype)
    first, second = (sparsify_layer(weight, bias, inputs, outputs, 20) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and torch.equal(first.mask, second.mask) and first.eta == second.eta
    assert first.weight.dtype is dtype and int(first.mask.sum()) == 20


def test_without_inputs_the_largest_stay() -> None:
    weight, bias, inputs, _, _ = case(7)
    kept = sparsify_layer(weight, bias, torch.zeros_like(inputs), bias.relu().expand(40, 6), 9)
    assert kept.eta == 0 and set(kept.weight[kept.mask].abs().tolist()) == set(weight.abs().flatten().topk(9).values.tolist())


def test_what_does_not_fit_is_refused() -> None:
    weight, bias, inputs, _, outputs = case(9)
    for arguments, text in (
        ((weight[0], bias, inputs, outputs, 1), "weight must be a floating-point matrix"),
        ((weight, bias[:2], inputs, outputs, 1), r"bias is \[2\], expected \[6\]"),
        ((weight, bias, inputs[:0], outputs, 1), r"inputs are \[0, 10\], expected \[samples, 10\] with at least one"),
        ((weight, bias, inputs, outputs[:, :2], 1), r"outputs are \[40, 2\], expected \[40, 6\]"),
        ((weight, bias, inputs, outputs, 61), r"k must be in 0\.\.60, got 61"),
        ((weight, bias, inputs, outputs, True), r"k must be in 0\.\.60, got True"),
        ((weight, bias, inputs / 0, outputs, 1), "inputs must be finite"),
        ((weight, bias, inputs, outputs, 1, "gelu"), "activation must be 'relu' or 'identity', got 'gelu'"),
    ):
        with pytest.raises(ValueError, match=text):
            sparsify_layer(*arguments)
    for option, text in (({"penalty": "l2"}, "penalty must be"), ({"iterations": 0}, "iterations must be at least 1")):
        with pytest.raises(ValueError, match=text):
            sparsify_layer(weight, bias, inputs, outputs, 1, **option)
