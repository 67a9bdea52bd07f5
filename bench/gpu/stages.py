"""What is done on a GPU, the most telling first: time may end before the list does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import counters
from .machine import Facts, find_tool
from .run import Stage

__all__ = ["stages"]

DENSITY, OTHER_DENSITIES = "0.05", ("0.1", "0.02")
# Warnings of the machine's own libraries are no failures, and neither are its plugins.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
TESTING = {"DSTEE_REQUIRE_GPU": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
OP_SUITE = ("drop_grow", "drop_grow_tables", "masked_sgd", "pack_mask", "counts", "count_outside", "errors", "backends",
            "native_limits")  # fmt: skip
SMALL = ["tests/ops/test_cuda.py", "-k", "small"]
RIVALS = ["torch.topk", "SGD fused + masks", "SGD fused, dense"]
ADD_ONE = "import torch; assert (torch.ones(8, device='cuda') + 1).sum().item() == 16"


def bench_command(figures: Path, case: str, densities: Sequence[str], ours: Sequence[str], rivals: Sequence[str]) -> list[str]:
    return [
        sys.executable, "-m", "bench", "--device", "cuda", "--shapes", case, "--density", *densities, "--backends", *ours,
        "--against", *rivals, "--repeats", "25", "--budget", "2", "--limit", "100", "--json", str(figures),
    ]  # fmt: skip


def sanitizer_stages(tool: str | None) -> Iterator[Stage]:
    """The tool is tried on one small kernel first: on some machines it cannot reach the device. What it reports may be a false
    alarm, so it is kept for somebody to read and voids nothing."""
    if tool is None:
        return
    check = [tool, "--error-exitcode", "9", "--print-limit", "50", "--tool"]
    attempt = [*check, "memcheck", sys.executable, "-c", ADD_ONE]
    yield Stage("sanitizer", attempt, 30, "sanitizer", ("build",), optional=True)
    # Without torch's cache each tensor is an allocation of its own, whose ends memcheck knows.
    environment = TESTING | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for kind in ("memcheck", "racecheck"):
        command = [*check, kind, *PYTEST, *SMALL]
        yield Stage(kind, command, 60, "sanitizer", ("build", "sanitizer"), optional=True, environment=environment)


def profile_stages(tool: str | None) -> Iterator[Stage]:
    """Counters of every kernel of the step and the update. The clocks stay as they are."""
    if tool is None:
        return
    sections = [word for section in counters.SECTIONS for word in ("--section", section)]
    command = [
        tool, "--kernel-name-base", "mangled", "--kernel-name", "regex:dstee", "--print-kernel-base", "function",
        "--clock-control", "none", "--print-units", "base", "--csv", "--page", "details", *sections,
        "--metrics", ",".join(counters.METRICS), sys.executable, "-m", "bench.gpu.profile", "--density", DENSITY,
    ]  # fmt: skip
    yield Stage("ncu", command, 60, "ncu", ("build",), optional=True, parse=counters.parse)


def stages(folder: Path, machine: Facts) -> list[Stage]:
    """All stages, in order; the benchmark writes its results to ``folder``."""

    def bench(name: str, limit: float, case: str, densities: Sequence[str], ours: Sequence[str], rivals: Sequence[str],
              leaves: float = 0, optional: bool = True) -> Stage:  # fmt: skip
        figures = folder / f"{name.replace(' ', '-')}.json"
        command = bench_command(figures, case, densities, ours, rivals)
        return Stage(name, command, limit, "bench", ("build",), leaves, optional, figures=figures, shown=16)

    build = {"DSTEE_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST") or machine["capability"]}
    full = ["tests/ops/test_cuda.py", "tests/ops/test_cuda_training.py", "--maxfail", "25"]
    suite = [*(f"tests/ops/test_{name}.py" for name in OP_SUITE), "-k", "native-cuda", "--maxfail", "25"]
    return [
        Stage("probe", ["nvidia-smi"], 20, "build", optional=True),
        Stage("build", [sys.executable, "setup.py", "build_ext", "--inplace"], 200, "build", environment=build),
        Stage("info", [sys.executable, "-m", "dstee", "info"], 40, "build", ("build",), optional=True),
        Stage("small tests", [*PYTEST, *SMALL, "--maxfail", "8"], 60, "tests", ("build",), environment=TESTING),
        bench("bench", 80, "resnet50", [DENSITY], ["native"], RIVALS, optional=False),
        Stage("tests", [*PYTEST, *full], 90, "tests", ("build",), environment=TESTING),
        Stage("op suite", [*PYTEST, *suite], 100, "tests", ("build",), environment=TESTING),
        *sanitizer_stages(find_tool("compute-sanitizer")),
        bench("bench densities", 80, "resnet50", OTHER_DENSITIES, ["native"], RIVALS),
        bench("bench 100m", 60, "100m", [DENSITY], ["native"], RIVALS),
        bench("bench 1b", 110, "llama-1b", [DENSITY], ["native"], [], leaves=40),
        *profile_stages(find_tool("ncu")),
        bench("bench triton", 90, "resnet50", [DENSITY], ["native", "triton"], []),
    ]
