"""What only a GPU can show: no syncs, CUDA graphs, streams, models, errors. Values are compared with the CPU's, bit for bit.

The op suite runs on a GPU too (``native-cuda``, on_gpu.py). Tests named ``small`` also run under compute-sanitizer.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from support import on_gpu
from torch import Tensor, nn

from dstee import backends, encoding, ops
from dstee.backends import native
from dstee.experiments.info import backend_lines
from dstee.testing import DTYPES, Case, assert_same_bits, make_case

on_gpu.skip_or_fail()

DEVICE = on_gpu.DEVICE
SIZES = [257, 0, 4101, 33, 20011]
RULE = ops.SGDRule(0.1, 0.9, weight_decay=5e-4, nesterov=True)
SOURCES = (Path(__file__).resolve().parents[2] / "csrc/cuda").glob("*.cu")
OPS = [name for source in SOURCES for name in re.findall(r'm\.impl\("(\w+)"', source.read_text())]


def on_device(case: Case) -> Case:
    """The case on the GPU, with the same offsets and margins."""
    send = on_gpu.Mirror(DEVICE).send
    moved = {f.name: send(getattr(case, f.name)) for f in fields(case)}
    moved["options"] = {name: send(value) for name, value in case.options.items()}
    if case.sgd is not None:
        moved["sgd"] = replace(case.sgd, lr=send(case.sgd.lr))
    return Case(**moved)


def by_reference(case: Case, call: Callable[[Case], None]) -> Case:
    result = case.clone()
    with backends.use_backend("reference"):
        call(result)
    return result


def assert_same(actual: Case, expected: Case) -> None:
    for name, tensors in expected.lists().items():
        assert_same_bits(actual.lists()[name], tensors, name)


def refill(case: Case, source: Case) -> None:
    """Copies the tensors of ``source`` into those of ``case``, which a graph may know by their addresses."""
    for name, tensors in source.lists().items():
        for to, value in zip(case.lists()[name], tensors, strict=True):
            to.copy_(value)


def capture(call: Callable[[], None]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


STEP, UPDATE = Case.masked_sgd_, Case.drop_grow_
both_calls = pytest.mark.parametrize("call", [STEP, UPDATE], ids=["masked_sgd_", "drop_grow_"])


# --- the kernels are there and used --------------------------------------------------------------------------------------


def test_every_kernel_is_registered() -> None:
    assert {"masked_sgd_", "drop_grow_"} <= set(OPS)
    assert [name for name in OPS if not torch._C._dispatch_has_kernel_for_dispatch_key(f"dstee::{name}", "CUDA")] == []


def test_the_native_backend_is_chosen_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSTEE_BACKEND", raising=False)
    assert backends.resolve("drop_grow_", torch.device(DEVICE)).name == "native"
    info = native.build_info()
    assert info["cuda"] and info["archs"] and not info["why_no_cuda"]
    assert any(line.startswith("native ") and "cuda:0" in line and line.endswith("can run") for line in backend_lines())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", [False, True], ids=["aligned", "odd"])
@both_calls
def test_small_calls(call: Callable[[Case], None], odd: bool, dtype: torch.dtype) -> None:
    case = make_case(3, SIZES, dtype=dtype, odd=odd, round=40, sgd=RULE)
    actual = on_device(case)
    call(actual)
    assert_same(actual, by_reference(case, call))


@pytest.mark.parametrize("family", ["equal", "zeros", "absorbed", "structured", "nonfinite"])
def test_small_updates(family: str) -> None:
    case = make_case(4, SIZES, family=family, round=3)
    actual = on_device(case)
    actual.drop_grow_()
    assert_same(actual, by_reference(case, UPDATE))


def test_small_conversions() -> None:
    case = make_case(5, [1029], round=7)
    (mask,), (N,) = case.masks(), case.N
    bits, counts = ops.pack_mask(mask.to(DEVICE)), ops.encode_counts(N.to(DEVICE), mask.to(DEVICE), 7)
    assert_same_bits(bits, case.mask_bits[0], "bits")
    assert_same_bits(ops.unpack_mask(bits, [1029]), mask, "mask")
    assert_same_bits(ops.decode_counts(counts, bits, 7, [1029]), N, "N")
    assert ops.count_active([bits]).tolist() == [int(mask.sum())]
    assert ops.count_explored([counts], [bits]).tolist() == [int((N > 0).sum())]


def test_the_reference_runs_on_a_gpu_to_the_same_bits() -> None:
    case = make_case(6, SIZES, round=40, sgd=RULE)
    for call in (STEP, UPDATE):
        assert_same(by_reference(on_device(case), call), by_reference(case, call))


# --- no syncs ------------------------------------------------------------------------------------------------------------


def in_device_memory(case: Case) -> Case:
    """lr, grad_scale and found_inf in tensors, and k."""
    assert case.sgd is not None
    options = case.options | {"found_inf": torch.zeros(())}
    rule = replace(case.sgd, lr=torch.tensor(0.1))
    return replace(case, sgd=rule, grad_scale=torch.tensor(2.0), options=options, k=torch.tensor(case.k))


@both_calls
def test_calls_do_not_sync(call: Callable[[Case], None]) -> None:
    plain = make_case(8, SIZES, round=9, sgd=RULE)
    cases = [on_device(plain), on_device(in_device_memory(plain))]
    with on_gpu.no_syncs():
        for case in cases:
            call(case)  # the first call, which uploads, included
            call(case)


@both_calls
def test_calls_return_before_the_gpu_is_done(call: Callable[[Case], None]) -> None:
    """The debug mode sees torch's own syncs only; this one sees all."""
    case = on_device(make_case(8, SIZES, round=9, sgd=RULE))
    call(case)  # memory and table are there
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(400_000_000)  # a fifth of a second
    busy.record()
    call(case)
    assert not busy.query(), "the call has waited for the GPU"


def test_reading_masks_does_not_sync() -> None:
    bits, counts = torch.zeros(5, dtype=torch.uint8, device=DEVICE), torch.zeros(40, dtype=torch.int16, device=DEVICE)
    with on_gpu.no_syncs():
        ops.unpack_mask(bits, [40])
        ops.pack_mask(torch.zeros(40, dtype=torch.bool, device=DEVICE))
        ops.decode_counts(counts, bits, 3, [40])
        ops.count_active([bits])
        ops.count_explored([counts], [bits])


# --- CUDA graphs ---------------------------------------------------------------------------------------------------------


@both_calls
def test_a_graph_follows_what_lies_in_device_memory(call: Callable[[Case], None]) -> None:
    case = in_device_memory(make_case(9, SIZES, round=50, sgd=RULE))
    case = replace(case, round=torch.tensor([50]), bonus=encoding.bonus_table(1e-2, 1.0, 1000, 60))
    graphed = on_device(case)
    graph = capture(lambda: call(graphed))
    refill(graphed, case)
    for i in range(4):
        other = make_case(20 + i, SIZES, family=["normal", "equal", "structured", "dead_units"][i], round=50)
        bonus, round = encoding.bonus_table(10.0 ** -(i + 2), 1.0, 1000 * (i + 1), 60), torch.tensor([50 + i])
        lr, found_inf = torch.tensor(0.05 * (i + 1)), torch.tensor(float(i == 2))
        k = torch.tensor([n // (10 * (i + 1)) for n in SIZES])
        # Eager on the CPU, from the state that the last replay left
        assert case.sgd is not None and graphed.sgd is not None and case.bonus is not None and graphed.bonus is not None
        case = replace(case, grads=other.grads, bonus=bonus, k=k, round=round, sgd=replace(case.sgd, lr=lr))
        case.options["found_inf"] = found_inf
        for to, value in (
            (graphed.bonus, bonus), (graphed.k, k), (graphed.round, round), (graphed.sgd.lr, lr),
            (graphed.options["found_inf"], found_inf), *zip(graphed.grads or [], other.grads or [], strict=True),
        ):  # fmt: skip
            assert isinstance(to, Tensor)
            to.copy_(value)
        graph.replay()
        case = by_reference(case, call)
        assert_same(graphed, case)


def many_models() -> list[Case]:
    """More layer lists than tables are kept of, all alive at once."""
    return [on_device(make_case(100 + i, [64 + i, 300], round=2, sgd=RULE)) for i in range(60)]


@both_calls
def test_a_graph_outlives_many_other_models(call: Callable[[Case], None]) -> None:
    case = make_case(10, SIZES, round=4, sgd=RULE)
    graphed = on_device(case)
    graph = capture(lambda: call(graphed))
    refill(graphed, case)
    for other in many_models():
        call(other)
    rubbish = [torch.full((size,), 0xFF, dtype=torch.uint8, device=DEVICE) for size in (512, 1024, 2048, 4096, 8192) * 100]
    graph.replay()
    assert_same(graphed, by_reference(case, call))
    del rubbish


# --- streams and models --------------------------------------------------------------------------------------------------


def test_two_models_on_two_streams() -> None:
    cases = [make_case(30 + i, SIZES, round=6, sgd=RULE, family=f) for i, f in enumerate(["normal", "absorbed"])]
    actual, streams = [on_device(case) for case in cases], [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for call in (STEP, UPDATE, STEP, STEP):
        for case, stream in zip(actual, streams, strict=True):
            with torch.cuda.stream(stream):
                call(case)
    torch.cuda.synchronize()
    for case, result in zip(cases, actual, strict=True):
        for call in (STEP, UPDATE, STEP, STEP):
            case = by_reference(case, call)
        assert_same(result, case)


@both_calls
def test_a_call_that_waits_keeps_what_it_needs(call: Callable[[Case], None]) -> None:
    """Queued on one stream behind a long kernel, while another stream calls for many models and fills the memory."""
    case = make_case(33, SIZES, round=6, sgd=RULE)
    actual, others, stream = on_device(case), many_models(), torch.cuda.Stream()
    call(actual)  # on the default stream
    refill(actual, case)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(400_000_000)
        call(actual)
    for other in others:
        call(other)
    rubbish = [torch.full((size,), 0xFF, dtype=torch.uint8, device=DEVICE) for size in (512, 1024, 2048, 4096, 8192) * 100]
    torch.cuda.synchronize()
    assert_same(actual, by_reference(case, call))
    del rubbish


# --- errors --------------------------------------------------------------------------------------------------------------


@both_calls
def test_calls_after_an_exception(call: Callable[[Case], None]) -> None:
    case = make_case(40, SIZES, round=6, sgd=RULE)
    actual = on_device(case)
    for _ in range(3):
        for name in ("grads", "momenta", "mask_bits"):
            tensors = list(getattr(actual, name))
            tensors[2] = tensors[2].cpu()
            with pytest.raises(ValueError, match=rf"{name}\[2\] is on cpu, expected cuda:0 as params\[2\]"):
                call(replace(actual, **{name: tensors}))
        assert_same(actual, case)
        call(actual)
        case = by_reference(case, call)
        assert_same(actual, case)


def test_layers_on_two_devices() -> None:
    case = make_case(41, [40, 50], sgd=RULE)
    actual = on_device(case)
    with pytest.raises(ValueError, match=r"params\[1\] is on cpu, expected cuda:0: one call takes one device"):
        replace(actual, params=[actual.params[0], case.params[1]]).masked_sgd_()
    with pytest.raises(ValueError, match=r"params\[1\] is on cuda:0, expected cpu: one call takes one device"):
        replace(case, params=[case.params[0], actual.params[1]]).masked_sgd_()
    for name, value in (("found_inf", torch.zeros(())), ("bonus", case.bonus)):
        changed = replace(actual, options={"found_inf": value}) if name == "found_inf" else replace(actual, bonus=value)
        with pytest.raises(ValueError, match=f"{name} is on cpu, expected cuda:0 as the parameters"):
            changed.drop_grow_()
    assert_same(actual, case)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@both_calls
def test_layers_on_two_gpus(call: Callable[[Case], None]) -> None:
    case = make_case(41, [40, 50], sgd=RULE)
    actual = on_device(case)
    for name in ("grads", "momenta", "mask_bits"):
        tensors = list(getattr(actual, name))
        tensors[1] = tensors[1].to("cuda:1")
        with pytest.raises(ValueError, match=rf"{name}\[1\] is on cuda:1, expected cuda:0 as params\[1\]"):
            call(replace(actual, **{name: tensors}))
    assert_same(actual, case)


@both_calls
def test_mask_bits_behind_the_last_weight_touch_nothing(call: Callable[[Case], None]) -> None:
    """Nobody can refuse them without a sync; so no kernel may follow them out of the layer."""
    case = make_case(42, [13, 4099], round=1, sgd=RULE, odd=True)
    bits = case.clone()
    for b in bits.mask_bits:
        b[-1] |= 0x80
    mirror = on_gpu.Mirror(DEVICE)
    call(Case(**{f.name: mirror.send(getattr(bits, f.name)) for f in fields(bits)}))
    mirror.bring_back()
    bits.assert_margins()


def test_autograd_notices_the_write() -> None:
    w = nn.Parameter(torch.arange(1.0, 21, device=DEVICE))
    loss = (w * w).sum()
    ops.masked_sgd_([w], [torch.ones(20, device=DEVICE)], None, [ops.pack_mask(torch.ones_like(w, dtype=torch.bool))], lr=0.25)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- size ----------------------------------------------------------------------------------------------------------------


@both_calls
def test_offsets_beyond_32_bits(call: Callable[[Case], None]) -> None:
    """All that happens lies in the last 4096 weights of a layer of 2^31; so that the reference needs those alone."""
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GB of GPU memory")
    n, tail = 2**31 + 4096, 4096
    case = make_case(50, [tail], dtype=torch.bfloat16, counted=False, sgd=RULE)
    large = copy.copy(case)
    for name, tensors in case.lists().items():
        small = tensors[0]
        whole = torch.zeros(n if small.numel() == tail else n // 8, dtype=small.dtype, device=DEVICE)
        whole[-small.numel() :] = small.to(DEVICE)
        setattr(large, name, [whole])
    call(large)
    expected = by_reference(case, call)
    for name, tensors in expected.lists().items():
        assert_same_bits(large.lists()[name][0][-tensors[0].numel() :], tensors[0], name)
        assert not bool(large.lists()[name][0][: -tensors[0].numel()].any()), f"{name} changed elsewhere"
