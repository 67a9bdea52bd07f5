"""The executor of tests/cuda_ptx: what it reports of faulty programs, how weakly it orders global memory, what it counts, and
what it refuses to load."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from cuda_host import build
from support.ptx_programs import program, run

pytestmark = [
    pytest.mark.cuda_ptx,
    pytest.mark.skipif(bool(build.why_not()), reason=build.why_not() or "there is a compiler"),
]

SEEDS = range(4)


@pytest.fixture
def harness() -> Iterator[ModuleType]:
    module = build.load(build.PTX)
    yield module
    module.clear_ptx()


# --- what is reported ----------------------------------------------------------------------------------------------------

OWN = "mov.u32 %r4, fixed; mad.lo.u32 %r4, %r0, 4, %r4; "  # %r4: the thread's own word of shared memory
NEXT = "xor.b32 %r5, %r0, {0}; mov.u32 %r6, fixed; mad.lo.u32 %r6, %r5, 4, %r6; "  # %r6: that of another thread
FIRST = "setp.eq.u32 %p1, %r0, 0; "
# Program, what is added to make it correct in place of "FIX", report. 64 threads, 2 blocks.
FAULTS: dict[str, tuple[str, str, str]] = {
    "a race between warps": (
        f"{OWN}{NEXT.format(32)}st.shared.u32 [%r4], 7; FIX ld.shared.u32 %r9, [%r6];",
        "bar.sync 0;",
        r"`ld.shared.u32 %r9, \[%r6\]`: shared-memory race: reads byte \d+ of shared memory, which thread \d+ writes at `st.sha"
        r"|reads byte \d+ of shared memory, which nothing has written",
    ),
    "a race within a warp": (
        f"{OWN}{NEXT.format(1)}st.shared.u32 [%r4], 7; FIX ld.shared.u32 %r9, [%r6];",
        "bar.warp.sync -1;",
        r"shared-memory race: (reads|writes) byte \d+|which nothing has written",
    ),
    "a race of a write after a read": (
        f"{OWN}{NEXT.format(32)}st.shared.u32 [%r4], 7; bar.sync 0; ld.shared.u32 %r9, [%r6]; FIX st.shared.u32 [%r4], 8;",
        "bar.sync 0;",
        r"shared-memory race: (writes byte \d+ of shared memory, which thread \d+ reads|reads byte \d+ .* writes)",
    ),
    "a race of a byte with a word": (
        "mov.u32 %r4, fixed; add.u32 %r4, %r4, %r0; st.shared.u8 [%r4], %r0; FIX setp.eq.u32 %p1, %r0, 9; "
        "@%p1 st.shared.u32 [fixed+16], 0;",
        "bar.sync 0;",
        r"shared-memory race: writes byte (16|17|18|19) of shared memory, which thread (16|17|18|19|9) writes",
    ),
    "uninitialised shared memory": (
        f"{OWN}FIX ld.shared.u32 %r9, [%r4];",
        "st.shared.u32 [%r4], 1;",
        r"`ld.shared.u32 %r9, \[%r4\]`: reads byte \d+ of shared memory, which nothing has written",
    ),
    "beyond shared memory": (
        f"{OWN}FIX st.shared.u32 [%r4+1024], 1;",
        "sub.u32 %r4, %r4, 1024;",
        r"`st.shared.u32 \[%r4\+1024\], 1`: out of range: byte \d+ of shared memory, of 1024 static",
    ),
    "misaligned shared memory": (
        f"{OWN}add.u32 %r4, %r4, 2; FIX st.shared.u32 [%r4], 1;",
        "sub.u32 %r4, %r4, 2;",
        "a misaligned address in shared memory",
    ),
    "misaligned global memory": (
        "add.u64 %d9, %d1, 4; FIX ld.global.u64 %d8, [%d9];",
        "sub.u64 %d9, %d9, 4;",
        r"block \d, thread \d+: `ld.global.u64 %d8, \[%d9\]`: a misaligned address in global memory: 0x",
    ),
    "a null pointer": ("mov.u64 %d9, 8; FIX ld.global.u64 %d8, [%d9];", "mov.u64 %d9, %d1;", "a null pointer: address 0x8"),
    "beyond the parameters": ("mov.u64 %d9, 16; FIX ld.param.u64 %d8, [%d9];", "mov.u64 %d9, 8;", "bytes of the parameters"),
    "a thread that returns before a barrier": (
        "setp.eq.u32 %p1, %r0, 33; FIX @%p1 ret; bar.sync 0;",
        "setp.eq.u32 %p1, %r0, 99;",
        r"returns while thread \d+ waits at `bar.sync 0`|waits, but threads of the block have returned",
    ),
    "two barriers that meet": (
        f"{FIRST} FIX @%p1 bra OTHER; bar.sync 0; bra END; OTHER: bar.sync 0; END:",
        "setp.eq.u32 %p1, %r0, 99;",
        r"`bar.sync 0`: arrives while thread \d+ waits at `bar.sync 0`",
    ),
    "a lane that does not come": (
        "setp.lt.u32 %p1, %r0, 1; FIX @%p1 bra END; bar.warp.sync -1; END: bar.sync 0;",
        "setp.lt.u32 %p1, %r0, 0;",
        r"`bar.warp.sync -1`: waits, but thread 0 (waits at `bar.sync 0`|has returned)",
    ),
    "a shuffle from a lane that the mask does not name": (
        "setp.ge.u32 %p1, %r0, 16; @%p1 bra END; FIX shfl.sync.idx.b32 %r9, %r0, %r11, 0x1f, 0xffff; END:",
        "mov.u32 %r11, 3;",
        "reads lane 20, which the mask does not name",
    ),
    "a mask without the caller": (
        "FIX vote.sync.any.pred %p2, %p1, %r10;",
        "mov.u32 %r10, -1;",
        "the mask does not name the calling lane",
    ),
    "two blocks that store to one address": (
        f"{FIRST} mov.u64 %d9, %d0; FIX @%p1 st.global.u32 [%d9], 5;",
        "mov.u64 %d9, %d1;",
        r"block \d, thread 0: `@%p1 st.global.u32 \[%d9\], 5`: stores to an address that block \d stored to in the same launch",
    ),
    "a trap": ("setp.lt.u32 %p1, %r0, 99; FIX @%p1 trap;", "setp.gt.u32 %p1, %r0, 99;", "a trap"),
}  # fmt: skip


@pytest.mark.parametrize("lockstep", [True, False], ids=["lockstep", "random"])
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_reported_and_correct_programs_are_not(harness: ModuleType, name: str, lockstep: bool) -> None:
    text, fix, report = FAULTS[name]
    start = "setp.ne.u32 %p1, %r0, %r0; mov.u32 %r10, 0; mov.u32 %r11, 20; "
    for seed in SEEDS:
        run(harness, start + text.replace("FIX", fix), 2, 64, seed=seed, lockstep=lockstep)
        with pytest.raises(RuntimeError, match=report) as fault:
            run(harness, start + text.replace("FIX", ""), 2, 64, seed=seed, lockstep=lockstep)
        assert str(fault.value).startswith("kernel k, block ") and harness.take_report() == str(fault.value)


# --- how weakly global memory is ordered ---------------------------------------------------------------------------------

# Block 0 stores data, then a flag; block 1 waits for the flag and copies the data to its own word. Both have read the data
# before, so that it lies in their caches.
MESSAGE = f"""{FIRST} @!%p1 bra END;
  setp.eq.u32 %p2, %r1, 1; ld.global.u32 %r8, [%d0+128]; @%p2 bra READER;
  st.global.u32 [%d0+128], 42; RELEASE atom.global.exch.b32 %r9, [%d0+192], 1; bra END;
READER: SPIN: atom.global.add.u32 %r9, [%d0+192], 0; setp.eq.u32 %p3, %r9, 0; @%p3 bra SPIN;
  ACQUIRE LOAD %r9, [%d0+128]; st.global.u32 [%d1], %r9; END:"""


def received(
    module: ModuleType, release: str = "", acquire: str = "", load: str = "ld.global.u32", **schedule: bool
) -> set[int]:
    text = MESSAGE.replace("RELEASE", release).replace("ACQUIRE", acquire).replace("LOAD", load)
    runs = [run(module, text, 2, 32, seed=seed, processors=8, **schedule) for seed in range(40)]
    return {int(out[32]) for out in runs}


def test_a_message_needs_fences_on_both_sides(harness: ModuleType) -> None:
    fence = "membar.gl;"
    assert received(harness) == {0, 42}
    assert received(harness, release=fence) == {0, 42}  # the reader's cache is stale
    assert received(harness, acquire=fence) == {0, 42}  # the writer's store is late
    assert received(harness, release=fence, acquire=fence) == {42}
    assert received(harness, release=fence, load="ld.volatile.global.u32") == {42}
    assert received(harness, release="fence.acq_rel.gpu;", acquire="fence.acq_rel.gpu;") == {42}
    assert received(harness, weak=False) == {42}


# --- what is counted -----------------------------------------------------------------------------------------------------


def test_instructions_sectors_and_wavefronts_are_counted(harness: ModuleType) -> None:
    text = f"{OWN} mad.lo.u32 %r6, %r0, 28, %r4; add.u32 %r7, %r0, %r0; and.b32 %r8, %r0, 1; setp.eq.u32 %p1, %r8, 0; "
    text += "st.shared.u32 [%r4], %r0; @%p1 st.global.u32 [%d1], %r0; red.global.add.u32 [%d0], 1;"
    aligned = np.zeros(128, np.uint64)
    start = -aligned.ctypes.data % 256 // 8
    harness.load_ptx(program(text))
    harness.set_ptx_schedule(0, weak=False)
    for _ in range(2):
        harness.launch_ptx("k", 1, 32, 0, aligned[start:].ctypes.data, 1 << 20)
    found = harness.ptx_counts()["k"]
    profile = harness.ptx_profile("k")
    assert (found["launches"], found["blocks"]) == (2, 2)
    assert (
        found["warp_instructions"] == sum(row[3] for row in profile) == 2 * (len(profile) - 1)
    )  # a second ret is never reached
    assert found["thread_instructions"] == 32 * found["warp_instructions"]
    assert sum(found["classes"].values()) == found["warp_instructions"]
    assert found["classes"]["atomic"] == 2 and found["classes"]["shared"] == 2 and found["classes"]["global"] == 2
    assert found["sectors"] == {"load": 0, "store": 16, "atomic": 2}
    assert found["bytes"] == {"load": 0, "store": 2 * 16 * 4, "atomic": 2 * 32 * 4}
    assert found["wavefronts"] == 2
    harness.clear_ptx_counts()
    assert harness.ptx_counts() == {}


@pytest.mark.parametrize(("stride", "wavefronts"), [(4, 1), (8, 2), (12, 1), (32, 8)])
def test_bank_conflicts_take_more_wavefronts(harness: ModuleType, stride: int, wavefronts: int) -> None:
    text = f"mad.lo.u32 %r4, %r0, {stride}, 0; mov.u32 %r5, fixed; add.u32 %r4, %r4, %r5; st.shared.u32 [%r4], 1;"
    run(harness, text)
    assert harness.ptx_counts()["k"]["wavefronts"] == wavefronts


def test_lanes_that_part_come_together_again_in_lockstep(harness: ModuleType) -> None:
    run(harness, f"{FIRST} @%p1 bra SKIP; add.u32 %r4, %r0, 1; SKIP: add.u32 %r5, %r0, 2;")
    counts = {text: (warps, threads) for _, text, _, warps, threads in harness.ptx_profile("k")}
    assert counts["add.u32 %r4, %r0, 1"] == (1, 31)
    assert counts["add.u32 %r5, %r0, 2"] == (1, 32)


def test_instructions_know_their_source_line(harness: ModuleType) -> None:
    text = program(".loc 1 17 3\n add.u32 %r4, %r0, 1;\n.loc 2 9 1, function_name $L__info_string0, inlined_at 1 17 3\n trap;")
    harness.load_ptx(text + '.file 1 "/a//b/one.cu"\n.file 2 "/a/two.cuh"\n')
    sources = {row[1]: row[2] for row in harness.ptx_profile("k")}
    assert sources["add.u32 %r4, %r0, 1"] == "one.cu:17"
    assert sources["ld.param.u64 %d0, [out]"] == ""
    with pytest.raises(RuntimeError, match=r"thread 0: `trap` \(two.cuh:9\): a trap"):
        harness.launch_ptx("k", 1, 1, 0, 1 << 20, 1 << 20)


# --- loading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("frobnicate.u32 %r4, %r5;", "unknown form of an opcode: frobnicate.u32"),
        ("add.rn.ftz.f32 %f4, %f5, %f6;", r"add.rn.ftz.f32"),
        ("ld.global.v8.u32 %r4, [%d0];", r"v8"),
        ("ld.global.mystery.u32 %r4, [%d0];", "unknown modifier .mystery of ld.global.mystery.u32"),
        ("add.u32 %r4, %d5, %r6;", "%d5 is 64 bits, the instruction takes 32 bits"),
        ("add.u32 %r4, %nobody, %r6;", "unknown register %nobody"),
        ("bra NOWHERE;", "unknown label NOWHERE"),
        ("bar.sync 1;", "only barrier 0"),
        ("st.shared.u32 [missing], 1;", "unknown name missing"),
        ("add.u32 %r4, %r5;", "operands"),
    ],
)
def test_what_is_not_known_is_refused_with_its_line(harness: ModuleType, text: str, reason: str) -> None:
    whole = program(f"\n{text}\n")
    line = whole.splitlines().index(text) + 1
    with pytest.raises(RuntimeError, match=rf"PTX line {line}: .*{reason}"):
        harness.load_ptx(whole)


def test_kernels_are_named_as_the_harness_names_them(harness: ModuleType) -> None:
    mangled = {
        "_ZN5dstee4cuda3fooILb1ELi128ELNS_5DtypeE2EEEvPj": "foo<true, 128, 2>",
        "_ZN5dstee4cuda12_GLOBAL__N_13barEPKfi": "bar",
        "_ZN5dstee4cuda3bazILj3EsEEvv": "baz<3, short>",
        "plain": "plain",
    }
    for name, readable in mangled.items():
        assert harness.load_ptx(program("", name)) == [readable]
    with pytest.raises(
        KeyError, match=r"no loaded PTX has a kernel nobody; there are: bar, baz<3, short>, foo<true, 128, 2>, plain"
    ):
        harness.ptx_profile("nobody")
    harness.clear_ptx()
    with pytest.raises(KeyError):
        harness.launch_ptx("plain", 1, 1, 0, 0, 0)


def test_launches_with_wrong_arguments_are_refused(harness: ModuleType) -> None:
    harness.load_ptx(program(""))
    with pytest.raises(ValueError, match="kernel k takes 2 arguments, got 1"):
        harness.launch_ptx("k", 1, 1, 0, 0)
    with pytest.raises(ValueError, match="3 bytes for a parameter of 8"):
        harness.launch_ptx("k", 1, 1, 0, b"abc", 0)
    with pytest.raises(ValueError, match="at least"):
        harness.set_ptx_schedule(0, resident=0)
