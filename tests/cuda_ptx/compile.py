"""PTX of ``csrc/cuda/*.cu``, as nvcc makes it for the package; kept under ``.build`` by the hash of all that goes into it."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from compile_checks import cuda_check

__all__ = ["ARCH", "FILES", "ptx_of", "ptx_of_all", "why_not"]

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
STORE = HERE / ".build"
ARCH = 90
FILES = tuple(sorted(source.name for source in (CSRC / "cuda").glob("*.cu")))


def why_not() -> str:
    """Empty when there is an nvcc."""
    return "" if cuda_check.find_nvcc() else "nvcc was not found: the CUDA kernels cannot be compiled to PTX"


def ptx_of(name: str, arch: int = ARCH) -> str:
    """The PTX of the file ``name`` of csrc/cuda, with the lines of its source (``-lineinfo``).

    Raises:
        RuntimeError: there is no nvcc, or it refused the source.
    """
    if why_not():
        raise RuntimeError(why_not())
    target = _target(name, arch)
    if not target.exists():
        STORE.mkdir(exist_ok=True)
        (STORE / ".gitignore").write_text("*\n")
        temporary = target.with_suffix(f".{os.getpid()}.tmp")  # another process may compile the same
        done = subprocess.run([*_line(name, arch), "-o", str(temporary)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc failed for {name}:\n{done.stdout}{done.stderr}"[:2000])
        temporary.replace(target)
    return target.read_text()


def ptx_of_all(arch: int = ARCH) -> dict[str, str]:
    """File name -> PTX; what is not there yet is compiled two files at a time."""
    _command(), _headers()  # not in the threads
    if missing := [name for name in FILES if not _target(name, arch).exists()]:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name: ptx_of(name, arch), missing))
    return {name: ptx_of(name, arch) for name in FILES}


def _line(name: str, arch: int) -> list[str]:
    nvcc, *flags = _command()
    return [nvcc, *flags, f"-arch=compute_{arch}", "-ptx", "-lineinfo", str(CSRC / "cuda" / name)]


@functools.cache
def _target(name: str, arch: int) -> Path:
    """Where the PTX is kept."""
    line = _line(name, arch)
    digest = hashlib.blake2b(digest_size=10)
    for part in (" ".join(line), _version(line[0]), torch.__version__, Path(line[-1]).read_text(), _headers()):
        digest.update(part.encode() + b"\0")
    return STORE / f"{Path(name).stem}-{arch}-{digest.hexdigest()}.ptx"


@functools.cache
def _command() -> list[str]:
    """nvcc with the package's flags."""
    flags, abi = cuda_check.from_setup("NVCC_FLAGS", "STABLE_ABI")
    system = [part for path in cuda_check.torch_includes() for part in ("-isystem", path)]
    return [str(cuda_check.find_nvcc()), *flags, "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={abi}", *system]


@functools.cache
def _version(nvcc: str) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout


@functools.cache
def _headers() -> str:
    found = sorted(p for ending in ("h", "cuh") for p in CSRC.rglob(f"*.{ending}"))
    return "".join(p.name + p.read_text() for p in found)
