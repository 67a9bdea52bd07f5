"""Decides what to compile; everything else about the package stands in pyproject.toml.

DSTEE_BUILD=auto (default)  compile csrc/ with what is there; without a compiler, install the pure-Python package
            cpu             CPU kernels only; no compiler is an error
            cuda            CPU and CUDA kernels; a missing toolkit is an error
            none            pure Python
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
MODE = os.environ.get("DSTEE_BUILD", "auto")
STABLE_ABI = "0x020b000000000000"  # torch 2.11
FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fvisibility=hidden"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-unused-parameter"]


def say(text: str) -> None:
    print(f"dstee: {text}", file=sys.stderr, flush=True)


def fail(text: str) -> None:
    sys.exit(f"dstee: DSTEE_BUILD={MODE}: {text}")


def why_no_compiler() -> str:
    """Empty when a C++ extension can be built here."""
    try:
        import pybind11  # noqa: F401
        import torch  # noqa: F401
        from torch.utils import cpp_extension
    except ImportError as error:
        return f"{error.name} is not installed where setup.py runs: use `pip install --no-build-isolation`"
    compiler = os.environ.get("CXX", cpp_extension.get_cxx_compiler())
    if shutil.which(compiler.split()[0]) is None:
        return f"no C++ compiler ({compiler} not found): install g++ or clang, or set CXX"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <Python.h>\n#include <vector>\nint main() { return 0; }\n")
        command = [*compiler.split(), "-std=c++17", "-I", sysconfig.get_paths()["include"], "-c", str(source), "-o"]
        result = subprocess.run([*command, str(source.with_suffix(".o"))], capture_output=True, text=True)
        if result.returncode != 0:
            first = next((line for line in result.stderr.splitlines() if "error" in line), "unknown error")
            return f"{compiler} cannot compile for this Python ({first.strip()}): install its development headers"
    return ""


def why_no_cuda() -> str:
    """Empty when the CUDA kernels are to be built. Decided by the toolkit, never by a visible GPU."""
    if not any((ROOT / "csrc").glob("cuda/*.cu")):
        return "this version has no CUDA kernels"
    import torch

    if shutil.which("nvcc") is None:
        return "nvcc not found"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return ""


def extensions() -> tuple[list, dict]:
    if MODE not in ("auto", "cpu", "cuda", "none"):
        sys.exit(f"dstee: DSTEE_BUILD must be auto, cpu, cuda or none, got {MODE!r}")
    if MODE == "none":
        say("building the pure-Python package, as DSTEE_BUILD=none asks")
        return [], {}
    reason = why_no_compiler()
    if reason:
        if MODE != "auto":
            fail(reason)
        say(f"building WITHOUT compiled kernels (the slow reference runs): {reason}")
        return [], {}
    no_cuda = "DSTEE_BUILD=cpu" if MODE == "cpu" else why_no_cuda()
    if no_cuda and MODE == "cuda":
        fail(no_cuda)
    say(f"building the CPU kernels; no CUDA kernels: {no_cuda}")

    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    sources = [str(p.relative_to(ROOT)) for p in sorted([ROOT / "csrc/module.cpp", *(ROOT / "csrc/cpu").glob("*.cpp")])]
    defines = [
        ("TORCH_TARGET_VERSION", STABLE_ABI),
        ("DSTEE_FLAGS", f'"{" ".join(FLAGS)}"'),
        ("DSTEE_WHY_NO_CUDA", f'"{no_cuda}"'),
    ]
    extension = CppExtension(
        "dstee._C",
        sources,
        include_dirs=[pybind11.get_include()],
        define_macros=defines,
        extra_compile_args=FLAGS + WARNINGS,
        depends=[str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.h")],
    )
    return [extension], {"build_ext": BuildExtension.with_options(no_python_abi_suffix=False)}


modules, commands = extensions()
setup(ext_modules=modules, cmdclass=commands)
