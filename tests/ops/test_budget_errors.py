"""Bad numbers and places of the ops that move budgets: refused in words, with the index, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dstee import backends, encoding, ops
from dstee.backends import native
from dstee.testing import Configuration, assert_same_bits

MASK = torch.arange(20) % 4 == 0  # 5 of 20
INT32, INT64, FLOAT64 = torch.int32, torch.int64, torch.float64


def update(**changed: Any) -> list[torch.Tensor]:
    """drop_grow_ of two layers; what it could have written."""
    tensors = [torch.ones(20) * MASK, torch.ones(20) * MASK, encoding.pack_bits(MASK), encoding.pack_bits(MASK)]
    counts = [torch.zeros(20, dtype=torch.int16) for _ in range(2)]
    good: dict[str, Any] = dict(k=[5, 2], k_grow=[3, 17], bonus=None, round=0, regrow=True)
    given = good | changed
    watched = [*tensors, *counts]
    before = [t.clone() for t in watched]
    try:
        ops.drop_grow_(tensors[:2], [torch.ones(20), torch.ones(20)], None, tensors[2:], counts, given.pop("k"), **given)
    finally:
        assert not changed or _same(watched, before)
    return watched


def keep(**changed: Any) -> None:
    tensors = [torch.ones(20) * MASK, torch.ones(20) * MASK, encoding.pack_bits(MASK), encoding.pack_bits(MASK)]
    before = [t.clone() for t in tensors]
    given: dict[str, Any] = dict(scores=None, counts=None, total=10, round=0) | changed
    try:
        ops.global_keep_(given["scores"], tensors[:2], None, tensors[2:], given["counts"], given["total"], round=given["round"])
    finally:
        assert not changed or _same(tensors, before)


def _same(tensors: list[torch.Tensor], before: list[torch.Tensor]) -> bool:
    assert_same_bits(tensors, before, "what was written")
    return True


def histogram(**changed: Any) -> torch.Tensor:
    prefix = torch.zeros(2, 3, dtype=torch.int64)
    given: dict[str, Any] = dict(growth=True, word=0, shift=24, prefix=prefix, drop_from=prefix, total=[50, 20]) | changed
    params, bits = [torch.ones(20) * MASK for _ in range(2)], [encoding.pack_bits(MASK) for _ in range(2)]
    return ops.key_histogram(params, [torch.ones(20), torch.ones(20)], bits, None, **given)


def scale(**changed: Any) -> torch.Tensor:
    given: dict[str, Any] = dict(k=[3, 20], round=0) | changed
    return ops.growth_scale([torch.ones(20), torch.ones(20)], [encoding.pack_bits(MASK), encoding.pack_bits(MASK)], **given)


def below(thresholds: Any) -> torch.Tensor:
    return ops.count_below([torch.ones(20)], [encoding.pack_bits(MASK)], thresholds)


UNITS = encoding.bonus_table(0.1, 1.0, 10, 0, dtype=FLOAT64)
WHOLE = (0, 20, 20)


@dataclass
class Wrong:
    name: str
    call: Callable[..., Any]
    given: dict[str, Any]
    error: type[Exception]
    text: str


V, T = ValueError, TypeError
WRONG = [
    Wrong("k_grow beyond", update, dict(k_grow=[3, 18]), V,
          r"k_grow\[1\] must be in 0\.\.17 \(the inactive weights of params\[1\] and the 2 that are dropped\), got 18"),
    Wrong("k_grow beyond without regrow", update, dict(k_grow=[16, 3], regrow=False), V,
          r"k_grow\[0\] must be in 0\.\.15 \(the inactive weights of params\[0\]\), got 16"),
    Wrong("k_grow beyond what a tensor drops", update, dict(k=torch.tensor([99, -4]), k_grow=[20, 16]), V,
          r"k_grow\[1\] must be in 0\.\.15"),
    Wrong("k_grow negative", update, dict(k_grow=[-1, 0]), V, r"k_grow\[0\] must be >= 0, got -1"),
    Wrong("k_grow float", update, dict(k_grow=[1, 2.0]), T, r"k_grow\[1\] must be an int, got float"),
    Wrong("k_grow too few", update, dict(k_grow=[1]), V, "k_grow must have one number per layer: got 1, expected 2"),
    Wrong("k_grow int32", update, dict(k_grow=torch.ones(2, dtype=INT32)), T, "k_grow must be.*int64.*int32"),
    Wrong("k_grow on meta", update, dict(k_grow=torch.ones(2, dtype=INT64, device="meta")), V, "k_grow is on meta"),
    Wrong("k beyond", update, dict(k=[5, 6]), V, r"k\[1\] must be in 0\.\.5 \(the active weights of params\[1\]\), got 6"),
    Wrong("where decreases", update, dict(where=[WHOLE, (0, 5, 4)]), V, r"where\[1\].*1 <= run <= pitch.*\(0, 5, 4\)"),
    Wrong("where run 0", update, dict(where=[(0, 0, 4), WHOLE]), V, r"where\[0\].*1 <= run.*\(0, 0, 4\)"),
    Wrong("where base", update, dict(where=[(-1, 5, 5), WHOLE]), V, r"where\[0\].*base >= 0.*\(-1, 5, 5\)"),
    Wrong("where too far", update, dict(where=[WHOLE, (2**62 - 5, 20, 20)]), V, r"where\[1\] puts.*below 2\*\*62"),
    Wrong("where pairs", update, dict(where=[(0, 5), WHOLE]), T, r"where\[0\] must be three ints"),
    Wrong("where floats", update, dict(where=[(0, 5.0, 5), WHOLE]), T, r"where\[0\] must be three ints"),
    Wrong("where too few", update, dict(where=[WHOLE]), V, "where must have one row per layer: got 1, expected 2"),
    Wrong("where number", update, dict(where=3), T, "where must be a list of.*int"),
    Wrong("where float tensor", update, dict(where=torch.ones(2, 3)), T, r"where must be an int64 tensor \[2, 3\]"),
    Wrong("where of a device", update, dict(where=torch.ones(2, 3, dtype=INT64, device="meta")), V,
          "where is on meta, expected cpu"),
    Wrong("scale alone", update, dict(bonus_scale=torch.ones(2)), V, "bonus_scale given without bonus"),
    Wrong("scale with float32", update, dict(bonus_scale=torch.ones(2), bonus=UNITS.float()), T,
          r"bonus must be a contiguous 1-D float64 tensor where bonus_scale is given.*dtype=torch.float64"),
    Wrong("float64 without scale", update, dict(bonus=UNITS), T, "bonus must be a contiguous 1-D float32 tensor"),
    Wrong("scale of three", update, dict(bonus_scale=torch.ones(3), bonus=UNITS), T,
          r"bonus_scale must be a contiguous float32 tensor \[2\].*\[3\]"),
    Wrong("scale NaN", update, dict(bonus_scale=torch.tensor([1, math.nan]), bonus=UNITS), V, "bonus_scale must be >= 0"),
    Wrong("scale negative", update, dict(bonus_scale=torch.tensor([1.0, -1]), bonus=UNITS), V, "bonus_scale must be >= 0"),
    Wrong("total beyond", keep, dict(total=11), V, r"total must be in 0\.\.10 \(the active weights\), got 11"),
    Wrong("total negative", keep, dict(total=-1), V, "total must be >= 0, got -1"),
    Wrong("total float", keep, dict(total=3.0), T, "total must be an int or a one-element int64 tensor, got float"),
    Wrong("total bool", keep, dict(total=True), T, "total must be an int.*bool"),
    Wrong("total of two", keep, dict(total=torch.tensor([1, 2])), T, r"total must be an int.*\[2\]"),
    Wrong("total on meta", keep, dict(total=torch.ones(1, dtype=INT64, device="meta")), V, "total is on meta"),
    Wrong("scores too few", keep, dict(scores=[torch.ones(20)]), V, "scores.*got 1, expected 2"),
    Wrong("scores float64", keep, dict(scores=[torch.ones(20, dtype=FLOAT64)] * 2), T, r"scores\[0\] has dtype.*float64"),
    Wrong("scores shape", keep, dict(scores=[torch.ones(20), torch.ones(4, 5)]), V, r"scores\[1\] has shape \[4, 5\]"),
    Wrong("keep round", keep, dict(round=32_766), V, r"round must be in 0\.\.32765"),
    Wrong("word 3", histogram, dict(word=3), V, r"word must be 0 \(score\), 1 \(signal\) or 2 \(index\), got 3"),
    Wrong("word -1", histogram, dict(word=-1), V, "word must be"),
    Wrong("word text", histogram, dict(word="0"), T, "word must be an int, got str"),
    Wrong("shift 32", histogram, dict(shift=32), V, r"shift of word 0 must be a multiple of 8 in 0\.\.24, got 32"),
    Wrong("shift 64", histogram, dict(word=2, shift=64), V, r"shift of word 2 must be a multiple of 8 in 0\.\.56, got 64"),
    Wrong("shift 7", histogram, dict(shift=7), V, "shift of word 0 must be a multiple of 8"),
    Wrong("shift -8", histogram, dict(shift=-8), V, "shift of word 0 must be"),
    Wrong("growth None", histogram, dict(growth=None), T, "growth must be True or False, got None"),
    Wrong("prefix of one", histogram, dict(prefix=torch.zeros(1, 3, dtype=INT64)), T,
          r"prefix must be a contiguous int64 tensor \[2, 3\]"),
    Wrong("prefix int32", histogram, dict(prefix=torch.zeros(2, 3, dtype=INT32)), T, "prefix must be.*int64.*int32"),
    Wrong("drop_from of the drop", histogram, dict(growth=False), V, "drop_from given with growth=False.*leave it out"),
    Wrong("drop_from list", histogram, dict(drop_from=[5, 0]), T,
          r"drop_from must be a contiguous int64 tensor \[2, 3\].*got list"),
    Wrong("drop_from of one", histogram, dict(drop_from=torch.zeros(3, dtype=INT64)), T, r"drop_from must be.*\[2, 3\].*\[3\]"),
    Wrong("drop_from int32", histogram, dict(drop_from=torch.zeros(2, 3, dtype=INT32)), T, "drop_from must be.*int64.*int32"),
    Wrong("drop_from strided", histogram, dict(drop_from=torch.zeros(3, 2, dtype=INT64).t()), T,
          "drop_from must be a contiguous"),
    Wrong("drop_from on meta", histogram, dict(drop_from=torch.zeros(2, 3, dtype=INT64, device="meta")), V,
          "drop_from is on meta"),
    Wrong("total below n", histogram, dict(total=[19, 20]), V, r"total\[0\] must be in 20\.\..*got 19"),
    Wrong("total too few", histogram, dict(total=[20]), V, "total must have one number per layer: got 1, expected 2"),
    Wrong("where beyond total", histogram, dict(where=[(31, 20, 20), WHOLE]), V,
          r"where\[0\] puts the last of 20 weights at index 50, expected below total\[0\] = 50"),
    Wrong("runs beyond total", histogram, dict(where=[(1, 2, 5), (0, 2, 3)]), V, r"where\[1\] puts the last.*total\[1\]"),
    Wrong("scale k beyond", scale, dict(k=[3, 21]), V, r"k\[1\] must be in 0\.\.20 \(the weights of signals\[1\]\), got 21"),
    Wrong("scale round", scale, dict(round=-1), V, r"round must be in 0\.\.32765, got -1"),
    Wrong("thresholds list", below, dict(thresholds=[0.5]), T, "thresholds must be a contiguous float32 tensor"),
    Wrong("thresholds two", below, dict(thresholds=torch.ones(2)), T, r"thresholds must be.*\[1\].*got.*\[2\]"),
    Wrong("noise seed", ops.hashed_noise, dict(shape=3, seed=0.5, step=0), T, "seed must be an int, got float"),
    Wrong("noise step", ops.hashed_noise, dict(shape=3, seed=0, step=None), T, "step must be an int, got NoneType"),
    Wrong("noise shape", ops.hashed_noise, dict(shape=(3, -1), seed=0, step=0), V, "shape must have no negative sizes"),
    Wrong("noise place", ops.hashed_noise, dict(shape=3, seed=0, step=0, where=(0, 3, 2)), V, r"where\[0\].*run <= pitch"),
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_refusals(wrong: Wrong) -> None:
    with pytest.raises(wrong.error, match=wrong.text):
        wrong.call(**wrong.given)


@pytest.mark.op("drop_grow_", "k_grow", "where", "bonus_scale")
@pytest.mark.parametrize("wrong", [w for w in WRONG if w.call is update], ids=lambda wrong: wrong.name)
def test_drop_grow_refuses(backend: Configuration, wrong: Wrong) -> None:
    if backend.backend in ("cuda-host", "native-cuda") and wrong.name.startswith(("k beyond", "k_grow beyond")):
        pytest.skip("a device cannot be asked for its masks without a sync: it clips")
    with pytest.raises(wrong.error, match=wrong.text):
        update(**wrong.given)


def test_the_good_arguments_are_good() -> None:
    assert not torch.equal(update()[2], encoding.pack_bits(MASK))
    keep()
    assert histogram().shape == (2, 256) and scale().shape == (2,) and below(torch.ones(1)).shape == (1,)


# --- what a backend has not got ------------------------------------------------------------------------------------------


def test_a_backend_that_lacks_an_argument_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.load()[0] is None:
        pytest.skip(native.load()[1])
    monkeypatch.setitem(native.NO_OPTION, "cpu", {"drop_grow_": frozenset({"k_grow"})})
    monkeypatch.delenv("DSTEE_BACKEND", raising=False)
    with backends.use_backend("native"), pytest.raises(RuntimeError, match=r"native.*cannot run drop_grow_.*has no k_grow"):
        update()
    cpu = torch.device("cpu")
    assert backends.resolve("drop_grow_", cpu, ("k_grow",)).name == "reference"
    assert backends.resolve("drop_grow_", cpu).name == backends.resolve("drop_grow_", cpu, ("where",)).name == "native"


def test_the_table_of_missing_kernels_is_right() -> None:
    """What the module registers for the CPU, and what the table says that it has not got, are all ops together."""
    if native.load()[0] is None:
        pytest.skip(native.load()[1])
    names = {key.split("::")[1].split(".")[0] for key in torch._C._dispatch_get_all_op_names() if key.startswith("dstee::")}
    has = {name for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(f"dstee::{name}", "CPU")}
    assert has | native.NO_KERNEL["cpu"] == names and not has & native.NO_KERNEL["cpu"]
