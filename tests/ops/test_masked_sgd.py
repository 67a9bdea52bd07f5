"""masked_sgd_ on every backend: hand-worked steps, the oracle on random and hostile steps, rounding, what stays untouched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support import oracle, random_cases

from dstee import encoding, ops
from dstee.ops import SGDRule
from dstee.testing import DTYPES, Case, Configuration, assert_same_bits, make_case

CHUNK = 63
SEEDS = 504


@functools.cache
def expected(seed: int) -> list[oracle.Layer]:
    return oracle.masked_sgd(random_cases.step(seed))


def check(seed: int) -> None:
    case = random_cases.step(seed)
    run = case.clone()
    run.masked_sgd_()
    oracle.assert_layers(run, expected(seed), updates=0)
    run.assert_margins()
    assert_same_bits(run.grads, case.grads, f"grads of {case.description}")


@pytest.mark.parametrize("start", range(0, SEEDS, CHUNK))
def test_random_steps_match_the_oracle(backend: Configuration, start: int) -> None:
    for seed in range(start, start + CHUNK):
        check(seed)


@pytest.mark.parametrize("start", range(0, SEEDS, 252))
def test_threads_match_the_oracle(detour: Configuration, start: int) -> None:
    for seed in range(start, start + 252, 6):
        check(seed)


# w = 1, g = 1/2, m = 2, lr = 1/2; every number below is exact, so that a reader can follow with a pencil.
HAND_WORKED = {
    "plain: w = 1 - 1/2 * 1/2": (SGDRule(0.5), None, 0.75, 2.0),
    "weight decay: d = 1/2 + 1/4 * 1 = 3/4": (SGDRule(0.5, weight_decay=0.25), None, 0.625, 2.0),
    "momentum: m = 1/2 * 2 + 1/2 = 3/2": (SGDRule(0.5, 0.5), None, 0.25, 1.5),
    "dampening: m = 1/2 * 2 + 1/2 * 1/2 = 5/4": (SGDRule(0.5, 0.5, 0.5), None, 0.375, 1.25),
    "decay, momentum, dampening: m = 1 + 1/2 * 3/4": (SGDRule(0.5, 0.5, 0.5, 0.25), None, 0.3125, 1.375),
    "nesterov: m = 3/2, u = 1/2 + 1/2 * 3/2 = 5/4": (SGDRule(0.5, 0.5, nesterov=True), None, 0.375, 1.5),
    "maximize: d = -1/2, m = 1/2": (SGDRule(0.5, 0.5, maximize=True), None, 0.75, 0.5),
    "maximize leaves the decay: d = -1/2 + 1/4": (SGDRule(0.5, weight_decay=0.25, maximize=True), None, 1.125, 2.0),
    "first step: m = d, no dampening": (SGDRule(0.5, 0.5, 0.5, first_step=True), None, 0.75, 0.5),
    "first step, nesterov: u = 1/2 + 1/2 * 1/2": (SGDRule(0.5, 0.5, nesterov=True, first_step=True), None, 0.625, 0.5),
    "grad_scale: g = 1/2 / 2": (SGDRule(0.5, 0.5), 2.0, 0.375, 1.25),
    "a scaled gradient, then decay: d = 1/4 + 1/4": (SGDRule(0.5, weight_decay=0.25), 2.0, 0.75, 2.0),
    "lr in a tensor": (SGDRule(torch.tensor(0.5), 0.5), None, 0.25, 1.5),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", HAND_WORKED, ids=str)
def test_hand_worked_steps(backend: Configuration, rule: str, dtype: torch.dtype) -> None:
    sgd, scale, w_after, m_after = HAND_WORKED[rule]
    mask = torch.tensor([True, False] * 33)  # vectors and a tail
    case = one_layer(mask.to(dtype), torch.full((66,), 0.5, dtype=dtype), 2 * mask.to(dtype), mask, sgd)
    if scale is not None:
        case.grad_scale = torch.tensor(scale)
    case.masked_sgd_()
    assert case.momenta is not None
    assert_same_bits(case.params[0], w_after * mask.to(dtype), "w")
    assert_same_bits(case.momenta[0], m_after * mask.to(dtype), "m")


def one_layer(w: torch.Tensor, g: torch.Tensor, m: torch.Tensor, mask: torch.Tensor, rule: SGDRule) -> Case:
    none = torch.zeros(mask.numel(), dtype=torch.int32)
    return Case("by hand", [w], [g], [m], [encoding.pack_bits(mask)], None, [none], [0], sgd=rule)


def test_products_are_rounded_before_they_are_added(backend: Configuration) -> None:
    """Where each sum cancels the rounded product exactly, a fused multiply-add would leave the rounding error."""
    n, mask = 67, torch.ones(67, dtype=torch.bool)
    full = functools.partial(torch.full, (n,), dtype=torch.float32)
    lr, decay = 0.1, 0.3
    u = full(0.7)
    w = full(float(np.float32(lr) * np.float32(0.7)))
    assert float(w[0]) != lr * float(u[0]), "the product must be inexact for this to tell anything"
    case = one_layer(w, u, full(0.0), mask, SGDRule(lr))
    case.masked_sgd_()
    assert_same_bits(case.params[0], full(0.0), "w - lr*u")

    w = full(0.7)
    g = full(-float(np.float32(decay) * np.float32(0.7)))
    case = one_layer(w.clone(), g, full(5.0), mask, SGDRule(1.0, 0.9, weight_decay=decay, first_step=True))
    case.masked_sgd_()
    assert case.momenta is not None
    assert_same_bits(case.momenta[0], full(0.0), "d = g + weight_decay*w")

    m = full(0.7)
    g = full(-float(np.float32(decay) * np.float32(0.7)))
    case = one_layer(full(1.0), g, m, mask, SGDRule(1.0, momentum=decay))
    case.masked_sgd_()
    assert case.momenta is not None
    assert_same_bits(case.momenta[0], full(0.0), "m = momentum*m + d")


def test_half_precision_is_rounded_once_on_store(backend: Configuration) -> None:
    """The weight moves by the float32 momentum, not by the one rounded to bfloat16."""
    n = 37
    full = functools.partial(torch.full, (n,), dtype=torch.bfloat16)
    case = one_layer(full(1.0), full(2.0**-8), full(1.0), torch.ones(n, dtype=torch.bool), SGDRule(1.0, momentum=1.0))
    case.masked_sgd_()  # m = 1 + 2^-8 lies between two bfloat16 numbers; w = 1 - (1 + 2^-8) = -2^-8
    assert case.momenta is not None
    assert_same_bits(case.momenta[0], full(1.0), "m")
    assert_same_bits(case.params[0], full(-(2.0**-8)), "w")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 8, 31, 1025, 40009])
def test_inactive_positions_keep_their_bits(backend: Configuration, dtype: torch.dtype, n: int) -> None:
    """Nothing is assumed of what lies outside the mask: neither NaN gradients nor old weights there matter."""
    case = make_case(n, [n], dtype=dtype, density=0.2, sgd=SGDRule(0.1, 0.9, weight_decay=0.1))
    (mask,), (w,), grads, momenta = case.masks(), case.params, case.grads, case.momenta
    assert grads is not None and momenta is not None
    clean = case.clone()
    clean.masked_sgd_()
    grads[0][~mask] = float("nan")
    w[~mask] = -0.0
    momenta[0][~mask] = 3.5
    case.masked_sgd_()
    assert clean.momenta is not None
    assert_same_bits(w, torch.where(mask, clean.params[0], torch.tensor(-0.0, dtype=dtype)), "params[0]")
    assert_same_bits(momenta[0], torch.where(mask, clean.momenta[0], torch.tensor(3.5, dtype=dtype)), "momenta[0]")


def test_momenta_are_left_alone_without_momentum(backend: Configuration) -> None:
    case = make_case(1, [100, 33], sgd=SGDRule(0.1))
    run = case.clone()
    run.masked_sgd_()
    assert_same_bits(run.momenta, case.momenta, "momenta")
    without = replace(case.clone(), momenta=None)
    without.masked_sgd_()
    assert_same_bits(without.params, run.params, "params")


def test_parameters_that_require_grad(backend: Configuration) -> None:
    """Leaves of autograd are written in place, and the write is not recorded."""
    w = torch.nn.Parameter(torch.ones(20))
    ops.masked_sgd_([w], [torch.ones(20)], None, [ALL_20], lr=0.25)
    assert_same_bits(w.detach(), torch.full((20,), 0.75), "w")
    assert w.is_leaf and w.grad_fn is None


ALL_20 = encoding.pack_bits(torch.ones(20, dtype=torch.bool))
NONE_YET: dict[str, Any] = dict(bonus=None, round=0)


@pytest.mark.parametrize(
    "write",
    [
        lambda w: ops.masked_sgd_([w], [torch.ones(20)], None, [ALL_20.clone()], lr=0.25),
        lambda w: ops.drop_grow_([w], [torch.ones(20)], None, [ALL_20.clone()], None, [3], reset_regrown=True, **NONE_YET),
    ],
    ids=["masked_sgd_", "drop_grow_"],
)
def test_autograd_notices_the_write(backend: Configuration, write: Callable[[torch.Tensor], None]) -> None:
    """A backward pass that saved the weight before the step must fail, not use the new weight without a word."""
    w = torch.nn.Parameter(torch.arange(1.0, 21))
    loss = (w * w).sum()
    write(w)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_tensors(backend: Configuration) -> None:
    with torch.inference_mode():
        w, m = torch.ones(20), torch.zeros(20)
        ops.masked_sgd_(
            [w], [torch.ones(20)], [m], [encoding.pack_bits(torch.ones(20, dtype=torch.bool))], lr=0.25, momentum=0.5
        )
        assert_same_bits(w, torch.full((20,), 0.75), "w")


def test_an_empty_layer_first(backend: Configuration) -> None:
    """It has no memory, which must not be taken for an absent list."""
    case = make_case(2, [0, 40, 0], sgd=SGDRule(0.1, 0.9), round=1)
    for call, layers in ((Case.masked_sgd_, oracle.masked_sgd(case)), (Case.drop_grow_, oracle.drop_grow(case))):
        run = case.clone()
        call(run)
        oracle.assert_layers(run, layers, updates=2 if call is Case.drop_grow_ else 1)


def test_an_empty_list_is_no_work(backend: Configuration) -> None:
    ops.masked_sgd_([], [], None, [], lr=0.1)


def test_the_rule_may_be_given_whole_or_by_its_fields(backend: Configuration) -> None:
    def stepped(**rule: Any) -> list[torch.Tensor]:
        w, m = torch.arange(1.0, 21.0), torch.ones(20)
        bits = encoding.pack_bits(torch.arange(20) % 3 == 0)
        ops.masked_sgd_([w], [torch.ones(20)], [m], [bits], **rule)
        return [w, m]

    fields = dict(lr=0.25, momentum=0.5, dampening=0.125, weight_decay=0.1, maximize=True)
    assert_same_bits(stepped(sgd=ops.SGDRule(**fields)), stepped(**fields), "weights and momenta")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({}, "masked_sgd_ needs lr, or the whole rule"),
        ({"momentum": 0.5}, "masked_sgd_ needs lr, or the whole rule"),
        ({"sgd": ops.SGDRule(0.1), "lr": 0.1}, "masked_sgd_ got sgd and fields of it"),
        ({"sgd": ops.SGDRule(0.1), "nesterov": True}, "masked_sgd_ got sgd and fields of it"),
    ],
)
def test_half_a_rule_is_refused(rule: dict[str, Any], text: str) -> None:
    w = torch.ones(20)
    with pytest.raises(TypeError, match=text):
        ops.masked_sgd_([w], [torch.ones(20)], [torch.ones(20)], [encoding.pack_bits(w.bool())], **rule)
    assert_same_bits(w, torch.ones(20), "weights")
