"""How ``make check`` reads compiled objects, what the compilers here make of csrc, and the CPU kernels outside of torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compile_checks import cpp_check, mask_spills, sanitize
from compile_checks.cuda_check import ROOT, from_setup
from cpu_host import build

COMPILERS = build.find_compilers()
needs_compiler = pytest.mark.skipif(not COMPILERS, reason="no C++ compiler was found")
needs_objdump = pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump was not found")

SPILL = """\
0000000000000000 <keep(unsigned int const*)>:
   0:\tvpcmpleud k0,zmm2,ZMMWORD PTR [rsp+0x40]
   7:\tkmovw  WORD PTR [rsp+0x100],k0
  10:\tkmovw  k1,WORD PTR [rsp+0x100]
  19:\tpopcnt r13d,DWORD PTR [rsp+0x100]
  24:\tret
"""


def test_a_mask_spilled_as_two_bytes_and_read_as_four_is_found() -> None:
    found = mask_spills.find(SPILL.splitlines())
    assert [spill.function for spill in found] == ["keep(unsigned int const*)"]
    assert "kmovw  WORD" not in found[0].read and found[0].read.startswith("popcnt")


def test_it_is_found_behind_a_jump_back() -> None:
    loop = [
        "0 <loop>:", "   0:\tjmp    10 <loop+0x10>", "   5:\tmov    eax,DWORD PTR [rsp+0x8]", "   9:\tret",
        "  10:\tkmovw  WORD PTR [rsp+0x8],k3", "  15:\tjne    5 <loop+0x5>", "  18:\tret",
    ]  # fmt: skip
    assert len(mask_spills.find(loop)) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("popcnt r13d,DWORD", "movzx  r13d,WORD"),
        ("kmovw  WORD PTR [rsp+0x100],k0", "kmovd  DWORD PTR [rsp+0x100],k0"),
        ("popcnt r13d,DWORD PTR [rsp+0x100]", "popcnt r13d,DWORD PTR [rsp+0x104]"),
        ("kmovw  k1,WORD PTR [rsp+0x100]", "mov    DWORD PTR [rsp+0x100],eax"),
    ],
)
def test_right_spills_are_not(old: str, new: str) -> None:
    assert old in SPILL and mask_spills.find(SPILL.replace(old, new).splitlines()) == []


PLANTED = """
void store_and_read(unsigned* out) {
  unsigned slot_holder[16];
  asm volatile("kmovw %%k1, 8(%%rsp)\\n\\tmovl 8(%%rsp), %%eax" ::: "eax", "memory");
  out[0] = slot_holder[0] = 1;
}
"""


@needs_compiler
@needs_objdump
def test_a_planted_spill_is_found_in_an_object(tmp_path: Path) -> None:
    (tmp_path / "planted.cpp").write_text(PLANTED)
    subprocess.run([COMPILERS[0], "-O1", "-c", tmp_path / "planted.cpp", "-o", tmp_path / "planted.o"], check=True)
    assert len(mask_spills.find(mask_spills.disassemble(tmp_path / "planted.o").splitlines())) == 1


@pytest.mark.long
@needs_compiler
@needs_objdump
@pytest.mark.parametrize("flags", ["-O3", "-O3 -finstrument-functions", "-O1 -fsanitize=null"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_no_mask_of_the_loops_is_spilled_wrongly(compiler: str, flags: str, tmp_path: Path) -> None:
    own = [flag for flag in from_setup("FLAGS")[0] if flag != "-O3"]
    source = ROOT / "csrc/cpu/loops_avx512.cpp"
    subprocess.run([compiler, *own, *flags.split(), "-w", "-c", source, "-o", tmp_path / "loops.o"], check=True)
    assert mask_spills.find(mask_spills.disassemble(tmp_path / "loops.o").splitlines()) == []


def test_functions_that_the_linker_shares_are_named() -> None:
    names = (
        "0000000000000000 W dstee::to_float(float)\n                 U memcpy\n0000000000000000 V DW.ref.__gxx_personality_v0\n"
    )
    assert cpp_check.shared_symbols(names) == ["dstee::to_float(float)"]


@pytest.mark.long
@needs_compiler
@needs_objdump
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_loops_compile_without_warnings(compiler: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(ROOT / "csrc/cpu" / name) for name in ("loops.cpp", "loops_scalar.cpp", *cpp_check.WIDE)]
    assert cpp_check.main(["--compiler", compiler, *files]) == 0, capsys.readouterr().out


@needs_compiler
def test_a_warning_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.cpp").write_text("int f() { int unused; return 1; }\n")
    assert cpp_check.main(["--compiler", COMPILERS[0], str(tmp_path / "bad.cpp")]) == 1
    assert "unused" in capsys.readouterr().out


@needs_compiler
@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-ffinite-math-only"])
def test_fast_math_does_not_compile(flag: str) -> None:
    command = [COMPILERS[0], flag, "-std=c++17", "-fsyntax-only", str(ROOT / "csrc/cpu/loops_scalar.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "without -ffast-math" in done.stderr


@needs_compiler
@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-funsafe-math-optimizations"])
def test_the_flags_of_the_build_take_fast_math_back(flag: str, tmp_path: Path) -> None:
    """In CXXFLAGS it stands before them. gcc would also link a file that flushes denormals in the whole process."""
    flags, link = from_setup("FLAGS", "LINK_FLAGS")
    source = str(ROOT / "csrc/cpu/loops_scalar.cpp")
    subprocess.run([COMPILERS[0], flag, *flags, "-fsyntax-only", source], check=True)
    done = subprocess.run(
        [COMPILERS[0], flag, "-shared", "-###", source, *link], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "crtfastmath" not in done.stderr


@pytest.mark.long
@needs_compiler
def test_every_instruction_set_agrees_outside_of_torch(tmp_path: Path) -> None:
    program = build.build(COMPILERS[0], ("-O1",), tmp_path)
    done = sanitize.run(program, "check", "60")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("60 updates on scalar")


def test_the_check_says_which_compilers_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpp_check, "find_compilers", lambda names=(): [])
    assert cpp_check.main([]) == 0
    assert "no compiler" in capsys.readouterr().out


def test_the_scripts_run_alone() -> None:
    for script in (cpp_check, sanitize):
        subprocess.run([sys.executable, str(script.__file__), "--help"], check=True, capture_output=True, timeout=60)
