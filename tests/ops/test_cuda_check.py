"""How ``make cuda-check`` reads compiler output, recorded and of an nvcc that is installed; what setup.py builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compile_checks import cuda_check
from compile_checks.cuda_check import Kernel

CLEAN = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4scanPf' for 'sm_80'
ptxas info    : Function properties for _Z4scanPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8224 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 13.393 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4scanPf' for 'sm_90'
ptxas info    : Function properties for _Z4scanPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 38 registers, used 0 barriers
"""
SPILLS = CLEAN.replace(
    "0 bytes stack frame, 0 bytes spill stores, 0 bytes", "112 bytes stack frame, 124 bytes spill stores, 172 bytes", 1
)
CALLED = """\
ptxas info    : Function properties for _Z4deepPfi
    256 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


def test_a_clean_kernel() -> None:
    assert cuda_check.parse_ptxas(CLEAN) == [
        Kernel("_Z4scanPf", "sm_80", registers=40, shared=8224),
        Kernel("_Z4scanPf", "sm_90", registers=38),
    ]
    assert cuda_check.judge({"scan.cu": (0, CLEAN)})[1] == []


def test_static_and_external_shared_memory_add_up() -> None:
    assert cuda_check.parse_ptxas(CLEAN.replace("8224 bytes smem", "8192+32 bytes smem"))[0].shared == 8224


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (SPILLS, "_Z4scanPf for sm_80 has a spill"),
        (SPILLS.replace("124 bytes spill stores, 172", "0 bytes spill stores, 0"), "_Z4scanPf for sm_80 has a stack frame"),
        (CLEAN + CALLED, "_Z4deepPfi for sm_90 has a stack frame"),
        (CLEAN + "scan.cu(11): warning #177-D: variable was declared", "warning #177-D"),
        (CLEAN + "scan.cu:3:7: warning: unused variable 'x' [-Wunused-variable]", "-Wunused-variable"),
        (CLEAN + "ptxas warning : Stack size cannot be determined", "Stack size"),
        (CLEAN.replace("sm_90", "sm_75"), "_Z4scanPf was not compiled for sm_90"),
        ("", "named no kernel"),
    ],
)
def test_faults_are_complained_of(text: str, complaint: str) -> None:
    complaints = cuda_check.judge({"scan.cu": (0, text)})[1]
    assert len(complaints) == 1 and complaint in complaints[0]


def test_a_failure_without_output_is_complained_of() -> None:
    assert "nvcc ended with status 2" in cuda_check.judge({"a.cu": (0, CLEAN), "b.cu": (2, "Killed")})[1][0]


def test_readable_kernel_names() -> None:
    space = "dstee::cuda::(anonymous namespace)::"
    whole = f"void {space}digit_kernel<({space}Kind)1>(dstee::cuda::Table, int)"
    assert cuda_check.shorten(whole) == "digit_kernel<1>"
    assert cuda_check.shorten("dstee::cuda::sweep_kernel(dstee::cuda::Table, int)") == "sweep_kernel"
    assert (
        cuda_check.shorten("void dstee::cuda::encode_kernel<unsigned char>(unsigned char const*)")
        == "encode_kernel<unsigned char>"
    )


def test_the_table() -> None:
    kernels = cuda_check.parse_ptxas(SPILLS)
    lines = cuda_check.table(kernels, {"_Z4scanPf": "scan"}).splitlines()
    assert lines[1].split() == ["scan", "sm_80", "40", "8224", "112", "296", "<-", "spill"]
    assert lines[2].split() == ["scan", "sm_90", "38", "0", "0", "0"]


def test_flags_forbid_fused_multiply_add() -> None:
    """No fused multiply-add, no fast math, and the flags of the real build."""
    line = " ".join(cuda_check.command("nvcc", Path("a.cu"), Path("a.o"), []))
    assert "-fmad=false" in line and "fast" not in line and "ftz" not in line
    assert "sm_80" in line and "sm_90" in line and "-DTORCH_TARGET_VERSION=0x020b000000000000" in line


def test_without_nvcc_the_check_is_skipped_with_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_check, "find_nvcc", lambda: None)
    assert cuda_check.main([]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") == 1 and "nvcc was not found" in text


BAD = """\
__device__ __noinline__ float deep(float* p, int n) {
  float x[64];
  for (int i = 0; i < 64; ++i) x[i] = p[i * n];
  return x[n] + x[n + 1];
}
__global__ void framed(float* p, int n) { p[0] = deep(p, n); }
__global__ void plain(float* p) { int unused; p[0] = 1; }
"""


@pytest.mark.skipif(cuda_check.find_nvcc() is None, reason="nvcc was not found")
def test_output_of_the_installed_nvcc_is_read(tmp_path: Path) -> None:
    (tmp_path / "bad.cu").write_text(BAD)
    script = [sys.executable, cuda_check.__file__, str(tmp_path / "bad.cu")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    for text in (
        "framed for sm_80 has a stack frame",
        "framed for sm_90 has a stack frame",
        "warning #177-D",
        "2 kernels, FAILED",
    ):
        assert text in done.stdout


# --- the build -----------------------------------------------------------------------------------------------------------


def setup(mode: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
    run = "sys.argv = ['setup.py', '--version']; runpy.run_path('setup.py', run_name='__main__')"
    code = f"import runpy, sys, torch\n{prelude}\n{run}"
    settings = os.environ | {"DSTEE_BUILD": mode}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cuda_check.ROOT, env=settings, timeout=60
    )


def test_auto_build_with_a_cpu_torch_says_why_there_is_no_cuda() -> None:
    done = setup("auto", "torch.version.cuda = None")
    assert done.returncode == 0 and "no CUDA kernels: torch" in done.stderr and "built without CUDA" in done.stderr


def test_cuda_build_with_a_cpu_torch_fails() -> None:
    done = setup("cuda", "torch.version.cuda = None")
    assert done.returncode == 1 and "DSTEE_BUILD=cuda: torch" in done.stderr and "built without CUDA" in done.stderr


@pytest.mark.skipif(cuda_check.find_nvcc() is None, reason="nvcc was not found")
def test_cuda_build_with_another_cuda_than_torchs_fails() -> None:
    done = setup("cuda", "from torch.utils import cpp_extension\ntorch.version.cuda = '1.0'")
    assert done.returncode == 1 and re.search(
        r"DSTEE_BUILD=cuda: nvcc is of CUDA \d+\.\d+, torch \S+ of CUDA 1\.0", done.stderr
    )
