"""The soft threshold: against its formula under autograd, finite differences, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dstee.methods.soft_threshold import LearnedThreshold, soft_threshold


def formula(weight: Tensor, logit: Tensor) -> Tensor:
    """As the paper writes it, with torch's own derivatives."""
    return weight.sign() * torch.relu(weight.abs() - torch.sigmoid(logit).to(weight.dtype))


def test_by_hand() -> None:
    weight = torch.tensor([-2.0, -0.5, -0.25, 0.0, 0.5, 0.75, float("nan")], requires_grad=True)
    logit = torch.zeros((), requires_grad=True)  # the threshold is 0.5
    out = soft_threshold(weight, logit)
    assert out[:6].tolist() == [-1.5, 0, 0, 0, 0, 0.25] and out[6].isnan()
    assert not torch.signbit(out[1:5]).any(), "no -0"
    out[:6].backward(torch.tensor([1.0, 2, 4, 8, 16, 32]))
    assert weight.grad is not None and logit.grad is not None
    assert weight.grad.tolist() == [1, 0, 0, 0, 0, 32, 0]
    assert logit.grad.item() == -0.25 * (32 - 1)


@pytest.mark.parametrize("logit", [-700.0, -3.0, 0.0, 2.0])
def test_finite_differences(logit: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(soft_threshold, (weight, torch.tensor(logit, dtype=torch.float64, requires_grad=True)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("logit", [-3200.0, -4.0, -1.0])
def test_the_formula_and_its_derivatives(dtype: torch.dtype, logit: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(31, 17, generator=generator).to(dtype)
    grad = torch.randn(31, 17, generator=generator).to(dtype)
    kind = torch.float64 if dtype is torch.float64 else torch.float32
    results = []
    for function in (soft_threshold, formula):
        w, s = weight.clone().requires_grad_(), torch.tensor(logit, dtype=kind, requires_grad=True)
        out = function(w, s)
        out.backward(grad)
        results.append((out.detach(), w.grad, s.grad))
    (out, by_weight, by_logit), (out2, by_weight2, by_logit2) = results
    assert torch.equal(out, out2) and torch.equal(by_weight, by_weight2)  # type: ignore[arg-type]
    assert by_logit is not None and by_logit.dtype is kind
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.05)  # the formula adds up in the weight's dtype
    torch.testing.assert_close(by_logit, by_logit2, rtol=tolerance, atol=tolerance)


def test_only_what_is_wanted_is_computed() -> None:
    weight, logit = torch.randn(3), torch.zeros(())
    w = weight.clone().requires_grad_()
    soft_threshold(w, logit).sum().backward()
    s = logit.clone().requires_grad_()
    soft_threshold(weight, s).sum().backward()
    assert w.grad is not None and s.grad is not None
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (first,) = torch.autograd.grad(soft_threshold(w, s).pow(2).sum(), w, create_graph=True)
        first.sum().backward()


def test_it_is_a_parametrization() -> None:
    layer = nn.Linear(4, 3)
    weight, values = layer.weight, layer.weight.detach().clone()
    threshold = LearnedThreshold(-1.0)
    parametrize.register_parametrization(layer, "weight", threshold)
    assert torch.equal(layer.weight, formula(values, torch.tensor(-1.0)))
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    assert layer.weight is weight and torch.equal(weight, values)
