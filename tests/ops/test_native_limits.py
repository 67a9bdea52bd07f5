"""What a kernel must survive besides odd numbers: broken masks, freed storage, threads, unaligned memory, no memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import on_gpu
from torch import Tensor

from dstee import backends, encoding, ops
from dstee.backends import native
from dstee.testing import Configuration, assert_same_bits, make_case

NO_NATIVE = "" if native.load()[0] else native.load()[1]
needs_native = pytest.mark.skipif(bool(NO_NATIVE), reason=NO_NATIVE)


def layer(n: int, seed: int = 0) -> dict[str, Any]:
    """One layer, its mask a tenth full."""
    torch.manual_seed(seed)
    mask = torch.rand(n) < 0.1
    w = torch.where(mask, torch.randn(n), torch.zeros(()))
    return dict(params=[w], grads=[torch.randn(n)], momenta=None, mask_bits=[encoding.pack_bits(mask)], counts=None,
                k=[int(mask.sum()) // 3], bonus=None, round=0)  # fmt: skip


def refuses(arguments: dict[str, Any], text: str) -> None:
    before = [t.clone() for name in ("params", "mask_bits") for t in arguments[name]]
    with pytest.raises(ValueError, match=text):
        ops.drop_grow_(**arguments)
    assert_same_bits([t for name in ("params", "mask_bits") for t in arguments[name]], before, "refused arguments")


def test_mask_bits_behind_the_last_weight_are_refused(backend: Configuration) -> None:
    """A kernel would take them for active weights and write there."""
    if backend.backend == on_gpu.NAME:
        return  # nobody looks into a GPU's memory before the launch: test_cuda.py
    arguments = layer(13) | dict(k=[1])
    arguments["mask_bits"][0][1] |= 0x20
    refuses(arguments, r"mask_bits\[0\] has bits set behind the last weight")
    with pytest.raises(ValueError, match=r"mask_bits\[0\] has bits set"):
        ops.masked_sgd_(arguments["params"], arguments["grads"], None, arguments["mask_bits"], lr=0.1)


def test_freed_storage_is_refused(backend: Configuration) -> None:
    """Sharding wrappers resize a parameter's storage to 0 and leave its shape."""
    arguments = layer(100)
    arguments["grads"][0].untyped_storage().resize_(0)
    refuses(arguments, r"grads\[0\] has no memory")


def test_signals_that_are_written_elsewhere_are_refused(backend: Configuration) -> None:
    one, two, buffer = layer(80), layer(80, seed=1), torch.zeros(81)
    names = ("params", "grads", "mask_bits", "k")
    both = one | {name: one[name] + two[name] for name in names}
    refuses(both | dict(drop_scores=both["params"][::-1]), r"drop_scores\[0\] and params\[1\] share storage")
    shifted = one | dict(params=[buffer[:80]], grow_signal=[buffer[1:]])
    refuses(shifted, r"grow_signal\[0\] and params\[0\] share storage")
    ops.drop_grow_(**(both | dict(drop_scores=both["params"], grow_signal=both["grads"])))


@pytest.fixture
def flushed() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    yield
    torch.set_flush_denormal(False)


@needs_native
@pytest.mark.parametrize("tight_bounds", [False, True])
def test_tiny_scores_where_the_caller_flushes_denormals(flushed: None, tight_bounds: bool) -> None:
    """Every thread scores alike; else the scan for the last equal candidate finds none and runs out of the layer."""
    n, k, module = 70_000, 300, native.load()[0]
    assert module is not None
    w = (torch.arange(n) < 1000).float()
    tiny = torch.full((n,), 71_362, dtype=torch.int32).view(torch.float32)  # bits: as a number it would be flushed
    bonus = torch.full((2,), 7136, dtype=torch.int32).view(torch.float32)
    bits = encoding.pack_bits(w > 0)
    module.set_test_limits(tight_bounds=tight_bounds)
    try:
        with backends.use_backend("native"):
            ops.drop_grow_([w], [tiny], None, [bits], [torch.zeros(n, dtype=torch.int16)], [k], bonus=bonus, round=0)
    finally:
        module.set_test_limits()
    assert_same_bits(encoding.unpack_bits(bits, n), torch.arange(n) < 1000, "all equal: the lowest indices win")


def unaligned(t: Tensor) -> Tensor:
    """The same values one byte off."""
    memory = bytearray(t.numel() * t.element_size() + 1)
    out = torch.frombuffer(memory, dtype=t.dtype, offset=1)
    return out.copy_(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unaligned_weights(backend: Configuration, dtype: torch.dtype) -> None:
    apart = layer(40_009) | dict(sgd=ops.SGDRule(0.1, weight_decay=0.01))
    for name in ("params", "grads"):
        apart[name] = [t.to(dtype) for t in apart[name]]
    odd = apart | {name: [unaligned(t) for t in apart[name]] for name in ("params", "grads", "mask_bits")}
    if backend.backend == "cuda-host":  # no GPU reads numbers there
        before = [t.clone() for t in odd["params"]]
        with pytest.raises(RuntimeError, match="does not start at a multiple of its element size: clone it"):
            ops.drop_grow_(**odd)
        with pytest.raises(RuntimeError, match="multiple of its element size"):
            ops.masked_sgd_(odd["params"], odd["grads"], None, odd["mask_bits"], lr=0.1)
        assert_same_bits(odd["params"], before)
        return
    ops.drop_grow_(**odd)
    ops.drop_grow_(**apart)
    for name in ("params", "mask_bits"):
        assert_same_bits(odd[name], apart[name], name)


@needs_native
def test_ties_are_not_all_listed() -> None:
    """Most gradients 0, as behind dead units, and no bonus: the ties are found by index, not by a list of the layer."""
    n, module = 200_003, native.load()[0]
    assert module is not None
    arguments = layer(n)
    arguments["grads"][0][torch.rand(n) < 0.99] = 0
    expected = {name: [t.clone() for t in arguments[name]] for name in ("params", "mask_bits")}
    with backends.use_backend("reference"):
        ops.drop_grow_(**(arguments | expected))
    with backends.use_backend("native"):
        ops.drop_grow_(**arguments)
    assert_same_bits(arguments["mask_bits"], expected["mask_bits"], "mask")
    assert module.last_stats()["list_entries"] < n // 4


@needs_native
@pytest.mark.parametrize("regrow", [True, False], ids=["regrow", "no regrow"])
@pytest.mark.parametrize("reset", [False, True], ids=["keep", "reset"])
@pytest.mark.parametrize("counted", [True, False], ids=["bonus", "no bonus"])
@pytest.mark.parametrize("isa", native.build_info().get("cpu_features", []))
def test_growth_into_ties_needs_no_scans(isa: str, counted: bool, reset: bool, regrow: bool) -> None:
    """Fewer gradients than growth wants are not 0, as in layers behind dead units: the rest of the selected is the first of
    the zeros, dropped weights among them, and the layer is not scanned eight times for that."""
    module = native.load()[0]
    assert module is not None
    for share in (0.97, 0.995, 1.0):
        arguments = layer(140_009, seed=int(1000 * share))
        n = arguments["params"][0].numel()
        zero = torch.rand(n) < share
        arguments["grads"][0][zero] = 0
        arguments["grads"][0][~zero] = arguments["grads"][0][~zero].abs() + 1e-3
        arguments |= dict(momenta=[arguments["params"][0] * 0.5], regrow=regrow, reset_regrown=reset, round=4)
        if counted:
            mask = encoding.unpack_bits(arguments["mask_bits"][0], n)
            N = torch.where(mask, torch.randint(1, 6, (n,)), torch.randint(0, 5, (n,)) * (torch.rand(n) < 0.05))
            arguments |= dict(counts=[encoding.flip_counts(N, mask, 4).short()], bonus=encoding.bonus_table(1e-4, 1.0, 90, 4))
        names = [name for name in ("params", "momenta", "mask_bits", "counts") if arguments[name] is not None]
        expected = {name: [t.clone() for t in arguments[name]] for name in names}
        with backends.use_backend("reference"):
            ops.drop_grow_(**(arguments | expected))
        module.force_isa(isa)
        try:
            with backends.use_backend("native"):
                ops.drop_grow_(**arguments)
        finally:
            module.force_isa("auto")
        for name in names:
            assert_same_bits(arguments[name], expected[name], f"{share:.1%} zeros: {name}")
        assert module.last_stats()["fallback_layers"] == 0


@needs_native
@pytest.mark.parametrize("regrow", [True, False], ids=["regrow", "no regrow"])
def test_ties_late_in_a_layer_are_listed_up_to_the_last_selected(regrow: bool) -> None:
    arguments = layer(200_003, seed=3) | {"regrow": regrow}
    n = arguments["params"][0].numel()
    arguments["grads"][0][n // 2 :] = 0.5
    expected = {name: [t.clone() for t in arguments[name]] for name in ("params", "mask_bits")}
    with backends.use_backend("reference"):
        ops.drop_grow_(**(arguments | expected))
    with backends.use_backend("native"):
        ops.drop_grow_(**arguments)
    for name in ("params", "mask_bits"):
        assert_same_bits(arguments[name], expected[name], name)
    module = native.load()[0]
    assert module is not None
    assert module.last_stats()["fallback_layers"] == 0 and module.last_stats()["list_entries"] < n // 4


@needs_native
@pytest.mark.parametrize("limits", [{}, {"tight_bounds": True}, {"list_share": 0.0}, {"list_share": 0.4}], ids=str)
@pytest.mark.parametrize("share", [0.3, 0.97])
@pytest.mark.parametrize("value", [0.0, torch.inf])
def test_ties_of_extreme_values_are_exact(value: float, share: float, limits: dict[str, float]) -> None:
    """Nothing is better than Inf, so a list above these ties would be empty; and a faulty bound must not be believed."""
    module = native.load()[0]
    assert module is not None
    first, second = layer(70_001, seed=1), layer(140_009, seed=2)
    arguments = first | {name: first[name] + second[name] for name in ("params", "grads", "mask_bits", "k")}
    for g in arguments["grads"]:
        g[torch.rand(g.numel()) < share] = value
    expected = {name: [t.clone() for t in arguments[name]] for name in ("params", "mask_bits")}
    with backends.use_backend("reference"):
        ops.drop_grow_(**(arguments | expected))
    module.set_test_limits(**limits)
    try:
        with backends.use_backend("native"):
            ops.drop_grow_(**arguments)
    finally:
        module.set_test_limits()
    for name in ("params", "mask_bits"):
        assert_same_bits(arguments[name], expected[name], name)


@needs_native
def test_calls_from_several_threads_at_once() -> None:
    cases = [make_case(seed, [70_001, 4097], density=0.1, round=2, sgd=ops.SGDRule(0.1, 0.9)) for seed in range(4)]
    alone = [case.clone() for case in cases]
    for case in alone:
        case.drop_grow_()
    for _ in range(5):
        together = [case.clone() for case in cases]
        threads = [threading.Thread(target=case.drop_grow_) for case in together]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for a, b in zip(alone, together, strict=True):
            for name, tensors in a.lists().items():
                assert_same_bits(b.lists()[name], tensors, name)


OUT_OF_MEMORY = """
import resource, torch
from dstee import encoding, ops
torch.set_num_threads(1)
n = 1 << 22
w = torch.randn(n)
bits = encoding.pack_bits(w > 0)
w *= w > 0
tensors = [w, bits]
before = [t.clone() for t in tensors]
grads = [torch.randn(n)]
ops.masked_sgd_([w.clone()], grads, None, [bits], lr=0.1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20),) * 2)
try:
    ops.drop_grow_([w], grads, None, [bits], None, [1 << 20], bonus=None, round=0, sgd=ops.SGDRule(0.1))
except MemoryError:
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))
    print("untouched")
"""


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory through Linux's resource limits")
def test_no_memory_for_the_lists_changes_nothing() -> None:
    run = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, timeout=120)
    assert run.stdout == "untouched\n", run.stderr
