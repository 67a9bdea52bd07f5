"""The Triton kernels in Triton's interpreter, on the CPU: the bits of the reference, over every way through an update.

The interpreter takes about 0.2 ms for an operation of a program, so cases are few and small: layers of at most 4096 weights are
done in one piece, larger ones go through sample, lists and bins; test limits force the fallback by a bad sample or a full list.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from support import random_cases

from dstee import backends, ops
from dstee.backends import triton as triton_backend
from dstee.encoding import bonus_table
from dstee.ops import SGDRule
from dstee.testing import DTYPES, FAMILIES, Case, assert_same_bits, make_case

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    triton_backend.why_not("drop_grow_", CPU) is not None, reason=triton_backend.why_not("drop_grow_", CPU) or "runs"
)
LARGE = 8201  # more than a small layer, five tiles, not a multiple of 8


def check(case: Case, what: str = "drop_grow_") -> None:
    expected, actual = case.clone(), case.clone()
    with backends.use_backend("reference"):
        getattr(expected, what)()
    with backends.use_backend("triton"):
        getattr(actual, what)()
    for name, tensors in expected.lists().items():
        assert_same_bits(actual.lists()[name], tensors, f"{name} ({case.description})")
    actual.assert_margins()


def set_limits(monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any]) -> None:
    module = triton_backend.module("test_limits")
    monkeypatch.setattr(module, "limits", module.TestLimits(**limits))


@pytest.fixture
def fallbacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A line for each layer that the last launch does all over."""
    select_grow, done = triton_backend.module("select_grow"), []
    original = select_grow.update_by_scans

    def noted(*args: Any) -> None:
        done.append(1)
        original(*args)

    monkeypatch.setattr(select_grow, "update_by_scans", noted)
    return done


# --- updates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [14, 18, 22, 36, *range(101, 126)])
def test_random_updates(seed: int) -> None:
    check(random_cases.update(seed))


@pytest.mark.parametrize("seed", range(201, 221))
def test_random_steps(seed: int) -> None:
    check(random_cases.step(seed), "masked_sgd_")


@pytest.mark.parametrize("family", FAMILIES)
def test_large_layers_of_every_family(family: str, fallbacks: list[int]) -> None:
    """With a step, by lists: the sample must serve."""
    dtype = DTYPES[FAMILIES.index(family) % 3]
    check(make_case(3, [LARGE], family=family, dtype=dtype, round=5, sgd=SGDRule(lr=0.1, momentum=0.9, weight_decay=1e-4)))
    assert not fallbacks, "the lists were not to be trusted"


@pytest.mark.parametrize("family", ["normal", "zeros", "absorbed", "nonfinite"])
@pytest.mark.parametrize("limits", [{"tight_bounds": True}, {"list_share": 0.01}], ids=["tight", "overflow"])
def test_fallback_gives_the_same_bits(
    family: str, limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fallbacks: list[int]
) -> None:
    set_limits(monkeypatch, limits)
    check(make_case(4, [LARGE, 100], family=family, round=5, odd=True))
    assert fallbacks, "the limits did not force a fallback, so this test would prove nothing"


@pytest.mark.parametrize(
    "options",
    [
        {"regrow": False, "grow_seeds": [-(2**63), 2**40 + 5]},
        {"reset_regrown": True, "found_inf": torch.tensor(1.0)},
        {"reset_regrown": True, "found_inf": torch.zeros(1, dtype=torch.float16)},
        {"grow": "momenta", "drop": "grads"},
        {"grow": "other", "drop": "other", "regrow": False},
    ],
    ids=lambda options: "-".join(options),
)
def test_large_layers_with_other_things_to_rank(options: dict[str, Any]) -> None:
    options = dict(options)
    grow, drop = options.pop("grow", None), options.pop("drop", None)
    case = make_case(5, [LARGE, 4096], dtype=torch.float16, round=2, sgd=SGDRule(lr=0.1, momentum=0.9), **options)
    other = make_case(6, [LARGE, 4096], family="few_valued")
    for name, kind in (("grow_signal", grow), ("drop_scores", drop)):
        if kind is not None:
            case.options[name] = other.grads if kind == "other" else getattr(case, kind)
    check(case)


@pytest.mark.parametrize("share", [0.0, 0.9, 1.0])
def test_few_and_many_swaps_requested_by_a_tensor(share: float) -> None:
    """More than the lists of a k that is known on the device only can hold."""
    case = make_case(7, [LARGE, 40], density=0.5, round=1)
    case.k = torch.tensor([int(share * k / 0.3) + (share == 1.0) * 2**40 for k in case.k])
    check(case)


def test_scalars_may_be_tensors() -> None:
    rule = SGDRule(lr=torch.tensor([[0.1]], dtype=torch.float64), momentum=0.9, nesterov=True)
    case = make_case(8, [LARGE, 9], dtype=torch.bfloat16, sgd=rule, round=4)
    case.round = torch.tensor([4])  # type: ignore[assignment]
    check(case)


def test_layers_of_several_dtypes_in_one_call() -> None:
    """A launch for each dtype; k and the seeds keep their places."""
    parts = [make_case(9 + j, [1000 + j, 0], dtype=dtype) for j, dtype in enumerate((*DTYPES, torch.float32))]
    case = parts[0]
    for part in parts[1:]:
        for name in ("params", "grads", "momenta", "mask_bits", "counts", "N", "k"):
            getattr(case, name).extend(getattr(part, name))
    case.options["grow_seeds"] = list(range(8))
    case.k = torch.tensor(case.k)
    check(case)


# --- masks and counters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 9, 2048, 5003])
def test_masks_and_counters(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    mask = torch.rand(n, generator=generator) < 0.3
    N = torch.randint(0, 6, (n,), generator=generator, dtype=torch.int32) + mask.int()
    results = []
    for name in ("reference", "triton"):
        with backends.use_backend(name):
            bits, counts = ops.pack_mask(mask), ops.encode_counts(N, mask, 5)
            results.append(
                [
                    bits, counts, ops.unpack_mask(bits, [n, 1]), ops.decode_counts(counts, bits, 5, [1, n]),
                    ops.count_active([bits, bits]), ops.count_explored([counts, counts], [bits, bits]),
                ]
            )  # fmt: skip
    assert_same_bits(results[1], results[0])


@pytest.mark.parametrize("numbers", [[5], [2**61, 1, 16] * 30, [-(2**63), 2**40, -1, 0, 2**63 - 1] * 20])
def test_rows_that_are_written_by_a_kernel(numbers: list[int]) -> None:
    """As it goes while a CUDA graph is captured."""
    upload = triton_backend.module("_upload")
    for dtype in (np.int64, np.int32):
        array = np.array(numbers).astype(dtype)
        with triton_backend.module("_launch").launching(CPU):
            assert_same_bits(upload._store(array, CPU), torch.from_numpy(array))


def test_writes_are_known_to_autograd() -> None:
    """A saved weight that changed must not be used without a word."""
    case = make_case(1, [100], sgd=SGDRule(lr=0.1, momentum=0.9))
    before = [t._version for tensors in case.lists().values() for t in tensors]
    with backends.use_backend("triton"):
        case.drop_grow_()
    grads = {id(t) for t in case.grads or []}
    after = [t._version for tensors in case.lists().values() for t in tensors]
    for (b, a), t in zip(zip(before, after, strict=True), (t for x in case.lists().values() for t in x), strict=True):
        assert (a > b) == (id(t) not in grads)


# --- choice --------------------------------------------------------------------------------------------------------------


def test_the_interpreter_is_never_the_automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSTEE_BACKEND", raising=False)
    assert triton_backend.why_not("drop_grow_", CPU) is None
    assert backends.resolve("drop_grow_", CPU).name != "triton"
    monkeypatch.setattr("dstee.backends.native.load", lambda: (None, "not built"))
    assert backends.resolve("drop_grow_", CPU).name == "reference"
    assert backends.resolve("drop_grow_", torch.device("cuda")).name == "reference", "the interpreter reads no GPU's memory"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    for device in ("cuda", "xpu"):
        assert backends.resolve("drop_grow_", torch.device(device)).name == "triton"
    assert backends.resolve("drop_grow_", torch.device("mps")).name == "reference"


def test_refusals_are_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with (
        pytest.raises(RuntimeError, match=r"'triton' was asked for but cannot run pack_mask on cpu: .*TRITON_INTERPRET=1"),
        backends.use_backend("triton"),
    ):
        ops.pack_mask(torch.ones(3, dtype=torch.bool))
    assert os.environ["TRITON_INTERPRET"] == "0"
    reason = triton_backend.why_not("pack_mask", torch.device("mps"))
    assert reason and "mps" in reason
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    triton_backend.missing.cache_clear()
    try:
        reason = triton_backend.why_not("pack_mask", torch.device("cuda"))
        assert reason == 'the Triton backend needs triton: pip install "dstee[triton]"'
    finally:
        monkeypatch.undo()
        triton_backend.missing.cache_clear()


def test_a_layer_that_is_too_large_is_refused_before_anything_is_written() -> None:
    """Indices are 32 bits wide."""
    p = torch.empty(0).set_(torch.ones(1).untyped_storage(), 0, (1,), (1,)).expand(2**31)
    with pytest.raises(ValueError, match=r"params\[1\] has 2147483648 weights.*split it"):
        triton_backend.module("_table").group_by_dtype([torch.ones(8), p], [], [], [torch.ones(1), torch.ones(1)])


# --- budgets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 5, 9, 14, 18, 22, 36, 54, *range(101, 117)])
def test_random_updates_of_budgets(seed: int) -> None:
    check(random_cases.uneven(seed))


@pytest.mark.parametrize("limits", [{}, {"tight_bounds": True}, {"list_share": 0.01}], ids=["lists", "tight", "overflow"])
@pytest.mark.parametrize(("drop", "grow"), [(300, 0), (0, 300), (40, 900)])
def test_large_layers_that_drop_and_grow_different_numbers(
    drop: int, grow: int, limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fallbacks: list[int]
) -> None:
    set_limits(monkeypatch, limits)
    case = make_case(8, [LARGE], density=0.2, round=5, sgd=SGDRule(lr=0.1, momentum=0.9), regrow=grow != 900)
    case.k, case.options["k_grow"] = [drop], torch.tensor([grow]) if limits else [grow]
    check(case)
    assert bool(fallbacks) == bool(limits)
    case.options["found_inf"] = torch.ones(1)
    check(case)


def test_large_parts_with_scaled_bonuses() -> None:
    for options in (
        {"where": [(2**33, 9, 2**20), (0, 2**40, 2**41)], "grow_seeds": [-(2**63), 2**40 + 5]},
        {"bonus_scale": torch.tensor([0.037, float("inf")])},
    ):
        case = make_case(9, [LARGE, 500], density=0.2, round=5, **options)
        case.bonus = bonus_table(0.1, 1.0, 1000, 5, dtype=torch.float64)
        if "where" in options:
            case.bonus = None
        check(case)
