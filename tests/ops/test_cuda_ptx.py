"""The kernels as nvcc compiled them: their bits are the reference's, and faults planted in their PTX are noticed."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cuda_host import build
from cuda_host.backend import compare
from cuda_ptx import backend, compile
from cuda_ptx.backend import PtxConfiguration
from support.ptx_edits import EditError, Edits, edited

from dstee import ops
from dstee.testing import Case, make_case

pytestmark = [
    pytest.mark.cuda_ptx,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(bool(backend.why_not()), reason=backend.why_not() or "there is nvcc"),
]

RULE = ops.SGDRule(lr=0.05, momentum=0.9, weight_decay=5e-4)


@dataclass(frozen=True)
class Fault:
    """An edit of one kernel. report: what the executor says of it; None: nothing, the bits differ or a wild address ends the
    process."""

    kernel: str
    edits: Edits
    report: str | None
    which: int | None = None
    case: str = "large"
    file: str = "drop_grow.cu"


def remove(pattern: str) -> Edits:
    return ((rf"\n\s*{pattern}[^\n]*;", ""),)


FENCE, BARRIER, WARP_BARRIER = r"membar\.gl", r"bar\.sync\s+0", r"bar\.warp\.sync"
RACE, BITS = "shared-memory race|which nothing has written", None
FAULTS = {
    "fences of select_drop removed": Fault("select_drop_kernel", remove(FENCE), BITS, case="shared"),
    "barriers of the sweep removed": Fault("sweep_kernel", remove(BARRIER), RACE),
    "barriers of select_grow removed": Fault("select_grow_kernel", remove(BARRIER), RACE, case="ties"),
    "the first barrier of a small layer removed": Fault("sample_kernel", remove(BARRIER), RACE, which=0, case="small"),
    "warp barriers of the sweep removed": Fault("sweep_kernel", remove(WARP_BARRIER), RACE),
    "a thread that returns before a barrier": Fault(
        "sweep_kernel",
        ((r"\n(\s*bar\.sync\s+0;)", r"\n\tmov.u32 %r1, %tid.x;\n\tsetp.eq.u32 %p1, %r1, 0;\n\t@%p1 ret;\n\1"),),
        "bar.sync",
    ),
    "a count in shared memory without an atomic": Fault(
        "sweep_kernel",
        ((r"atom\.shared\.add\.u32\s+(%r\d+), (\[[^\]]+\]), 1;", r"ld.shared.u32 \1, \2;\n\tst.shared.u32 \2, \1;"),),
        RACE,
    ),
    "a shuffle that a lane does not take part in": Fault(
        "sample_kernel", ((r"(shfl\.sync\.up\.b32[^;]*), %r\d+;", r"\1, 2147483647;"),), "shfl", case="small"
    ),
    "shared memory that nothing sets to 0": Fault(
        "sample_kernel", ((r"\n[^\n]*st\.shared\.u32\s+\[\w+\+\d+\], %r\d+;", ""),), "which nothing has written", case="small"
    ),
    "a swapped comparison": Fault("commit_kernel", ((r"setp\.gt\.s32", "setp.lt.s32"),), BITS),
    "another swapped comparison": Fault("select_grow_kernel", ((r"setp\.(l|g)t\.u64", r"setp.\1e.u64"),), BITS, case="ties"),
    "an address off by one byte": Fault(
        "sweep_kernel", ((r"st\.global\.u64\s+\[(%rd\d+)\]", r"st.global.u64 [\1+1]"),), "misaligned"
    ),
    "an address off by one element": Fault(
        "commit_kernel", ((r"st\.global\.u16\s+\[(%rd\d+)\]", r"st.global.u16 [\1+2]"),), BITS
    ),
    "an address outside of the block's shared memory": Fault(
        "sweep_kernel", ((r"(st\.shared\.u32\s+\[%r\d+)(?:\+\d+)?\]", r"\1+100000]"),), "shared memory"
    ),
    "an update of a mask that is not atomic": Fault(
        "commit_kernel", ((r"atom(?:\.global)?\.xor\.b32\s+%r\d+, (\[%rd\d+\]), (%r\d+);", r"st.u32 \1, \2;"),), BITS
    ),
}  # fmt: skip


def case_of(name: str) -> Case:
    options: dict[str, Any] = {
        "small": dict(sizes=[5000], sgd=RULE),
        "large": dict(sizes=[40009], density=0.1, sgd=RULE),
        "ties": dict(sizes=[70001], family="few_valued", density=0.3),
        "shared": dict(sizes=[300001], family="few_valued", density=0.3),
        "many": dict(sizes=[16385] * 24, family="few_valued", density=0.3),
    }[name]
    return make_case(5, options.pop("sizes"), round=9, **options)


@dataclass(frozen=True)
class EditedConfiguration(PtxConfiguration):
    """text: PTX whose kernels take the place of those of the same name."""

    text: str = ""

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with super().active():
            if self.text:
                build.load(self.variant).load_ptx(self.text)
            yield


def configuration(case: str, seed: int) -> EditedConfiguration:
    return EditedConfiguration(seed=seed, processors=10 if case in ("shared", "many") else 0)


SEEDS = range(4)


def symptom(fault: Fault, text: str) -> tuple[str, str]:
    """The first exception's class and text over some schedules; ("", "") without one."""
    case = case_of(fault.case)
    for seed in SEEDS:
        try:
            compare(case, replace(configuration(fault.case, seed), text=text))
        except (RuntimeError, AssertionError) as error:
            return type(error).__name__, str(error)
    return "", ""


def in_a_child(fault: Fault, text: str) -> tuple[str, str]:
    """:func:`symptom` in a process of its own, which a fault may crash or keep from ending."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        faulthandler.disable()  # a crash is what is waited for
        sender.send(symptom(fault, text))

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(60) else ("TimeoutError", "the kernels do not end")
    except EOFError:
        return "AssertionError", "the processes' ends differ"
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(name: str) -> None:
    fault = FAULTS[name]
    text = edited(compile.ptx_of(fault.file), fault.kernel, fault.edits, fault.which)
    build.load(build.PTX)
    kind, said = in_a_child(fault, text)
    if fault.report is None:
        assert kind == "AssertionError" and "differ" in said, f"{kind}: {said}"
    else:
        assert kind == "RuntimeError" and fault.kernel in said and re.search(fault.report, said), f"{kind}: {said}"


@pytest.mark.parametrize("name", ["small", "large", "ties", "shared", "many"])
def test_nothing_is_said_of_what_nvcc_wrote(name: str) -> None:
    for seed in SEEDS:
        compare(case_of(name), configuration(name, seed))


def test_an_edit_that_finds_nothing_is_an_error() -> None:
    text = compile.ptx_of("pack_mask.cu")
    with pytest.raises(EditError, match="no entry sweep_kernel"):
        edited(text, "sweep_kernel", remove(FENCE))
    with pytest.raises(EditError, match="no match None of"):
        edited(text, "pack_mask_kernel", remove(FENCE))
    with pytest.raises(EditError, match="no match 9 of"):
        edited(text, "pack_mask_kernel", ((r"st\.global", "st.global"),), which=9)
