"""Decides what to compile, which folders are packages and how the README reads on an index; the rest stands in pyproject.toml.

DSTEE_BUILD=auto (default)  compile csrc/ with what is there; without a compiler, install the pure-Python package
            cpu             CPU kernels only; no compiler is an error
            cuda            CPU and CUDA kernels; a missing toolkit is an error
            none            pure Python
TORCH_CUDA_ARCH_LIST        the GPUs to compile for, as torch's own builds read it; default 8.0;9.0+PTX
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import setuptools
from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
MODE = os.environ.get("DSTEE_BUILD", "auto")
STABLE_ABI = "0x020b000000000000"  # torch 2.11
# They come behind the user's CFLAGS and CXXFLAGS and take back what would change bits there: -ffast-math, -Ofast, contraction.
FLAGS = ["-O3", "-std=c++17", "-fno-fast-math", "-fno-unsafe-math-optimizations", "-ffp-contract=off", "-fvisibility=hidden"]
# tests/compile_checks/cuda_check.py reads these too. Fused multiply-adds would round other than the CPU does.
NVCC_FLAGS = ["-O3", "-std=c++17", "-fmad=false", "-Xcompiler=-ffp-contract=off,-fvisibility=hidden"]
ARCHS = "8.0;9.0+PTX"
# Python's own flags ask for debug information, which makes the module 9 MB instead of half a megabyte.
NO_DEBUG = ["-g0"]
STRIP = ["-Wl,-s"] if sys.platform == "linux" else []
# With -ffast-math gcc links a file that makes the whole process flush denormals.
LINK_FLAGS = ["-O3", "-fno-fast-math", "-fno-unsafe-math-optimizations"]
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


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME, else of the PATH, else of the usual place."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    named = [Path(home) / "bin/nvcc" for home in homes if home]
    found = shutil.which("nvcc")
    places = [*named, *([Path(found)] if found else []), Path("/usr/local/cuda/bin/nvcc")]
    return next((str(place) for place in places if place.is_file()), None)


def why_no_cuda() -> str:
    """Empty when the CUDA kernels are to be built. Decided by the toolkit, never by a visible GPU."""
    if not any((ROOT / "csrc").glob("cuda/*.cu")):
        return "this version has no CUDA kernels"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    nvcc = find_nvcc()
    if nvcc is None:
        return "nvcc not found: install the CUDA toolkit, or set CUDA_HOME"
    version = cuda_version(nvcc)
    if version.split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {version or 'unknown'}, torch {torch.__version__} of CUDA {torch.version.cuda}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cu"
        source.write_text("#include <cuda_runtime.h>\n#include <vector>\n__global__ void probe() {}\n")
        result = subprocess.run([nvcc, *NVCC_FLAGS, "-c", source, "-o", f"{source}.o"], capture_output=True, text=True)
        if result.returncode != 0:
            lines = (result.stderr + result.stdout).splitlines()
            first = next((line for line in lines if "error" in line), "unknown error").strip()
            return f"{nvcc} cannot compile ({first})"
    return ""


def cuda_version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found[1] if found else ""


def toolkit(nvcc: str) -> str:
    """The folder that holds bin/nvcc, include and the libraries; the nvcc of the PATH may be a link or a script."""
    text = subprocess.run([nvcc, "--dryrun", "-c", "none.cu"], capture_output=True, text=True).stderr
    found = re.search(r"^#\$ TOP=(.+?)\s*$", text, re.M)
    return os.path.realpath(found[1]) if found else str(Path(os.path.realpath(nvcc)).parents[1])


def c_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def extensions() -> tuple[list, dict]:
    if MODE not in ("auto", "cpu", "cuda", "none"):
        sys.exit(f"dstee: DSTEE_BUILD must be auto, cpu, cuda or none, got {MODE!r}")
    if MODE == "none":
        say("building the pure-Python package, as DSTEE_BUILD=none asks")
        return [], {}
    nvcc = None if MODE == "cpu" else find_nvcc()
    if nvcc is not None:
        os.environ["CUDA_HOME"] = toolkit(nvcc)  # before torch's module of compilers looks for it
    reason = why_no_compiler()
    if reason:
        if MODE != "auto":
            fail(reason)
        say(f"building WITHOUT compiled kernels (the slow reference runs): {reason}")
        return [], {}
    no_cuda = "DSTEE_BUILD=cpu" if MODE == "cpu" else why_no_cuda()
    if no_cuda and MODE == "cuda":
        fail(no_cuda)
    archs = os.environ["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHS  # else torch looks for a GPU
    if nvcc is None or no_cuda:
        nvcc = None
        say(f"building the CPU kernels; no CUDA kernels: {no_cuda}")
    else:
        say(f"building the CPU kernels and the CUDA kernels (CUDA {cuda_version(nvcc)}, {archs})")

    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    folders = {".": "*.cpp", "cpu": "*.cpp", **({"cuda": "*.cu"} if nvcc else {})}
    sources = [path for folder, kind in folders.items() for path in sorted((ROOT / "csrc" / folder).glob(kind))]
    defines = [
        ("TORCH_TARGET_VERSION", STABLE_ABI),
        ("DSTEE_FLAGS", c_string(" ".join(FLAGS))),
        ("DSTEE_WHY_NO_CUDA", c_string(no_cuda)),
    ]
    flags = {"cxx": FLAGS + NO_DEBUG + WARNINGS}
    if nvcc:
        defines += [("USE_CUDA", None), ("DSTEE_CUDA", c_string(cuda_version(nvcc))), ("DSTEE_ARCHS", c_string(archs))]
        flags["nvcc"] = NVCC_FLAGS
    extension = (CUDAExtension if nvcc else CppExtension)(
        "dstee._C",
        [str(path.relative_to(ROOT)) for path in sources],
        include_dirs=[pybind11.get_include()],
        define_macros=defines,
        extra_compile_args=flags,
        extra_link_args=LINK_FLAGS + STRIP,
        depends=[str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*h")],
    )
    return [extension], {"build_ext": BuildExtension.with_options(no_python_abi_suffix=False)}


LINK = re.compile(r"^```.*?^```|`[^`\n]*`|(!?)\[((?:!?\[[^\]]*\]\([^)]*\)|[^\[\]])*)\]\(([^)\s]+)\)", re.M | re.S)


def for_index(markdown: str, source: str | None) -> str:
    """A page with links that work away from the repository: those to its own files lead to ``source``, the address of the
    project, or are plain text where it has none. Code stays as it is."""

    def rewrite(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if target is None:
            return match[0]
        label = LINK.sub(rewrite, label)  # a picture that is a link
        if not re.match(r"[a-z]+:", target):
            if source is None:
                return label
            target = source + (target if target.startswith("#") else f"/{'raw' if image else 'blob'}/HEAD/{target}")
        return f"{image}[{label}]({target})"

    return LINK.sub(rewrite, markdown)


def long_description() -> str:
    source = re.search(r'^Source = "(.+?)/?"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)  # tomllib came in 3.11
    return for_index((ROOT / "README.md").read_text("utf-8"), source and source[1])


# kernels/ and bench/ lie beside dstee/ and are installed inside it.
FOLDERS = {"dstee.kernels": "kernels", "dstee.bench": "bench"}
PACKAGES = find_packages(str(ROOT), include=["dstee", "dstee.*"])
PACKAGES += [
    f"dstee.{name}" for folder in FOLDERS.values() for name in find_packages(str(ROOT), include=[folder, f"{folder}.*"])
]

if __name__ == "__main__":
    found = setuptools.__version__  # a new virtual environment of Python 3.11 has 65
    if int(found.partition(".")[0]) < 77:
        sys.exit(f"dstee: setuptools {found} is too old to read pyproject.toml: pip install --upgrade 'setuptools>=77'")
    modules, commands = extensions()
    setup(
        ext_modules=modules,
        cmdclass=commands,
        packages=PACKAGES,
        package_dir=FOLDERS,
        long_description=long_description(),
        long_description_content_type="text/markdown",
    )
