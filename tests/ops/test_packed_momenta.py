"""packed_momenta: steps and updates whose momenta are those of the active weights alone leave the bits of all the others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support import oracle, random_cases
from support.packed_cases import assert_packed, can_be_packed, packed
from torch import Tensor

from dstee import backends, encoding, ops
from dstee.backends import native, triton
from dstee.ops import SGDRule
from dstee.testing import DTYPES, LARGE_SIZES, SIZES, Case, Configuration, assert_same_bits, make_case, values

STEP = pytest.mark.op("masked_sgd_", "packed_momenta")
UPDATE = pytest.mark.op("drop_grow_", "packed_momenta")


def bits(mask: str) -> Tensor:
    """First weight first."""
    return encoding.pack_bits(torch.tensor([c == "1" for c in mask]))


# --- by hand -------------------------------------------------------------------------------------------------------------

# w = 1, g = 1/2 everywhere, momenta 2, 4, 8 in the order of the mask, lr = momentum = 1/2: m = m/2 + 1/2, w = 1 - m/2.
HAND_WORKED = {
    "three of nine": ("010001001", [2, 4, 8], [1.5, 2.5, 4.5], {1: 0.25, 5: -0.25, 8: -1.25}),
    "the first alone": ("100000000", [2], [1.5], {0: 0.25}),
    "the last alone": ("000000001", [4], [2.5], {8: -0.25}),
    "none": ("000000000", [], [], {}),
    "all of two": ("11", [2, 8], [1.5, 4.5], {0: 0.25, 1: -1.25}),
    "one weight": ("1", [4], [2.5], {0: -0.25}),
}


@STEP
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", HAND_WORKED)
def test_hand_worked_steps(backend: Configuration, name: str, dtype: torch.dtype) -> None:
    mask, momenta, momenta_after, weights_after = HAND_WORKED[name]
    w, m = torch.ones(len(mask), dtype=dtype), torch.tensor(momenta, dtype=dtype)
    g, expected = torch.full_like(w, 0.5), torch.ones_like(w)
    for i, value in weights_after.items():
        expected[i] = value
    ops.masked_sgd_([w], [g], [m], [bits(mask)], lr=0.5, momentum=0.5, packed_momenta=True)
    assert_same_bits(w, expected, "weights")
    assert_same_bits(m, torch.tensor(momenta_after, dtype=dtype), "momenta")


# Under mask 11010010: |w| says who goes, |g| who comes; momenta of weights 0, 1, 3, 6.
W = [0.5, -0.25, 0, 1, 0, 0, -2, 0]
UPDATES: dict[str, tuple[list[float], int, dict[str, Any], str, list[float]]] = {
    "0 and 1 go, 5 and 4 come": ([0, 0, 1, 0, 3, -5, 0, 2], 2, {}, "00011110", [30, 0, 0, 60]),
    "0 comes back and keeps its own": ([9, 0, 1, 0, 3, -5, 0, 2], 2, {}, "10010110", [10, 30, 0, 60]),
    "0 comes back to nothing": ([9, 0, 1, 0, 3, -5, 0, 2], 2, {"reset_regrown": True}, "10010110", [0, 30, 0, 60]),
    "the dropped are no candidates": ([9, 9, 1, 0, 3, -5, 0, 2], 2, {"regrow": False}, "00011110", [30, 0, 0, 60]),
    "nothing moves": ([9] * 8, 0, {}, "11010010", [10, 20, 30, 60]),
    "all go, four others come": ([0, 0, 5, 0, 5, 5, 0, 5], 4, {}, "00101101", [0, 0, 0, 0]),
    "found_inf": ([0, 0, 1, 0, 3, -5, 0, 2], 2, {"found_inf": torch.ones(1)}, "11010010", [10, 20, 30, 60]),
}


@UPDATE
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UPDATES)
def test_hand_worked_updates(backend: Configuration, name: str, dtype: torch.dtype) -> None:
    g, k, options, mask_after, momenta_after = UPDATES[name]
    mask_bits, m = bits("11010010"), torch.tensor([10.0, 20, 30, 60], dtype=dtype)
    w, gradient = torch.tensor(W, dtype=dtype), torch.tensor(g, dtype=dtype)
    ops.drop_grow_([w], [gradient], [m], [mask_bits], None, [k], bonus=None, round=0, packed_momenta=True, **options)
    assert_same_bits(mask_bits, bits(mask_after), "mask")
    assert_same_bits(m, torch.tensor(momenta_after, dtype=dtype), "momenta")


# --- against momenta at all positions ------------------------------------------------------------------------------------


@functools.cache
def stepped(seed: int) -> list[oracle.Layer]:
    return oracle.masked_sgd(random_cases.step(seed))


def check_step(seed: int) -> None:
    case = random_cases.step(seed)
    if not can_be_packed(case):
        return
    run = packed(case)
    run.masked_sgd_()
    assert_packed(run, stepped(seed), updates=0)


@STEP
@pytest.mark.parametrize("start", range(0, 504, 63))
def test_random_steps_match_the_oracle(backend: Configuration, start: int) -> None:
    for seed in range(start, start + 63):
        check_step(seed)


@STEP
@pytest.mark.parametrize("start", range(0, 504, 252))
def test_random_steps_on_threads(detour: Configuration, start: int) -> None:
    for seed in range(start, start + 252, 6):
        check_step(seed)


@functools.cache
def updated(seed: int) -> list[oracle.Layer]:
    return oracle.drop_grow(random_cases.update(seed))


def check_update(seed: int) -> None:
    case = random_cases.update(seed)
    if not can_be_packed(case):
        return
    run = packed(case)
    run.drop_grow_()
    skipped = "found_inf" in case.options and float(case.options["found_inf"]) != 0
    assert_packed(run, updated(seed), updates=case.round + (not skipped))


@UPDATE
@pytest.mark.parametrize("start", range(0, 504, 63))
def test_random_updates_match_the_oracle(backend: Configuration, start: int) -> None:
    for seed in range(start, start + 63):
        check_update(seed)


@UPDATE
@pytest.mark.parametrize("start", range(0, 504, 252))
def test_random_updates_on_threads_and_fallbacks(detour: Configuration, start: int) -> None:
    for seed in [*range(start, start + 252, 18), *range(start + 5, start + 252, 12)]:
        check_update(seed)


Mask = Callable[[int], np.ndarray]
ADVERSARIAL: dict[str, Mask] = {
    "none": lambda n: np.zeros(n, dtype=bool),
    "all": lambda n: np.ones(n, dtype=bool),
    "the first": lambda n: np.arange(n) == 0,
    "the last": lambda n: np.arange(n) == n - 1,
    "all but the last": lambda n: np.arange(n) < n - 1,
    "every second": lambda n: np.arange(n) % 2 == 1,
    "one of sixteen": lambda n: np.arange(n) % 16 == 15,
    "the second half": lambda n: np.arange(n) >= n // 2,
    "half the blocks": lambda n: np.arange(n) // 4096 % 2 == 1,
}
RULES = (
    SGDRule(0.1, 0.9),
    SGDRule(0.1, 0.9, nesterov=True, weight_decay=5e-4),
    SGDRule(0.01, 0.9, dampening=0.1, maximize=True),
    SGDRule(0.1, 0.9, weight_decay=0.1, first_step=True),
)


@functools.cache
def adversarial(name: str, dtype: torch.dtype, sizes: tuple[int, ...]) -> tuple[Case, Case]:
    """The case, with momenta at all positions, and what the reference leaves of it."""
    rng = np.random.default_rng(3)
    case = make_case(5, sizes, dtype=dtype, odd=True, sgd=RULES[len(name) % len(RULES)], family="nonfinite")
    assert case.momenta is not None and case.sgd is not None
    for p, m, packed_bits in zip(case.params, case.momenta, case.mask_bits, strict=True):
        mask = torch.from_numpy(ADVERSARIAL[name](p.numel()))
        packed_bits.copy_(encoding.pack_bits(mask))
        p.copy_(values("normal", p.numel(), rng).to(dtype) * mask)
        m.copy_(torch.full_like(m, 3.0) if case.sgd.first_step else values("nonfinite", p.numel(), rng).to(dtype))
        m[~mask] = 0
    case = replace(case, grad_scale=torch.tensor(2.0))
    after = case.clone()
    with backends.use_backend("reference"):
        after.masked_sgd_()
    return case, after


def check_adversarial(name: str, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    case, after = adversarial(name, dtype, sizes)
    run = packed(case)
    run.masked_sgd_()
    assert after.momenta is not None
    left = [m[mask] for m, mask in zip(after.momenta, case.masks(), strict=True)]
    assert_same_bits(run.momenta, left, "momenta")
    assert_same_bits(run.params, after.params, "params")
    run.assert_margins()


@STEP
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_masks(backend: Configuration, name: str, dtype: torch.dtype) -> None:
    check_adversarial(name, dtype, SIZES)
    check_adversarial(name, dtype, LARGE_SIZES)


@STEP
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_masks_on_threads(detour: Configuration, name: str) -> None:
    check_adversarial(name, torch.float32, LARGE_SIZES)


@STEP
@UPDATE
def test_momenta_are_ignored_without_a_momentum(backend: Configuration) -> None:
    """The flag says how momenta are stored: with none it says nothing."""
    case = make_case(1, [100, 33], sgd=SGDRule(0.1))
    expected, run = case.clone(), replace(case.clone(), momenta=None, options={"packed_momenta": True})
    expected.masked_sgd_()
    run.masked_sgd_()
    assert_same_bits(run.params, expected.params, "params")


# --- what is refused -----------------------------------------------------------------------------------------------------


def step(momenta: list[Any]) -> None:
    w = [torch.ones(40), torch.ones(9)]
    masks = [bits("10010" * 8), bits("100000001")]
    before = [t.clone() for t in (*w, *(m for m in momenta if isinstance(m, Tensor) and not m.is_meta))]
    try:
        ops.masked_sgd_(w, [torch.ones(40), torch.ones(9)], momenta, masks, lr=0.1, momentum=0.9, packed_momenta=True)
    finally:
        assert_same_bits([*w, *(m for m in momenta if isinstance(m, Tensor) and not m.is_meta)], before, "what was refused")


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "one too many": (
        torch.ones(3),
        ValueError,
        r"momenta\[1\] has shape \[3\], expected \[2\], one entry for each active weight",
    ),
    "one too few": (torch.ones(1), ValueError, r"momenta\[1\] has shape \[1\], expected \[2\]"),
    "at all positions": (torch.ones(9), ValueError, r"momenta\[1\] has shape \[9\], expected \[2\]"),
    "none of them": (torch.ones(0), ValueError, r"momenta\[1\] has shape \[0\], expected \[2\]"),
    "2-D": (torch.ones(1, 2), ValueError, r"momenta\[1\] has shape \[1, 2\], expected \[2\]"),
    "strided": (torch.ones(4)[::2], ValueError, r"momenta\[1\] must be contiguous"),
    "dtype": (torch.ones(2).half(), TypeError, r"momenta\[1\] has dtype torch.float16, expected torch.float32"),
    "on meta": (torch.ones(2, device="meta"), ValueError, r"momenta\[1\] is on meta"),
    "None": (None, TypeError, r"momenta\[1\] must be a tensor"),
}


@STEP
@pytest.mark.parametrize("name", WRONG)
def test_wrong_momenta_of_a_step_are_refused(backend: Configuration, name: str) -> None:
    wrong, error, text = WRONG[name]
    with pytest.raises(error, match=text):
        step([torch.ones(16), wrong])


@STEP
def test_momenta_that_share_memory_are_refused(backend: Configuration) -> None:
    buffer = torch.ones(17)
    with pytest.raises(ValueError, match=r"momenta\[0\] and momenta\[1\] share storage"):
        step([buffer[:16], buffer[15:]])


def update(momenta: list[Tensor], **options: Any) -> None:
    w, g, mask_bits = [torch.ones(40), torch.ones(4)], [torch.ones(40), torch.ones(4)], [bits("10010" * 8), bits("1111")]
    before = [t.clone() for t in (*w, *momenta, *mask_bits)]
    try:
        ops.drop_grow_(w, g, momenta, mask_bits, None, [2, 1], bonus=None, round=0, packed_momenta=True, **options)
    finally:
        assert_same_bits([*w, *momenta, *mask_bits], before, "what was refused")


@UPDATE
def test_wrong_momenta_of_an_update_are_refused(backend: Configuration) -> None:
    with pytest.raises(ValueError, match=r"momenta\[0\] has shape \[15\], expected \[16\], one entry for each active weight"):
        update([torch.ones(15), torch.ones(4)])


@UPDATE
def test_packed_momenta_cannot_be_ranked(backend: Configuration) -> None:
    """Of a full layer they have the weight's shape."""
    momenta = [torch.ones(16), torch.ones(4)]
    with pytest.raises(ValueError, match=r"drop_scores\[1\] and momenta\[1\] share storage"):
        update(momenta, drop_scores=[torch.ones(40), momenta[1]])


def test_k_grow_is_refused() -> None:
    """It would change how many momenta there are."""
    with pytest.raises(ValueError, match="packed_momenta and k_grow both given: k_grow changes the number of active weights"):
        update([torch.ones(16), torch.ones(4)], k_grow=[2, 1])


# --- who has it ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["masked_sgd_", "drop_grow_"])
def test_gpu_kernels_refuse_it_by_name(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert native.why_not_option(op, gpu, "packed_momenta") == (
        f"the kernel of {op} for cuda devices in dstee._C has no packed_momenta"
    )
    assert triton.why_not_option(op, gpu, "packed_momenta") == f"the Triton kernel of {op} has no packed_momenta"
    monkeypatch.setattr(triton, "why_not", lambda op, device: None)
    refusal = backends.BACKENDS["triton"].refusal(op, cpu, ("packed_momenta",))
    assert refusal is not None and "packed_momenta" in refusal


@pytest.mark.skipif(triton.missing() is not None, reason="triton is not installed")
@pytest.mark.parametrize("op", ["masked_sgd_", "drop_grow_"])
def test_triton_kernels_refuse_it_when_called_directly(op: str) -> None:
    arguments = len(getattr(torch.ops.dstee, op).default._schema.arguments) - 1
    with pytest.raises(RuntimeError, match=f"the Triton kernel of {op} has no packed_momenta"):
        getattr(triton.module(triton.MODULES[op]), op)(*[[]] * arguments, True)
