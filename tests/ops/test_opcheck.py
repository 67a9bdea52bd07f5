"""torch.library.opcheck of every op: schema, mutation marks, shapes for the compiler, functionalisation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dstee import backends, encoding, ops, reference
from dstee.backends import native
from dstee.testing import Case, assert_same_bits, make_case

OPS = (
    "masked_sgd_", "drop_grow_", "pack_mask", "unpack_mask", "encode_counts", "decode_counts", "count_active",
    "count_explored", "count_outside", "count_below", "global_keep_", "growth_scale", "hashed_noise_", "key_histogram",
)  # fmt: skip


def calls(name: str) -> list[Callable[[], object]]:
    rule = ops.SGDRule(lr=torch.tensor(0.1), momentum=0.9)
    case = make_case(0, [17, 64], density=0.3, round=2, sgd=rule)
    plain = make_case(1, [33], density=0.3, sgd=ops.SGDRule(0.1), counted=False, found_inf=torch.zeros(1))
    packed_step = make_case(3, [33, 9], density=0.3, sgd=rule, packed_momenta=True)
    packed_step.momenta = [torch.ones(int(mask.sum())) for mask in packed_step.masks()]
    packed_update = packed_step.clone()
    uneven = make_case(2, [33, 9], density=0.3, round=2, k_grow=torch.tensor([5, 1]), where=[(7, 3, 9), (0, 9, 9)])
    uneven.options["bonus_scale"], uneven.bonus = torch.ones(2), ops.bonus_table(0.1, 1.0, 10, 2, dtype=torch.float64)
    assert case.counts is not None
    counts, bits = case.counts, case.mask_bits
    mask, N = case.masks()[1], case.N[1]
    table: dict[str, list[Callable[[], object]]] = {
        "masked_sgd_": [case.masked_sgd_, plain.masked_sgd_, packed_step.masked_sgd_],
        "drop_grow_": [case.drop_grow_, plain.drop_grow_, uneven.drop_grow_]
        + ([packed_update.drop_grow_] if dispatched("drop_grow_", "packed_momenta") else []),
        "pack_mask": [lambda: ops.pack_mask(mask)],
        "unpack_mask": [lambda: ops.unpack_mask(bits[1], [8, 8])],
        "encode_counts": [lambda: ops.encode_counts(N, mask, 2)],
        "decode_counts": [lambda: ops.decode_counts(counts[1], bits[1], 2, [8, 8])],
        "count_active": [lambda: ops.count_active(bits)],
        "count_explored": [lambda: ops.count_explored(counts, bits)],
        "count_below": [lambda: ops.count_below(case.params, bits, torch.tensor([0.1, 0.2]))],
        "global_keep_": [
            lambda: ops.global_keep_(None, case.params, case.momenta, bits, counts, 5, round=2),
            lambda: ops.global_keep_(case.grads, case.params, None, bits, None, torch.tensor(5), round=torch.tensor([2])),
        ],
        "growth_scale": [lambda: ops.growth_scale(case.grads or [], bits, torch.tensor([3, 4]), 2)],
        "hashed_noise_": [lambda: ops.hashed_noise((3, 4), 5, 6)],
        "key_histogram": [
            lambda: histogram(case, growth=False, word=2, shift=56),
            lambda: histogram(case, growth=True, word=0, shift=0, where=[(7, 3, 9), (0, 64, 64)], total=[99, 64]),
            lambda: histogram(case, growth=True, word=1, shift=8, drop_from=torch.full((2, 3), 0x3F00_0000)),
        ],
        "count_outside": [lambda: ops.count_outside(case.params, bits)],
    }
    return table[name]


def dispatched(op: str, option: str) -> bool:
    """Whether the kernel of the CPU has the option: the dispatcher chooses by the device alone."""
    return native.load()[0] is None or native.why_not_option(op, torch.device("cpu"), option) is None


def histogram(case: Case, **options: Any) -> torch.Tensor:
    prefix = torch.zeros(len(case.params), 3, dtype=torch.int64)
    given: dict[str, Any] = dict(bonus=case.bonus, round=case.round, prefix=prefix) | options
    return ops.key_histogram(case.params, case.grads, case.mask_bits, case.counts, **given)


def schema_arguments(name: str, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> tuple:
    """What the public function hands to a backend."""
    seen: list[tuple] = []
    spy = backends.Backend("spy", lambda op, device: None, lambda op: lambda *args: seen.append((op, args)))
    with monkeypatch.context() as patch:
        patch.setitem(backends.BACKENDS, "spy", spy)
        with backends.use_backend("spy"):
            call()
    ((op, args),) = seen
    assert op == name
    return args


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native.load()
    for call in calls(name):
        torch.library.opcheck(getattr(torch.ops.dstee, name).default, schema_arguments(name, call, monkeypatch))


def test_the_catalogue_is_complete() -> None:
    """Every op of the library is checked here, and has a reference with the parameters of its schema, in order."""
    names = {key.split("::")[1].split(".")[0] for key in torch._C._dispatch_get_all_op_names() if key.startswith("dstee::")}
    assert names == set(OPS)
    for name in OPS:
        schema = [a.name for a in getattr(torch.ops.dstee, name).default._schema.arguments]
        assert list(inspect.signature(getattr(reference, name)).parameters) == schema


def test_only_what_is_marked_is_written() -> None:
    marked = {
        name: [a.name for a in getattr(torch.ops.dstee, name).default._schema.arguments if a.alias_info is not None]
        for name in OPS
    }
    assert marked.pop("masked_sgd_") == ["params", "momenta"]
    assert marked.pop("drop_grow_") == ["params", "momenta", "mask_bits", "counts"]
    assert marked.pop("global_keep_") == ["params", "momenta", "mask_bits", "counts"]
    assert marked.pop("hashed_noise_") == ["out"]
    assert not any(marked.values())


def test_the_raw_op_runs_inside_a_compiled_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced with fake tensors and functionalised, the op leaves the same bits as called directly."""
    case = make_case(4, [65, 40], density=0.3, round=1, sgd=ops.SGDRule(0.1, 0.9))
    args = schema_arguments("drop_grow_", case.clone().drop_grow_, monkeypatch)
    expected = case.clone()
    expected.drop_grow_()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def update(params, grads, momenta, mask_bits, counts, bonus):
        torch.ops.dstee.drop_grow_(params, grads, momenta, mask_bits, counts, *args[5:9], bonus, *args[10:])
        return params[0] + 1

    with torch.no_grad():
        moved = update(*(*args[:5], args[9]))
    assert_same_bits(args[0], expected.params, "params")
    assert_same_bits(args[3], expected.mask_bits, "mask_bits")
    assert_same_bits(
        moved, encoding.unflat(encoding.flat(expected.params[0]) + 1, expected.params[0]), "what is read afterwards"
    )
