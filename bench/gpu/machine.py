"""What the machine is, and what it lacks: in words, before anything is built."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from ..commit import commit, is_dirty

__all__ = ["Facts", "facts", "file_stem", "find_tool", "problems"]

Facts = dict[str, Any]
"""Strings, but for numbers of the GPU; ``gpu`` is its name as torch says it, ``capability`` such as 9.0."""

MODULES = ("numpy", "torch", "pytest", "pybind11", "ninja", "setuptools", "rich")
TORCH = (2, 11)

LOOK = """
import importlib.util, json, torch
out = dict(torch=torch.__version__, torch_cuda=torch.version.cuda)
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    triton = __import__("triton").__version__ if importlib.util.find_spec("triton") else None
    out |= dict(gpu=p.name, memory_bytes=p.total_memory, processors=p.multi_processor_count, l2_bytes=p.L2_cache_size,
        capability=f"{p.major}.{p.minor}", triton=triton)
print(json.dumps(out))
"""


def said(*command: str) -> str:
    """What a command prints; "" where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def find_tool(name: str) -> str | None:
    """On the PATH, beside nvcc, or where Nsight Compute is installed by itself."""
    homes = [home for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    places = [Path(home) / "bin" for home in [*homes, "/usr/local/cuda"]]
    places += sorted(Path("/opt/nvidia/nsight-compute").glob("*"), reverse=True)
    return shutil.which(name) or next(filter(None, (shutil.which(name, path=str(place)) for place in places)), None)


@functools.cache
def _torch() -> dict[str, Any]:
    """What torch says, asked in a process of its own: this one stays off the GPU. ``error`` where it cannot be imported."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return {"error": lines[-1] if lines else f"exit status {done.returncode}"}


def problems() -> list[str]:
    """Everything that stands in the way of a run, each with its remedy; empty on a machine that can do it."""
    found = [_why_no_modules(), _why_no_gpu(), _why_no_nvcc(), _why_no_headers()]
    return [problem for problem in found if problem]


def _why_no_modules() -> str:
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    return (
        f"{sys.executable} has no {', '.join(missing)}: install them, or name another Python by PYTHON=..." if missing else ""
    )


def _why_no_gpu() -> str:
    if importlib.util.find_spec("torch") is None:
        return ""  # is said already
    found = _torch()
    if "error" in found:
        return f"torch cannot be imported: {found['error']}"
    if tuple(int(part) for part in found["torch"].split(".")[:2]) < TORCH:
        return f"torch {found['torch']} is too old: the kernels need {'.'.join(map(str, TORCH))} or newer"
    if found["torch_cuda"] is None:
        return f"torch {found['torch']} is built without CUDA: install a CUDA build, or name another Python by PYTHON=..."
    if "gpu" in found:
        return ""
    listed = said("nvidia-smi", "--list-gpus").split(" (")[0]
    if listed:
        return f"torch {found['torch']} cannot use {listed}: the driver may be too old for CUDA {found['torch_cuda']}"
    return f"torch {found['torch']} sees no GPU, and nvidia-smi lists none: run this on a machine that has one"


def _why_no_nvcc() -> str:
    if find_tool("nvcc") is None:
        return "nvcc was not found: install the CUDA toolkit, or set CUDA_HOME to where it is"
    return ""


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _why_no_headers() -> str:
    """Whether the C++ compiler is there and finds Python.h."""
    compiler = _compiler()
    if shutil.which(compiler.split()[0]) is None:
        return f"{compiler} was not found: install g++, or set CXX to another C++ compiler"
    include = sysconfig.get_paths()["include"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <Python.h>\n")
        command = [*compiler.split(), "-std=c++17", "-fsyntax-only", "-I", include, str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    first = next((line for line in done.stderr.splitlines() if "error" in line), "no message").strip()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"{compiler} finds no usable Python.h of Python {version} in {include} ({first}): install the development headers "
        f"(python{version}-dev), or bring the include folder of another Python {version} along, pyconfig.h included, and name "
        "it in CPLUS_INCLUDE_PATH"
    )


def facts() -> Facts:
    """GPU, driver, versions, commit, day; to be asked where :func:`problems` has found none."""
    release = re.search(r"release (\S+),", said(find_tool("nvcc") or "nvcc", "--version"))
    return _torch() | {
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
        "nvcc": release[1] if release else "",
        "compiler": said(*_compiler().split(), "--version").split("\n")[0],
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d"),
        "time": time.strftime("%H%M"),
        "commit": commit(),
        "dirty": is_dirty(),
    }


def file_stem(machine: Facts) -> str:
    """``nvidia-h100-80gb-hbm3-2026-01-31-1830``: two runs of a day keep both."""
    name = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    return f"{name}-{machine['date']}-{machine['time']}"
