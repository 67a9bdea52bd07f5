"""Compiles ``csrc/cuda/*.cu`` with g++ against ``cuda_host.h`` and loads the result; see ``scheduler.h`` for what it reports.

Objects are kept under ``.build`` by the hash of all that goes into them, so a second run of the tests compiles nothing.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from filelock import FileLock

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
EXECUTOR = HERE.parent / "cuda_ptx"
STORE = HERE / ".build"
MODULE = "dstee_cuda_host"  # of all builds, so that they share objects
STABLE_ABI = "0x020b000000000000"  # as setup.py
FLAGS = (
    "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off",
    "-fno-strict-aliasing",  # nvcc does not use it either
    "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unused-parameter", "-Wno-unknown-pragmas", "-Wno-unused-function",
)  # fmt: skip
SANITIZE = ("-fsanitize=undefined", "-fno-sanitize=vptr")


class BuildError(RuntimeError):
    """g++ refused the sources; the text holds its first errors."""


@dataclass(frozen=True)
class Variant:
    """A build: the CPU key of torch library ``space`` gets the ops."""

    name: str
    space: str = "dstee_host"
    planted: bool = False
    ptx: bool = False  # with the executor of tests/cuda_ptx, which can take over the launches
    kernel_flags: tuple[str, ...] = ()
    harness_flags: tuple[str, ...] = ()


PLAIN = Variant("plain")
SANITIZED = Variant("sanitized", space="dstee_host_sanitized", kernel_flags=SANITIZE)
PTX = Variant("ptx", space="dstee_ptx", ptx=True)
PLANTED = Variant("planted", planted=True)
PLANTED_SANITIZED = Variant("planted_sanitized", planted=True, kernel_flags=SANITIZE)
PLANTED_UCONTEXT = Variant("planted_ucontext", planted=True, harness_flags=("-DCUDA_HOST_UCONTEXT",))


def why_not() -> str:
    """Empty when there is a compiler for the harness."""
    if shutil.which(_compiler()[0]) is None:
        return f"no {_compiler()[0]} to compile the CUDA kernels for the host"
    try:
        import pybind11  # noqa: F401
    except ImportError:
        return "pybind11 is not installed"
    return ""


@functools.cache
def load(variant: Variant) -> ModuleType:
    """The module of this build, compiled if need be.

    Raises:
        BuildError: the compiler or linker failed.
    """
    library = build(variant)
    name = f"{variant.name}.{MODULE}"  # pybind11 takes two modules of one full name for the same
    loader = importlib.machinery.ExtensionFileLoader(name, str(library))
    spec = importlib.util.spec_from_file_location(name, library, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def build(variant: Variant) -> Path:
    """Compiles and links; returns the shared library."""
    harness = [HERE / name for name in ("cuda_host.cpp", "blocks.cpp", "memory.cpp", "fiber.cpp", "ubsan.cpp", "module.cpp")]
    kernels = [HERE / "planted.cu"] if variant.planted else [*sorted(CSRC.glob("cuda/*.cu")), CSRC / "arguments.cpp"]
    harness += sorted(EXECUTOR.glob("*.cpp")) if variant.ptx else []
    STORE.mkdir(exist_ok=True)
    (STORE / ".gitignore").write_text("*\n")
    with FileLock(STORE / ".lock"):  # tests in several processes compile once
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: _compile(source, variant), kernels + harness))
        link = [*map(str, objects), "-L", str(_torch() / "lib"), "-ltorch_cpu", "-lc10"]  # which are in the process already
        library = STORE / f"{MODULE}_{variant.name}-{_digest(part.encode() for part in link)}.so"
        if not library.exists():
            _run([*_compiler(), "-shared", *link, "-o"], library)
    return library


def _compile(source: Path, variant: Variant) -> Path:
    import pybind11

    include = _torch() / "include"
    flags = [*FLAGS, f"-DTORCH_TARGET_VERSION={STABLE_ABI}"]
    if source.parent == EXECUTOR:
        flags.append("-O2")  # it interprets
    elif source.parent == HERE and source.name != "planted.cu":
        flags += variant.harness_flags
        if source.name == "module.cpp":
            parts = {"-DCUDA_HOST_PLANTED": variant.planted, "-DCUDA_HOST_PTX": variant.ptx}
            flags += [f"-DCUDA_HOST_MODULE={MODULE}", *(flag for flag, wanted in parts.items() if wanted)]
    else:
        flags += [f"-DDSTEE_CUDA_HOST={variant.space}", *variant.kernel_flags]
    # Headers of others: their warnings are theirs.
    system = [include, include / "torch/csrc/api/include", pybind11.get_include(), sysconfig.get_paths()["include"]]
    command = [*_compiler(), *flags, "-I", str(HERE), *(part for folder in system for part in ("-isystem", str(folder)))]
    digest = _digest([" ".join(command).encode(), _version(), torch.__version__.encode(), source.read_bytes(), _headers()])
    target = STORE / f"{source.stem}-{digest}.o"
    if not target.exists():
        _run([*command, "-x", "c++", "-c", str(source), "-o"], target)
    return target


def _run(command: list[str], target: Path) -> None:
    temporary = target.with_suffix(f".{os.getpid()}.tmp")  # another process may build the same
    result = subprocess.run([*command, str(temporary)], capture_output=True, text=True)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if "error" in line or "undefined" in line]
        raise BuildError(
            "\n".join([f"{command[0]} failed for {target.name}:", *(errors[:10] or result.stderr.splitlines()[:10])])
        )
    temporary.replace(target)


def _torch() -> Path:
    return Path(torch.__file__).parent


def _compiler() -> list[str]:
    return os.environ.get("CXX", "g++").split()


@functools.cache
def _version() -> bytes:
    return subprocess.run([*_compiler(), "--version"], capture_output=True).stdout


@functools.cache
def _headers() -> bytes:
    found = sorted(p for root in (CSRC, HERE, EXECUTOR) for ending in ("h", "cuh") for p in root.rglob(f"*.{ending}"))
    return b"".join(p.name.encode() + p.read_bytes() for p in found)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=10)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
