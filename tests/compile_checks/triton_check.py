"""``make triton-check``: compiles every Triton kernel for GPUs that are not there, and looks at what came out.

For each kernel, dtype and main set of flags, for NVIDIA sm_80 and sm_90 and AMD gfx942: a compiler error or a spill fails, and
so does a sweep or a masked step whose aligned path has lost its vector loads. Prints registers, shared memory and the widths of
loads from global memory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # as a script it runs from anywhere, and its compilers import it

from support.triton_launches import Compilation, recording  # noqa: E402

TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64),
}  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16")
VECTORS_NEEDED = ("masked_sgd", "sweep")  # these move whole layers


@dataclass(frozen=True)
class Variant:
    label: str
    compilation: Compilation

    def __str__(self) -> str:
        return f"{self.compilation.kernel.removesuffix('_kernel')} {self.label}".strip()


@dataclass(frozen=True)
class Result:
    variant: str
    target: str
    registers: int | None = None
    shared: int = 0
    spills: int | None = None
    widths: dict[str, int] = field(default_factory=dict)
    error: str = ""


def variants(dtypes: Sequence[str] = DTYPES) -> list[Variant]:
    """What a GPU would compile: for training with DST-EE and RigL, random growth, and once with all that slows kernels down."""
    import torch

    from dstee import ops
    from dstee.encoding import bonus_table
    from dstee.ops import SGDRule

    found: list[Variant] = []
    with recording() as notes:

        def take(label: str) -> None:
            found.extend(Variant(label, c) for c in notes.compiled)
            notes.compiled.clear()

        mask = torch.ones(9, dtype=torch.bool)
        bits, N = torch.ones(2, dtype=torch.uint8), torch.ones(9, dtype=torch.int64)
        counts = torch.ones(9, dtype=torch.int16)
        ops.pack_mask(mask), ops.unpack_mask(bits, [9])
        ops.encode_counts(N, mask, 3), ops.decode_counts(counts, bits, 3, [9])
        ops.count_active([bits]), ops.count_explored([counts], [bits])
        ops.hashed_noise(9, 1, 2)
        take("")
        one = torch.ones(())
        for name in dtypes:
            dtype, n = getattr(torch, name), 5000
            w, g, m, bits = (torch.zeros(n, dtype=t) for t in (dtype, dtype, dtype, torch.uint8))
            bits, counts, other = bits[: n // 8], torch.zeros(n, dtype=torch.int16), torch.zeros(n)
            rule: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
            ops.count_outside([w], [bits]), ops.count_below([w], [bits], torch.ones(1))
            ops.growth_scale([g], [bits], [1], 3)
            (
                ops.global_keep_([other], [w], [m], [bits], [counts], 0, round=3),
                ops.global_keep_(None, [w], None, [bits], None, 0),
            )
            take(name)
            ops.masked_sgd_([w], [g], [m], [bits], **rule)
            take(f"{name} momentum")
            slow: dict[str, Any] = rule | {"lr": one.double(), "nesterov": True, "maximize": True}
            ops.masked_sgd_([w], [g], [m], [bits], **slow, grad_scale=one, found_inf=one)
            take(f"{name} everything")
            bonus = bonus_table(1e-3, 1.0, 100, 3)
            ops.drop_grow_([w], [g], [m], [bits], [counts], [0], bonus=bonus, round=3, sgd=SGDRule(**rule))
            take(f"{name} DST-EE")
            if name == dtypes[0]:  # the bonus apart, these have nothing that the others lack
                ops.drop_grow_([w], [g], [m], [bits], None, [0], bonus=None, round=3)
                take(f"{name} RigL")
                ops.drop_grow_([w], [g], [m], [bits], [counts], [0], bonus=None, round=3, grow_seeds=[1], regrow=False)
                take(f"{name} random")
                units, scale = bonus_table(1e-3, 1.0, 100, 3, dtype=torch.float64), torch.ones(1)
                budgets: dict[str, Any] = {"k_grow": [0], "round": 3}
                ops.drop_grow_([w], [g], [m], [bits], [counts], [0], bonus=units, bonus_scale=scale, **budgets)
                take(f"{name} scaled bonus, k_grow")
                random: dict[str, Any] = {"grow_seeds": [1], "where": [(0, 1, 2)], "regrow": False, "found_inf": one}
                ops.drop_grow_([w], [g], [m], [bits], [counts], [0], bonus=None, **budgets, **random)
                take(f"{name} random in part, k_grow")
                byte: dict[str, Any] = {"shift": 8, "prefix": torch.zeros(1, 3, dtype=torch.int64), "round": 3}
                ops.key_histogram([w], None, [bits], None, growth=False, word=0, **byte)
                byte |= {"bonus": units, "bonus_scale": scale}
                ops.key_histogram([w], [g], [bits], [counts], growth=True, word=1, drop_from=byte["prefix"], **byte)
                ops.key_histogram([w], None, [bits], [counts], growth=True, word=2, grow_seeds=[1], **byte)
                take(f"{name} bytes")
            ops.drop_grow_(
                [w], [g], [m], [bits], [counts], torch.zeros(1, dtype=torch.int64), bonus=bonus, round=one.long(),
                drop_scores=[other], grow_signal=[other], reset_regrown=True, sgd=SGDRule(**slow), found_inf=one,
            )  # fmt: skip
            take(f"{name} everything")
    if len(dtypes) == 3:  # what follows the sweep is the same for float16 as for bfloat16, but for the width of a zero
        found = [v for v in found if not v.label.startswith("float16") or v.compilation.module not in ("select_drop", "commit")]
    return found


def compile_variant(variant: Variant, target: str) -> Result:
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dstee.backends import triton as triton_backend

    c = variant.compilation
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log):  # of the assembler, with the options that Triton gives it
            knobs.nvidia.dump_ptxas_log = True
            compiled = triton.compile(
                ASTSource(getattr(triton_backend.module(c.module), c.kernel), c.signature, c.constants, c.attributes),
                target=GPUTarget(*TARGETS[target]),
                options={"num_warps": c.warps, "enable_fp_fusion": c.fused},
            )
    except Exception as error:
        while error.__cause__ is not None:  # the innermost says what is wrong
            error = error.__cause__  # type: ignore[assignment]
        return Result(str(variant), target, error=f"{type(error).__name__}: {error}"[:2000])
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        numbers = {key: int(n) for key, n in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", text)}
        spills = numbers.get("vgpr_spill_count")  # scalar registers spill to lanes of vector registers, not to memory
        loads = re.findall(r"\b(?:global|flat|buffer)_load_(\w+)", text)
        return Result(str(variant), target, numbers.get("vgpr_count"), compiled.metadata.shared, spills, count(loads))
    registers, spilled = read_ptxas_log(log.getvalue())
    loads = re.findall(r"ld\.global(?:\.\w+)*?((?:\.v\d)?\.[bfus]\d+)", compiled.asm["ptx"])
    return Result(str(variant), target, registers, compiled.metadata.shared, spilled, count(loads))


def read_ptxas_log(log: str) -> tuple[int | None, int | None]:
    """Registers, and bytes of spills, from what ptxas -v says."""
    used = re.findall(r"Used (\d+) registers", log)
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    return int(used[-1]) if used else None, sum(map(int, spilled)) if spilled else None


def count(names: Sequence[str]) -> dict[str, int]:
    return {name.lstrip("."): names.count(name) for name in sorted(set(names))}


def complaints(results: Sequence[Result]) -> list[str]:
    found = []
    for r in results:
        where = f"{r.variant} for {r.target}"
        if r.error:
            found.append(f"{where}: {r.error}")
        elif r.spills:
            found.append(f"{where} spills {r.spills} bytes")
        elif r.registers is None or r.spills is None:
            found.append(f"{where}: the compiler named no registers: its output has another form than this script reads")
        elif r.target.startswith("sm") and r.variant.startswith(VECTORS_NEEDED) and not has_vectors(r):
            found.append(f"{where} has no vector loads: {r.widths}")
    return found


def has_vectors(result: Result) -> bool:
    """16 bytes at once: four float32, or eight of the 16-bit types as four words."""
    return any(name.startswith(("v4.b32", "v2.b64", "v4.f32", "v4.u32")) for name in result.widths)


def table(results: Sequence[Result]) -> str:
    lines = [f"{'kernel':38} {'target':7} {'registers':>9} {'shared':>7} {'spills':>6}  loads from global memory"]
    for r in sorted(results, key=lambda r: (r.variant, r.target)):
        if not r.error:
            loads = " ".join(f"{n}x{name}" for name, n in r.widths.items())
            lines.append(f"{r.variant:38} {r.target:7} {r.registers!s:>9} {r.shared:7} {r.spills!s:>6}  {loads}")
    return "\n".join(lines)


def compile_job(job: tuple[Variant, str]) -> Result:
    return compile_variant(*job)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    options = parser.parse_args(arguments)
    from dstee.backends import triton as triton_backend

    os.environ["TRITON_INTERPRET"] = "0"  # compilers are asked here
    reason = triton_backend.missing()
    if reason:
        print(f"triton-check: skipped, {reason}: the Triton kernels were not compiled")
        return 0
    jobs = [(v, t) for v in variants(options.dtypes) if options.only in str(v) for t in options.targets]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # nothing compiled before counts
        with ProcessPoolExecutor(options.jobs, initializer=triton_backend.module, initargs=("drop_grow",)) as pool:
            results = list(pool.map(compile_job, jobs))
    print(table(results))
    found = complaints(results)
    for complaint in found:
        print(f"triton-check: {complaint}")
    print(f"triton-check: {len(results)} compilations, {'FAILED' if found else 'no errors or spills, vector loads are there'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
