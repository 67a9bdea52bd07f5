"""Kernels written by hand in PTX, for the executor of tests/cuda_ptx."""

from __future__ import annotations

from types import ModuleType

import numpy as np

HEAD = """.version 9.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
"""
# Thread t of the grid: %r0 is its number in the block, %d1 out + 8 t, and its inputs are the three words at in + 24 t.
PRELUDE = """
  .reg .pred %p<16>; .reg .b16 %h<16>; .reg .b32 %r<32>; .reg .b64 %d<32>; .reg .f32 %f<16>; .reg .f64 %g<16>;
  .shared .align 16 .b8 fixed[1024];
  ld.param.u64 %d0, [out]; ld.param.u64 %d2, [in];
  mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.u32 %r3, %r1, %r2, %r0;
  mad.wide.u32 %d1, %r3, 8, %d0; mad.wide.u32 %d3, %r3, 24, %d2;
"""


def program(body: str, name: str = "k") -> str:
    return f"{HEAD}.visible .entry {name}(.param .u64 out, .param .u64 in)\n{{\n{PRELUDE}{body}\n  ret;\n}}\n"


def run(
    module: ModuleType, body: str, blocks: int = 1, threads: int = 32, dynamic: int = 0, inputs: np.ndarray | None = None,
    seed: int = 0, lockstep: bool = True, **schedule: bool | int,
) -> np.ndarray:  # fmt: skip
    """The words that the threads stored, one each; those that they left alone are 0."""
    out = np.zeros(blocks * threads + 8, np.uint64)
    given = np.zeros(3 * blocks * threads, np.uint64) if inputs is None else inputs
    assert module.load_ptx(program(body)) == ["k"]
    module.set_ptx_schedule(seed, lockstep=lockstep, **schedule)
    module.launch_ptx("k", blocks, threads, dynamic, out.ctypes.data, given.ctypes.data)
    return out
