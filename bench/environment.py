"""What a figure is worth: machine, versions, commit, day."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path

import torch

import dstee
from dstee.backends import native

from .commit import commit, is_dirty
from .results_file import Environment

__all__ = ["all_cores", "describe"]

PEERS = ("rigl-torch", "sparsimony")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def all_cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(threads: int | None = None, device: str = "cpu") -> Environment:
    """``commit`` is empty where nothing says which one it is."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if threads is None else threads,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dstee": dstee.__version__,
        "peers": {package: found for package in PEERS if (found := _version(package))},
        "build": native.build_info(),
        "commit": commit(),
        "dirty": is_dirty(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
