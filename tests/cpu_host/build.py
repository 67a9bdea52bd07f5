"""Builds the program of ``main.cpp`` from csrc/cpu with any compiler and flags."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compile_checks.cuda_check import from_setup

__all__ = ["CSRC", "HERE", "BuildError", "build", "find_compilers"]

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
# Names under which distributions install them; the versions that are known to build dstee.
COMPILERS = ("g++", "g++-11", "g++-12", "g++-13", "g++-14", "clang++", "clang++-16", "clang++-17", "clang++-18", "clang++-19")


class BuildError(RuntimeError):
    """The compiler or linker failed or warned; the text holds what it said first."""


def find_compilers(names: Sequence[str] = COMPILERS) -> list[str]:
    """Those that are installed, each program once: ``g++`` is often a link to one of the others."""
    found = {os.path.realpath(path): name for name in reversed(names) if (path := shutil.which(name))}
    return [name for name in names if name in found.values()]


def build(compiler: str, flags: Sequence[str], folder: Path, jobs: int = 2) -> Path:
    """Compiles with the flags of setup.py behind ``flags``, as a user's CXXFLAGS stand before them, and links.

    Raises:
        BuildError: with the first lines of what the compiler said.
    """
    own, warnings, link = from_setup("FLAGS", "WARNINGS", "LINK_FLAGS")
    if not {"-O0", "-O1", "-Os"}.isdisjoint(flags):  # to see them at work; in a user's CXXFLAGS -O3 would win
        own, link = ([flag for flag in list if flag != "-O3"] for list in (own, link))
    line = [compiler, *flags, *own, *warnings, "-Werror", "-I", str(HERE)]
    sources = [*sorted(CSRC.glob("cpu/*.cpp")), CSRC / "arguments.cpp", HERE / "main.cpp"]
    folder.mkdir(parents=True, exist_ok=True)

    def compile(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        run([*line, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compile, sources))
    program = folder / "cpu_host"
    # With -flto gcc compiles here, where what our files say of warnings in its own headers is forgotten.
    run([*line, *map(str, objects), *link, "-w", "-pthread", "-o", str(program)])
    return program


def run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        lines = result.stderr.splitlines()
        said = [line for line in lines if "error" in line or "undefined" in line] or lines
        raise BuildError("\n".join([f"{command[0]} failed:", *said[:5]]))
