"""The executor of tests/cuda_ptx: what the opcodes of PTX compute, against Python and numpy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
from cuda_host import build
from support.ptx_programs import run

pytestmark = [
    pytest.mark.cuda_ptx,
    pytest.mark.skipif(bool(build.why_not()), reason=build.why_not() or "there is a compiler"),
]

SEEDS = range(4)
INPUTS = """
  ld.global.u64 %d4, [%d3]; ld.global.u64 %d5, [%d3+8]; ld.global.u64 %d6, [%d3+16];
  cvt.u32.u64 %r4, %d4; cvt.u32.u64 %r5, %d5; cvt.u32.u64 %r6, %d6;
  cvt.u16.u64 %h4, %d4; cvt.u16.u64 %h5, %d5; cvt.u16.u64 %h6, %d6;
  mov.b32 %f4, %r4; mov.b32 %f5, %r5; mov.b32 %f6, %r6; mov.b64 %g4, %d4; mov.b64 %g5, %d5;
  setp.lt.u32 %p4, %r4, %r5; and.b32 %r7, %r6, 1; setp.eq.u32 %p5, %r7, 1; and.b32 %r8, %r6, 63;
"""
# Register classes: how the result is stored, its bits.
STORES = {
    "h": ("st.global.u16 [%d1], %h9;", 16),
    "r": ("st.global.u32 [%d1], %r9;", 32),
    "d": ("st.global.u64 [%d1], %d9;", 64),
    "f": ("st.global.f32 [%d1], %f9;", 32),
    "g": ("st.global.f64 [%d1], %g9;", 64),
    "p": ("selp.u32 %r9, 1, 0, %p9; st.global.u32 [%d1], %r9;", 32),
}


@pytest.fixture
def harness() -> Iterator[ModuleType]:
    module = build.load(build.PTX)
    yield module
    module.clear_ptx()


def signed(x: int, bits: int) -> int:
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> (bits - 1) else x


def quotient(a: int, b: int, bits: int) -> int:
    if b == 0:
        return -1
    a, b = signed(a, bits), signed(b, bits)
    return abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


def f32(x: int) -> np.float32:
    return np.array(x & 0xFFFFFFFF, np.uint32).view(np.float32)[()]


def bits32(x: np.floating | float) -> int:
    return 0x7FFFFFFF if np.isnan(x) else int(np.array(x, np.float32).view(np.uint32))


def w(x: int) -> int:
    return x & 0xFFFFFFFF


Expected = Callable[[int, int, int], int]
# The inputs are a, b, c, of 64 bits; registers of class %h, %r, %f hold their low bits.
OPCODES: dict[str, Expected] = {
    "add.s32 %r9, %r4, %r5": lambda a, b, c: a + b,
    "sub.u16 %h9, %h4, %h5": lambda a, b, c: a - b,
    "add.s64 %d9, %d4, -7": lambda a, b, c: a - 7,
    "mul.lo.s64 %d9, %d4, %d5": lambda a, b, c: a * b,
    "mul.hi.u32 %r9, %r4, %r5": lambda a, b, c: w(a) * w(b) >> 32,
    "mul.hi.s32 %r9, %r4, %r5": lambda a, b, c: signed(a, 32) * signed(b, 32) >> 32,
    "mul.hi.u64 %d9, %d4, %d5": lambda a, b, c: a * b >> 64,
    "mul.wide.u16 %r9, %h4, %h5": lambda a, b, c: (a & 0xFFFF) * (b & 0xFFFF),
    "mul.wide.s32 %d9, %r4, %r5": lambda a, b, c: signed(a, 32) * signed(b, 32),
    "mad.lo.s32 %r9, %r4, %r5, %r6": lambda a, b, c: a * b + c,
    "mad.wide.u32 %d9, %r4, %r5, %d6": lambda a, b, c: w(a) * w(b) + c,
    "div.u32 %r9, %r4, %r5": lambda a, b, c: w(a) // w(b) if w(b) else -1,
    "div.s32 %r9, %r4, %r5": lambda a, b, c: quotient(a, b, 32) if w(b) else -1,
    "div.s64 %d9, %d4, %d5": lambda a, b, c: quotient(a, b, 64),
    "rem.u32 %r9, %r4, %r5": lambda a, b, c: w(a) % w(b) if w(b) else a,
    "min.s32 %r9, %r4, %r5": lambda a, b, c: min(signed(a, 32), signed(b, 32)),
    "max.u64 %d9, %d4, %d5": lambda a, b, c: max(a, b),
    "neg.s32 %r9, %r4": lambda a, b, c: -a,
    "abs.s32 %r9, %r4": lambda a, b, c: abs(signed(a, 32)),
    "and.b32 %r9, %r4, %r5": lambda a, b, c: a & b,
    "xor.b64 %d9, %d4, %d5": lambda a, b, c: a ^ b,
    "not.b16 %h9, %h4": lambda a, b, c: ~a,
    "shl.b32 %r9, %r4, %r8": lambda a, b, c: a << (c & 63),
    "shr.u32 %r9, %r4, %r8": lambda a, b, c: w(a) >> (c & 63),
    "shr.s32 %r9, %r4, %r8": lambda a, b, c: signed(a, 32) >> (c & 63),
    "shr.s64 %d9, %d4, %r8": lambda a, b, c: signed(a, 64) >> (c & 63),
    "shf.l.wrap.b32 %r9, %r4, %r5, %r8": lambda a, b, c: (w(b) << 32 | w(a)) << (c & 31) >> 32,
    "shf.r.clamp.b32 %r9, %r4, %r5, %r8": lambda a, b, c: (w(b) << 32 | w(a)) >> min(c & 63, 32),
    "popc.b64 %r9, %d4": lambda a, b, c: bin(a).count("1"),
    "clz.b32 %r9, %r4": lambda a, b, c: 32 - w(a).bit_length(),
    "brev.b32 %r9, %r4": lambda a, b, c: int(f"{w(a):032b}"[::-1], 2),
    "bfind.u32 %r9, %r4": lambda a, b, c: w(a).bit_length() - 1,
    "bfind.shiftamt.u32 %r9, %r4": lambda a, b, c: 32 - w(a).bit_length() if w(a) else -1,
    "bfe.u32 %r9, %r4, 5, 9": lambda a, b, c: a >> 5 & 511,
    "bfe.s32 %r9, %r4, 28, 9": lambda a, b, c: signed(a, 32) >> 28,
    "bfi.b64 %d9, %d4, %d5, 24, 40": lambda a, b, c: (a << 24) | (b & 0xFFFFFF),
    "prmt.b32 %r9, %r4, %r5, 0x7203": lambda a, b, c: (w(a) >> 24) | (a & 255) << 8 | (a & 0xFF0000) | (b & 0xFF000000),
    "lop3.b32 %r9, %r4, %r5, %r6, 0x96": lambda a, b, c: a ^ b ^ c,
    "setp.lt.s32 %p9, %r4, %r5": lambda a, b, c: signed(a, 32) < signed(b, 32),
    "setp.hs.u64 %p9, %d4, %d5": lambda a, b, c: a >= b,
    "setp.ne.and.b16 %p9, %h4, %h5, %p5": lambda a, b, c: (a & 0xFFFF) != (b & 0xFFFF) and c & 1,
    "setp.gtu.f32 %p9, %f4, %f5": lambda a, b, c: not f32(a) <= f32(b),
    "setp.ne.f32 %p9, %f4, %f5": lambda a, b, c: f32(a) < f32(b) or f32(a) > f32(b),
    "setp.neu.f32 %p9, %f4, %f5": lambda a, b, c: f32(a) != f32(b),
    "selp.b64 %d9, %d4, %d5, %p5": lambda a, b, c: a if c & 1 else b,
    "xor.pred %p9, %p4, %p5": lambda a, b, c: (w(a) < w(b)) ^ (c & 1),
    "not.pred %p9, %p5": lambda a, b, c: 1 - (c & 1),
    "cvt.u32.u16 %r9, %h4": lambda a, b, c: a & 0xFFFF,
    "cvt.s32.s16 %r9, %h4": lambda a, b, c: signed(a, 16),
    "cvt.s64.s8 %d9, %r4": lambda a, b, c: signed(a, 8),
    "cvt.rn.f32.u32 %f9, %r4": lambda a, b, c: bits32(np.float32(np.uint32(w(a)))),
    "cvt.rn.f32.s64 %f9, %d4": lambda a, b, c: bits32(np.float32(np.int64(signed(a, 64)))),
    "cvt.rzi.u32.f32 %r9, %f4": lambda a, b, c: 0 if np.isnan(f32(a)) else int(min(max(float(f32(a)), 0.0), 2.0**32 - 1)),
    "cvt.f32.f16 %f9, %h4": lambda a, b, c: bits32(np.array(a & 0xFFFF, np.uint16).view(np.float16).astype(np.float32)[()]),
    "add.rn.f32 %f9, %f4, %f5": lambda a, b, c: bits32(f32(a) + f32(b)),
    "mul.f32 %f9, %f4, %f5": lambda a, b, c: bits32(f32(a) * f32(b)),
    "div.rn.f32 %f9, %f4, %f5": lambda a, b, c: bits32(np.divide(f32(a), f32(b))),
    "sqrt.rn.f32 %f9, %f4": lambda a, b, c: bits32(np.sqrt(f32(a))),
    "neg.f32 %f9, %f4": lambda a, b, c: a ^ 0x80000000,
    "mov.b64 %d9, {%r4, %r5}": lambda a, b, c: w(a) | w(b) << 32,
    "mov.b32 {_, %h9}, %r4": lambda a, b, c: a >> 16,
    "@!%p5 bra SKIP; mov.u64 %d4, 5; SKIP: mov.u64 %d9, %d4": lambda a, b, c: 5 if c & 1 else a,
}  # fmt: skip


@pytest.mark.parametrize("text", OPCODES, ids=lambda text: text.split()[0])
def test_opcodes(harness: ModuleType, text: str) -> None:
    rng = np.random.default_rng(len(text))
    odd = np.array([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 0x7F800000, 0xFFC00001, 0x3F800000, 0x7BFF, 0xFC00], np.uint64)
    rows = rng.integers(0, 2**64, (96, 3), np.uint64)
    rows = np.where(rng.random(rows.shape) < 0.4, odd[rng.integers(0, len(odd), rows.shape)], rows)
    found = re.search(r"%([hrdfgp])9", text)
    assert found is not None
    store, bits = STORES[found[1]]
    with np.errstate(all="ignore"):
        expected = [int(OPCODES[text](*map(int, row))) & ((1 << bits) - 1) for row in rows]
    for lockstep in (True, False):
        out = run(harness, f"{INPUTS}{text}; {store}", 3, inputs=rows.reshape(-1), lockstep=lockstep)
        assert [int(x) for x in out[:96]] == expected


def test_a_fused_multiply_add_rounds_once(harness: ModuleType) -> None:
    x, y = 1 + 2.0**-12, -1 - 2.0**-11
    inputs = np.tile(np.array([bits32(x), bits32(x), bits32(y)], np.uint64), 32)
    text = "fma.rn.f32 %f9, %f4, %f5, %f6"
    assert set(run(harness, f"{INPUTS}{text}; {STORES['f'][0]}", inputs=inputs)[:32]) == {bits32(2.0**-24)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shfl.sync.up.b32 %r9|%p9, %r0, 3, 0, -1;", lambda t: t if t < 3 else t - 3),
        ("shfl.sync.down.b32 %r9, %r0, 1, 0x1f, -1;", lambda t: min(t + 1, 31)),
        ("shfl.sync.bfly.b32 %r9, %r0, 8, 0x1f, -1;", lambda t: t ^ 8),
        ("shfl.sync.idx.b32 %r9, %r0, 3, 0x181f, -1;", lambda t: t // 8 * 8 + 3),
        ("setp.lt.u32 %p1, %r0, 5; vote.sync.ballot.b32 %r9, %p1, -1;", lambda t: 31),
        ("setp.eq.u32 %p1, %r0, 5; vote.sync.any.pred %p2, %p1, -1; selp.u32 %r9, 1, 0, %p2;", lambda t: 1),
        ("redux.sync.add.u32 %r9, %r0, -1;", lambda t: 496),
        ("mov.u32 %r9, %lanemask_lt;", lambda t: (1 << t) - 1),
        ("setp.lt.u32 %p1, %r0, 7; bar.red.popc.u32 %r9, 0, %p1;", lambda t: 7),
        ("mov.u32 %r4, fixed; setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [%r4], 0; bar.sync 0; "
         "atom.shared.add.u32 %r5, [%r4], %r0; bar.sync 0; ld.shared.u32 %r9, [%r4];", lambda t: 496),
        ("atom.global.max.u32 %r5, [%d0+256], %r0; bar.sync 0; ld.volatile.global.u32 %r9, [%d0+256];", lambda t: 31),
        ("mad.lo.u32 %r4, %r0, 16, 0; mov.u32 %r5, dynamic; add.u32 %r4, %r4, %r5; st.shared.v4.u32 [%r4], {1, 2, %r0, 4}; "
         "ld.shared.u8 %r9, [%r4+8];", lambda t: t),
    ],
    ids=lambda x: x.split()[0] if isinstance(x, str) else "",
)  # fmt: skip
@pytest.mark.parametrize("lockstep", [True, False], ids=["lockstep", "random"])
def test_operations_of_warps_blocks_and_memory(
    harness: ModuleType, text: str, expected: Callable[[int], int], lockstep: bool
) -> None:
    for seed in SEEDS:
        out = run(harness, text + STORES["r"][0], dynamic=512, seed=seed, lockstep=lockstep)
        assert [int(x) & 0xFFFFFFFF for x in out[:32]] == [expected(t) for t in range(32)]
