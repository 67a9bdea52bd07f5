"""PTX of ``csrc/cuda/*.cu``, as nvcc makes it for the package; kept under ``.build`` by the hash of all that goes into it."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from compile_checks import cuda_check

__all__ = ["ARCH", "SOURCES", "ptx_of", "ptx_of_all", "why_not"]

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
STORE = HERE / ".build"
ARCH = 90
SOURCES = tuple(sorted((CSRC / "cuda").glob("*.cu")))


def why_not() -> str:
    """Empty when there is an nvcc."""
    return "" if cuda_check.find_nvcc() else "nvcc was not found: the CUDA kernels cannot be compiled to PTX"


def ptx_of(source: Path, arch: int = ARCH) -> str:
    """The PTX of one file, with the lines of its source (``-lineinfo``).

    Raises:
        RuntimeError: there is no nvcc, or it refused the source.
    """
    if why_not():
        raise RuntimeError(why_not())
    nvcc, *flags = _command()
    line = [nvcc, *flags, f"-arch=compute_{arch}", "-ptx", "-lineinfo", str(source)]
    digest = hashlib.blake2b(digest_size=10)
    for part in (" ".join(line), _version(nvcc), torch.__version__, source.read_text(), _headers()):
        digest.update(part.encode() + b"\0")
    target = STORE / f"{source.stem}-{arch}-{digest.hexdigest()}.ptx"
    if not target.exists():
        STORE.mkdir(exist_ok=True)
        (STORE / ".gitignore").write_text("*\n")
        temporary = target.with_suffix(f".{os.getpid()}.tmp")  # another process may compile the same
        done = subprocess.run([*line, "-o", str(temporary)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc failed for {source.name}:\n{done.stdout}{done.stderr}"[:2000])
        temporary.replace(target)
    return target.read_text()


def ptx_of_all(arch: int = ARCH, sources: Sequence[Path] = SOURCES) -> dict[str, str]:
    """File name -> PTX, two compilers at a time."""
    _command(), _headers()  # not in the threads
    with ThreadPoolExecutor(2) as pool:
        return dict(zip((s.name for s in sources), pool.map(lambda s: ptx_of(s, arch), sources), strict=True))


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
