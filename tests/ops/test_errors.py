"""Bad arguments of every op, on every backend: the right exception, a text that names argument and index, nothing changed.

The native kernels look at their arguments themselves and only say that something is wrong; the words come from the checks
that run afterwards. So the same table must hold for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from dstee import encoding, ops
from dstee.ops import SGDRule
from dstee.testing import Configuration, assert_same_bits

Arguments = dict[str, Any]


@dataclass
class Bad:
    """``change`` spoils the good arguments; ``text`` is a pattern of the message."""

    name: str
    change: Callable[[Arguments], Any]
    error: type[Exception]
    text: str


def put(name: str, value: Any, i: int | None = None) -> Callable[[Arguments], None]:
    """Sets argument ``name``, or its entry ``i``; a function is given what is there."""

    def change(arguments: Arguments) -> None:
        home: Any = arguments if i is None else arguments[name]
        key: Any = name if i is None else i
        home[key] = value(home[key]) if callable(value) else value

    return change


def both(*changes: Callable[[Arguments], Any]) -> Callable[[Arguments], None]:
    def change(arguments: Arguments) -> None:
        for c in changes:
            c(arguments)

    return change


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same values in every second place of a larger tensor."""
    wide = torch.zeros(*t.shape[:-1], 2 * t.shape[-1], dtype=t.dtype)
    wide[..., ::2] = t
    return wide[..., ::2]


def expanded(t: torch.Tensor) -> torch.Tensor:
    return torch.ones(t.shape[-1], dtype=t.dtype).expand(t.shape)


def turned(t: torch.Tensor) -> torch.Tensor:
    """The same shape and values in another memory order."""
    return t.t().contiguous().t()


def on_meta(t: torch.Tensor) -> torch.Tensor:
    return t.to("meta")


def part_of(t: torch.Tensor) -> torch.Tensor:
    return t.view(-1)[1:]


def share(a: str, b: str, i: int, j: int) -> Callable[[Arguments], None]:
    def change(arguments: Arguments) -> None:
        arguments[a][i] = arguments[b][j]

    return change


def overlap(arguments: Arguments) -> None:
    """Two different weights in one buffer, one element in common."""
    buffer = torch.zeros(159)
    arguments["params"] = [buffer[:80].view(8, 10), buffer[79:].view(8, 10)]


def layer_rows(momenta: bool = True) -> list[Bad]:
    """What both updating ops refuse: good arguments are two layers of [8, 10] float32."""
    like = ["grads", "momenta"] if momenta else ["grads"]
    rows = [
        Bad("params no list", put("params", torch.zeros(3)), TypeError, r"params must be a list"),
        Bad("params of None", put("params", None, 1), TypeError, r"params\[1\] must be a tensor.*NoneType"),
        Bad("params of numbers", put("params", 3.0, 0), TypeError, r"params\[0\] must be a tensor.*float"),
        Bad("params float64", put("params", torch.Tensor.double, 1), TypeError, r"params\[1\].*float64"),
        Bad("params integers", put("params", torch.Tensor.int, 0), TypeError, r"params\[0\].*int32"),
        Bad("params on meta", put("params", on_meta, 1), ValueError, r"params\[1\] is on meta, expected cpu"),
        Bad("params strided", put("params", strided, 1), ValueError, r"params\[1\].*not dense"),
        Bad("params expanded", put("params", expanded, 0), ValueError, r"params\[0\].*not dense"),
        Bad("params sparse", put("params", torch.Tensor.to_sparse, 1), ValueError, r"params\[1\].*not dense"),
        Bad("mask_bits too few", put("mask_bits", lambda b: b[:1]), ValueError, r"mask_bits.*got 1, expected 2"),
        Bad("mask_bits bool", put("mask_bits", torch.Tensor.bool, 1), TypeError, r"mask_bits\[1\].*bool.*uint8"),
        Bad("mask_bits short", put("mask_bits", part_of, 1), ValueError, r"mask_bits\[1\].*\[9\], expected \[10\]"),
        Bad("mask_bits long", put("mask_bits", torch.zeros(11, dtype=torch.uint8), 0), ValueError, r"mask_bits\[0\].*\[11\]"),
        Bad("mask_bits 2-D", put("mask_bits", lambda b: b.view(2, 5), 0), ValueError, r"mask_bits\[0\].*\[2, 5\]"),
        Bad("mask_bits strided", put("mask_bits", strided, 1), ValueError, r"mask_bits\[1\] must be contiguous"),
        Bad("mask_bits on meta", put("mask_bits", on_meta, 1), ValueError, r"mask_bits\[1\] is on meta"),
        Bad("a weight twice", share("params", "params", 1, 0), ValueError, r"params\[0\] and params\[1\] share storage"),
        Bad("weights overlap", overlap, ValueError, r"params\[0\] and params\[1\] share storage"),
        Bad("gradient is the weight", share("grads", "params", 1, 1), ValueError, r"\w+\[1\] and \w+\[1\] share storage"),
        Bad("a mask twice", share("mask_bits", "mask_bits", 0, 1), ValueError, r"mask_bits\[\d\] and mask_bits\[\d\] share"),
    ]
    for name in like:
        text = rf"{name}\[1\]"
        rows += [
            Bad(f"{name} no list", put(name, torch.zeros(2, 8, 10)), TypeError, rf"{name} must be a list"),
            Bad(f"{name} too many", put(name, lambda x: [*x, x[0]]), ValueError, rf"{name}.*got 3, expected 2"),
            Bad(f"{name} of None", put(name, None, 1), TypeError, rf"{text} must be a tensor"),
            Bad(f"{name} shape", put(name, lambda g: g.view(10, 8), 1), ValueError, rf"{text} has shape \[10, 8\]"),
            Bad(f"{name} dtype", put(name, torch.Tensor.bfloat16, 1), TypeError, rf"{text}.*bfloat16.*float32"),
            Bad(f"{name} order", put(name, turned, 1), ValueError, rf"{text} has strides \(1, 8\), expected \(10, 1\)"),
            Bad(f"{name} strided", put(name, strided, 1), ValueError, rf"{text} has strides"),
            Bad(f"{name} expanded", put(name, expanded, 1), ValueError, rf"{text} has strides"),
            Bad(f"{name} sparse", put(name, torch.Tensor.to_sparse, 1), ValueError, rf"{text} has strides.*sparse"),
            Bad(f"{name} on meta", put(name, on_meta, 1), ValueError, rf"{text} is on meta"),
            Bad(f"{name} twice", share(name, name, 0, 1), ValueError, rf"{name}\[\d\] and {name}\[\d\] share storage"),
        ]
    return rows


def scalar_rows(*names: str) -> list[Bad]:
    rows = []
    for name in names:
        rows += [
            Bad(f"{name} number", put(name, 1.0), TypeError, f"{name} must be a one-element"),
            Bad(f"{name} two", put(name, torch.ones(2)), TypeError, rf"{name} must be a one-element.*\[2\]"),
            Bad(f"{name} integer", put(name, torch.tensor(1)), TypeError, f"{name} must be a one-element.*int64"),
            Bad(f"{name} on meta", put(name, torch.ones(1, device="meta")), ValueError, f"{name} is on meta"),
        ]
    return rows


SGD = [
    *layer_rows(),
    *scalar_rows("grad_scale", "found_inf"),
    Bad("lr NaN", put("lr", float("nan")), ValueError, "learning rate: nan"),
    Bad("lr NaN", put("lr", math.nan), ValueError, "learning rate: nan"),
    Bad("lr of two", put("lr", torch.ones(2)), TypeError, "lr must be a one-element"),
    Bad("momentum negative", put("momentum", -0.5), ValueError, "momentum value: -0.5"),
    Bad("weight_decay negative", put("weight_decay", -1e-4), ValueError, "weight_decay value: -0.0001"),
    Bad("nesterov alone", both(put("nesterov", True), put("momentum", 0.0)), ValueError, "nesterov needs a momentum, got 0.0"),
    Bad("momentum without buffers", put("momenta", None), ValueError, "momenta is None"),
    Bad("no grads", put("grads", None), TypeError, "grads must be a list"),
]


def rule(**fields: Any) -> Callable[[Arguments], None]:
    return put("sgd", lambda sgd: replace(sgd, **fields))


UPDATE = [
    *layer_rows(),
    *scalar_rows("found_inf"),
    Bad("counts too few", put("counts", lambda c: c[:1]), ValueError, r"counts.*got 1, expected 2"),
    Bad("counts int32", put("counts", torch.Tensor.int, 1), TypeError, r"counts\[1\].*int32.*int16"),
    Bad("counts short", put("counts", part_of, 0), ValueError, r"counts\[0\].*\[79\], expected \[80\]"),
    Bad("counts in shape", put("counts", lambda c: c.view(8, 10), 1), ValueError, r"counts\[1\].*\[8, 10\]"),
    Bad("counts strided", put("counts", strided, 1), ValueError, r"counts\[1\] must be contiguous"),
    Bad("counts on meta", put("counts", on_meta, 0), ValueError, r"counts\[0\] is on meta"),
    Bad("counts twice", share("counts", "counts", 1, 0), ValueError, r"counts\[\d\] and counts\[\d\] share storage"),
    Bad("k number", put("k", 3), TypeError, "k must be a list of ints or an int64 tensor, got int"),
    Bad("k too few", put("k", [3]), ValueError, "k must have one number per layer: got 1, expected 2"),
    Bad("k float", put("k", 2.0, 1), TypeError, r"k\[1\] must be an int, got float"),
    Bad("k bool", put("k", True, 0), TypeError, r"k\[0\] must be an int, got bool"),
    Bad("k negative", put("k", -1, 1), ValueError, r"k\[1\] must be >= 0, got -1"),
    Bad("k one too large", put("k", 21, 1), ValueError, r"k\[1\] must be in 0\.\.20 \(the active weights.*got 21"),
    Bad("k far too large", put("k", 2**62, 0), ValueError, r"k\[0\] must be in 0\.\.20"),
    Bad("k int32 tensor", put("k", torch.tensor([1, 1], dtype=torch.int32)), TypeError, r"k must be.*int64.*int32"),
    Bad("k tensor of three", put("k", torch.tensor([1, 1, 1])), TypeError, r"k must be.*\[2\], got.*\[3\]"),
    Bad("k tensor strided", put("k", torch.tensor([1, 1, 1, 1])[::2]), TypeError, "k must be a contiguous"),
    Bad("k tensor on meta", put("k", torch.ones(2, dtype=torch.int64, device="meta")), ValueError, "k is on meta"),
    Bad("round negative", put("round", -1), ValueError, r"round must be in 0\.\.32765, got -1"),
    Bad("round too large", put("round", 32_766), ValueError, r"round must be in 0\.\.32765, got 32766.*less often"),
    Bad("round float", put("round", 3.0), TypeError, "round must be an int.*float"),
    Bad("round bool", put("round", True), TypeError, "round must be an int.*bool"),
    Bad(
        "round two numbers",
        put("round", torch.tensor([3, 4])),
        TypeError,
        r"round must be an int or a one-element int64.*\[2\]",
    ),
    Bad(
        "round float tensor", put("round", torch.tensor(3.0)), TypeError, "round must be an int or a one-element int64.*float32"
    ),
    Bad("round tensor too large", put("round", torch.tensor(32_766)), ValueError, r"round must be in 0\.\.32765, got 32766"),
    Bad("bonus short", put("bonus", lambda b: b[:-1].clone()), ValueError, r"bonus has 4 entries.*round \+ 2 = 5"),
    Bad("bonus float64", put("bonus", torch.Tensor.double), TypeError, "bonus must be a contiguous 1-D float32"),
    Bad("bonus list", put("bonus", [1.0] * 9), TypeError, "bonus must be a contiguous 1-D float32"),
    Bad("bonus 2-D", put("bonus", torch.ones(5, 1)), TypeError, "bonus must be a contiguous 1-D float32"),
    Bad("bonus strided", put("bonus", torch.ones(10)[::2]), TypeError, "bonus must be a contiguous 1-D float32"),
    Bad("bonus NaN", put("bonus", lambda b: b.index_fill(0, torch.tensor(4), math.nan)), ValueError, "bonus must be >= 0"),
    Bad("bonus negative", put("bonus", lambda b: -b), ValueError, "bonus must be >= 0"),
    Bad("bonus on meta", put("bonus", on_meta), ValueError, "bonus is on meta"),
    Bad("bonus without counts", put("counts", None), ValueError, "bonus given without counts"),
    Bad("grads missing", put("grads", None), ValueError, "grads is None"),
    Bad("grads missing for growth", both(put("grads", None), put("sgd", None)), ValueError, "grads is None"),
    Bad("two signals", both(put("grow_signal", [torch.ones(8, 10)] * 2), put("grow_seeds", [1, 2])), ValueError, "both given"),
    Bad("seeds too few", put("grow_seeds", [1]), ValueError, "grow_seeds.*got 1, expected 2"),
    Bad("seed float", put("grow_seeds", [1, 2.0]), TypeError, r"grow_seeds\[1\] must be an int, got float"),
    Bad("seed bool", put("grow_seeds", [True, 2]), TypeError, r"grow_seeds\[0\] must be an int, got bool"),
    Bad("seed of 65 bits", put("grow_seeds", [1, 2**63]), ValueError, r"grow_seeds\[1\] must fit a signed 64-bit"),
    Bad("lr NaN", rule(lr=float("nan")), ValueError, "learning rate: nan"),
    Bad("lr of two", rule(lr=torch.ones(2)), TypeError, "lr must be a one-element"),
    Bad("lr on meta", rule(lr=torch.ones(1, device="meta")), ValueError, "lr is on meta"),
    Bad("momentum negative", rule(momentum=-1.0), ValueError, "momentum value: -1.0"),
    Bad("nesterov alone", rule(nesterov=True, momentum=0.0), ValueError, "nesterov needs a momentum, got 0.0"),
    Bad("momentum without buffers", put("momenta", None), ValueError, "momenta is None"),
]
for signal in ("drop_scores", "grow_signal"):
    good = [torch.ones(8, 10), torch.ones(8, 10)]
    UPDATE += [
        Bad(f"{signal} no list", put(signal, torch.ones(2, 8, 10)), TypeError, f"{signal} must be a list"),
        Bad(f"{signal} too few", put(signal, good[:1]), ValueError, f"{signal}.*got 1, expected 2"),
        Bad(f"{signal} shape", put(signal, [good[0], torch.ones(80)]), ValueError, rf"{signal}\[1\] has shape \[80\]"),
        Bad(f"{signal} half", put(signal, [good[0].half(), good[1]]), TypeError, rf"{signal}\[0\].*float16.*float32"),
        Bad(f"{signal} order", put(signal, [good[0], turned(good[1])]), ValueError, rf"{signal}\[1\] has strides"),
        Bad(f"{signal} on meta", put(signal, [good[0], on_meta(good[1])]), ValueError, rf"{signal}\[1\] is on meta"),
    ]


def good_step() -> Arguments:
    mask = torch.arange(80).view(8, 10) % 4 == 0
    value = torch.linspace(-1, 1, 80).view(8, 10)
    return dict(
        params=[value * mask, 2 * value * mask], grads=[value + 1, value - 1], momenta=[3 * value * mask, value * mask],
        mask_bits=[encoding.pack_bits(mask.view(-1)) for _ in range(2)], lr=0.1, momentum=0.9,
    )  # fmt: skip


def good_update() -> Arguments:
    arguments = good_step()
    sgd = SGDRule(arguments.pop("lr"), arguments.pop("momentum"))
    counts = [torch.zeros(80, dtype=torch.int16) for _ in range(2)]
    return arguments | dict(counts=counts, k=[5, 20], bonus=encoding.bonus_table(1e-3, 1.0, 50, 3), round=3, sgd=sgd)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for v in value:
            yield from tensors_in(v)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def refused(call: Callable[..., Any], arguments: Arguments, bad: Bad) -> None:
    """``call`` raises what ``bad`` says, and neither the good tensors nor the spoilt ones have changed."""
    original = list(tensors_in(arguments))
    bad.change(arguments)
    watched = [t for t in (*original, *tensors_in(arguments)) if not t.is_meta]
    before = [t.to_dense().clone() if t.is_sparse else t.clone() for t in watched]
    with pytest.raises(bad.error, match=bad.text):
        call(**arguments)
    after = [t.to_dense() if t.is_sparse else t for t in watched]
    assert_same_bits(after, before, f"a tensor after: {bad.name}")


@pytest.mark.parametrize("bad", SGD, ids=lambda bad: bad.name)
def test_masked_sgd_refuses(backend: Configuration, bad: Bad) -> None:
    refused(ops.masked_sgd_, good_step(), bad)


@pytest.mark.parametrize("bad", UPDATE, ids=lambda bad: bad.name)
def test_drop_grow_refuses(backend: Configuration, bad: Bad) -> None:
    if bad.name == "k one too large" and backend.backend == "cuda-host":
        # A device cannot be asked for its masks without a sync: its kernels clip a list as they clip a tensor.
        asked, all_of_them = good_update(), good_update()
        asked["k"][1], all_of_them["k"][1] = 21, 20
        ops.drop_grow_(**asked)
        ops.drop_grow_(**all_of_them)
        assert_same_bits(asked["params"] + asked["mask_bits"], all_of_them["params"] + all_of_them["mask_bits"])
        return
    refused(ops.drop_grow_, good_update(), bad)


def test_the_good_arguments_are_good(backend: Configuration) -> None:
    """Otherwise the tables above would prove nothing."""
    for call, arguments in ((ops.masked_sgd_, good_step()), (ops.drop_grow_, good_update())):
        before = [t.clone() for t in arguments["params"]]
        call(**arguments)
        assert not any(torch.equal(a, b) for a, b in zip(arguments["params"], before, strict=True))


def test_an_unknown_backend_is_refused_before_anything_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSTEE_BACKEND", "abacus")
    for call, arguments in ((ops.masked_sgd_, good_step()), (ops.drop_grow_, good_update())):
        refused(call, arguments, Bad("backend", lambda _: None, ValueError, "unknown backend 'abacus'.*native.*reference"))


def test_parameters_without_memory(backend: Configuration) -> None:
    """Meta tensors in every place: the reference has nothing to do there, a forced native backend cannot."""
    arguments = {name: [on_meta(t) for t in v] if isinstance(v, list) else v for name, v in good_step().items()}
    error, text = (TypeError, r"params\[0\] is a meta tensor") if backend.backend == "reference" else (RuntimeError, "meta")
    refused(ops.masked_sgd_, arguments, Bad("all meta", lambda _: None, error, text))


@dataclass
class Wrong:
    """A call of one of the small ops on fresh arguments."""

    name: str
    call: Callable[[], Any]
    error: type[Exception]
    text: str


raw: Any = ops  # wrong types are the point here
BITS, COUNTS, N = torch.zeros(2).byte(), torch.zeros(9).short(), torch.zeros(9).int()
MASK = N.bool()
SMALL = [
    Wrong("pack list", lambda: raw.pack_mask([True]), TypeError, "mask must be a bool tensor, got list"),
    Wrong("pack uint8", lambda: raw.pack_mask(BITS), TypeError, "mask must be a bool tensor, got torch.uint8"),
    Wrong("pack strided", lambda: raw.pack_mask(MASK[::2]), ValueError, "mask with strides.*not dense.*contiguous"),
    Wrong("pack expanded", lambda: raw.pack_mask(MASK.expand(2, 9)), ValueError, "mask with strides.*not dense"),
    Wrong("pack sparse", lambda: raw.pack_mask(MASK.to_sparse()), ValueError, "mask.*not dense"),
    Wrong("unpack list", lambda: raw.unpack_mask([1], [8]), TypeError, "mask_bits must be a tensor, got list"),
    Wrong("unpack int8", lambda: raw.unpack_mask(BITS.char(), [9]), TypeError, "mask_bits.*int8.*uint8"),
    Wrong("unpack too large", lambda: raw.unpack_mask(BITS, [17]), ValueError, r"mask_bits.*\[2\], expected \[3\]"),
    Wrong("unpack too small", lambda: raw.unpack_mask(BITS, [2, 4]), ValueError, r"mask_bits.*\[2\], expected \[1\]"),
    Wrong("unpack strided", lambda: raw.unpack_mask(torch.zeros(4).byte()[::2], [9]), ValueError, "mask_bits.*contiguous"),
    Wrong("unpack negative", lambda: raw.unpack_mask(BITS, [-9]), ValueError, r"shape must have no negative.*\[-9\]"),
    Wrong("unpack number", lambda: raw.unpack_mask(BITS, 9), TypeError, "shape must be"),
    Wrong("unpack text", lambda: raw.unpack_mask(BITS, ["9"]), TypeError, "shape must be"),
    Wrong("encode list", lambda: raw.encode_counts([0], MASK, 0), TypeError, "N must be an integer tensor, got list"),
    Wrong("encode float", lambda: raw.encode_counts(N.float(), MASK, 0), TypeError, "N must be an integer tensor.*float32"),
    Wrong("encode bool", lambda: raw.encode_counts(MASK, MASK, 0), TypeError, "N must be an integer tensor.*bool"),
    Wrong("encode complex", lambda: raw.encode_counts(N.to(torch.cfloat), MASK, 0), TypeError, "N must be.*complex"),
    Wrong("encode uint8 mask", lambda: raw.encode_counts(N, N.byte(), 0), TypeError, "mask must be a bool tensor.*uint8"),
    Wrong("encode shapes", lambda: raw.encode_counts(N, MASK.view(3, 3), 0), ValueError, r"mask is \[3, 3\].*expected \[9\]"),
    Wrong("encode order", lambda: raw.encode_counts(N.view(3, 3).t(), MASK.view(3, 3), 0), ValueError, r"mask is.*\(1, 3\)"),
    Wrong("encode strided", lambda: raw.encode_counts(N[::2], MASK[::2], 0), ValueError, "N with strides.*not dense"),
    Wrong("encode meta", lambda: raw.encode_counts(N, on_meta(MASK), 0), ValueError, "mask is.*meta.*cpu"),
    Wrong("encode round", lambda: raw.encode_counts(N, MASK, 32_767), ValueError, r"round must be in 0\.\.32766, got 32767"),
    Wrong("encode round float", lambda: raw.encode_counts(N, MASK, 1.0), TypeError, "round must be an int.*float"),
    Wrong("encode negative N", lambda: raw.encode_counts(N - 1, MASK, 3), ValueError, r"9 values.*0\.\.3 for an inactive"),
    Wrong("encode old N", lambda: raw.encode_counts(N + 4, MASK, 3), ValueError, "N has 9 values that 3 updates do not allow"),
    Wrong("encode active 0", lambda: raw.encode_counts(N, ~MASK, 3), ValueError, r"1\.\.4 for an active one"),
    Wrong("encode active old", lambda: raw.encode_counts(N + 5, ~MASK, 3), ValueError, "N has 9 values"),
    Wrong("encode beyond", lambda: raw.encode_counts(N.long() + 2**32, MASK, 3), ValueError, "N has 9 values"),
    Wrong("decode list", lambda: raw.decode_counts([0], BITS, 0, [9]), TypeError, "counts must be a tensor, got list"),
    Wrong("decode no bits", lambda: raw.decode_counts(COUNTS, None, 0, [9]), TypeError, "mask_bits must be a tensor"),
    Wrong("decode int32", lambda: raw.decode_counts(N, BITS, 0, [9]), TypeError, "counts.*int32.*int16"),
    Wrong("decode shape", lambda: raw.decode_counts(COUNTS, BITS, 0, [3, 4]), ValueError, r"counts.*\[9\], expected \[12\]"),
    Wrong("decode bits", lambda: raw.decode_counts(COUNTS, BITS[:1], 0, [9]), ValueError, r"mask_bits.*\[1\], expected \[2\]"),
    Wrong("decode bits on meta", lambda: raw.decode_counts(COUNTS, on_meta(BITS), 0, [9]), ValueError, "mask_bits.*on meta"),
    Wrong("decode round", lambda: raw.decode_counts(COUNTS, BITS, -1, [9]), ValueError, "round must be in"),
    Wrong("active tensor", lambda: raw.count_active(BITS), TypeError, "mask_bits must be a list"),
    Wrong("active bool", lambda: raw.count_active([BITS, MASK]), TypeError, r"mask_bits\[1\].*bool.*uint8"),
    Wrong("active 2-D", lambda: raw.count_active([BITS.view(1, 2)]), ValueError, r"mask_bits\[0\] has shape \[1, 2\]"),
    Wrong("active mixed", lambda: raw.count_active([BITS, on_meta(BITS)]), ValueError, r"mask_bits\[1\] is on meta"),
    Wrong("explored length", lambda: raw.count_explored([COUNTS], [BITS, BITS]), ValueError, "counts.*got 1, expected 2"),
    Wrong("explored int32", lambda: raw.count_explored([N], [BITS]), TypeError, r"counts\[0\].*int32.*int16"),
    Wrong("explored sizes", lambda: raw.count_explored([COUNTS] * 2, [BITS, BITS[:1]]), ValueError, r"mask_bits\[1\].*\[2\]"),
]  # fmt: skip


@pytest.mark.parametrize("wrong", SMALL, ids=lambda wrong: wrong.name)
def test_the_small_ops_refuse(backend: Configuration, wrong: Wrong) -> None:
    with pytest.raises(wrong.error, match=wrong.text):
        wrong.call()
    assert not any(bool(t.any()) for t in (BITS, MASK, COUNTS, N)), "an argument was changed"
