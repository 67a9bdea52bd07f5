"""``make gpu``: builds, tests and times the CUDA kernels on this machine's GPU, with the Python that runs it.

Needs torch (a CUDA build), pytest, numpy, pybind11, ninja and nvcc; installs nothing. Writes ``<out>/<gpu>-<date>.json`` after
every stage, so that a run that is stopped keeps what it has. Takes less than nine minutes: each stage has a limit of its own.
The figures are those of ``python -m bench --device cuda``, whose result files are taken into the report.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Report", "Stage", "main", "run_all", "stages"]

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 520.0  # seconds
FOR_BENCH = 110.0  # what the stages before the benchmarks leave them

DENSITIES = ("0.05", "0.1", "0.02")
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
OP_SUITE = ("drop_grow", "drop_grow_tables", "masked_sgd", "pack_mask", "counts", "errors", "backends", "native_limits")

MACHINE = """
import importlib.util, json, torch
if not torch.cuda.is_available(): raise SystemExit(f"torch {torch.__version__} sees no GPU")
p = torch.cuda.get_device_properties(0)
triton = __import__("triton").__version__ if importlib.util.find_spec("triton") else None
print(json.dumps(dict(gpu=p.name, memory_bytes=p.total_memory, processors=p.multi_processor_count, l2_bytes=p.L2_cache_size,
    capability=f"{p.major}.{p.minor}", torch=torch.__version__, torch_cuda=torch.version.cuda, triton=triton)))
"""
ADD_ONE = "import torch; assert (torch.ones(8, device='cuda') + 1).sum().item() == 16"


@dataclass(frozen=True)
class Stage:
    """One command. ``needs``: stages without whose success it is left out. ``optional``: its failure is no failure.
    ``figures``: the JSON file it writes, taken into the report however it ended."""

    name: str
    command: Sequence[str]
    limit: float
    needs: tuple[str, ...] = ()
    optional: bool = False
    leaves: float = FOR_BENCH
    environment: Mapping[str, str] = field(default_factory=dict)
    figures: Path | None = None


class Stopped(BaseException):
    """Somebody wants this run to end."""


class Report:
    """What is known so far, on disk at all times."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        self.data: dict[str, Any] = {"machine": facts, "complete": False, "stages": {}}

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=1, allow_nan=False) + "\n")
        os.replace(part, self.path)

    def ok(self, name: str) -> bool:
        return self.data["stages"].get(name, {}).get("status") == "ok"

    def add(self, stage: Stage, **record: object) -> None:
        self.data["stages"][stage.name] = record
        if stage.figures is not None:
            with contextlib.suppress(OSError, ValueError):  # not written, or not whole
                self.data[stage.name] = json.loads(stage.figures.read_text())
        self.save()


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the command and what it started, a sanitizer's target say."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return


def run_stage(stage: Stage, report: Report, deadline: float) -> str:
    """Runs it within its limit and the time that is left; returns ok, failed, timeout, left out or stopped."""
    missing = [name for name in stage.needs if not report.ok(name)]
    limit = min(stage.limit, deadline - time.monotonic() - stage.leaves)
    if missing or limit <= 0:
        excused = stage.optional or any(report.data["stages"].get(name, {}).get("optional") for name in missing)
        reason = f"{missing[0]} did not succeed" if missing else "no time left"
        report.add(stage, status="left out", reason=reason, optional=excused)
        return "left out"
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            stage.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=os.environ | dict(stage.environment), start_new_session=True,
        )  # fmt: skip
        status = "stopped"
        try:
            status = "ok" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timeout"
        finally:
            if process.poll() is None:
                end(process)
            log.seek(0)
            tail = [line.rstrip() for line in log.readlines()[-60:]]
            code, seconds = process.returncode, round(time.monotonic() - start, 1)
            report.add(stage, status=status, seconds=seconds, exit=code, optional=stage.optional, tail=tail[-30:])
    if status != "ok":
        print("\n".join("    " + line for line in tail), flush=True)
    return status


def summary(tail: Sequence[str]) -> str:
    """The last line of a stage's output: pytest's counts, mostly."""
    return next((line.strip("= ") for line in reversed(tail) if line.strip()), "")


def find_tool(name: str) -> str | None:
    """On the PATH, or beside nvcc."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(name) or shutil.which(name, path=f"{home}/bin")


def sanitizer_stages(tool: str | None) -> Iterator[Stage]:
    """The tool is tried on one small kernel first: on some machines it cannot reach the device."""
    if tool is None:
        return
    check = [tool, "--error-exitcode", "9", "--tool"]
    yield Stage("sanitizer", [*check, "memcheck", sys.executable, "-c", ADD_ONE], 45, ("build",), optional=True)
    small = [*PYTEST, "tests/ops/test_cuda.py", "-k", "small"]
    for kind in ("memcheck", "racecheck"):
        # Without torch's cache each tensor is an allocation of its own, whose ends memcheck knows.
        environment = {"DSTEE_REQUIRE_GPU": "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        yield Stage(kind, [*check, kind, *small], 75, ("build", "sanitizer"), environment=environment)


def bench_command(figures: Path, case: str, densities: Sequence[str]) -> list[str]:
    """The benchmark of the CUDA and Triton kernels, against the peers that do not take minutes on a GPU."""
    return [
        sys.executable, "-m", "bench", "--device", "cuda", "--shapes", case, "--density", *densities,
        "--backends", "native", "triton", "--against", "torch.topk", "SGD fused + masks", "SGD fused, dense",
        "--repeats", "25", "--budget", "2", "--limit", "100", "--json", str(figures),
    ]  # fmt: skip


def stages(figures: Path) -> list[Stage]:
    """All stages, in order; ``figures`` is the folder of the benchmark's results."""
    forbid = {"DSTEE_REQUIRE_GPU": "1"}
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    suite = [f"tests/ops/test_{name}.py" for name in OP_SUITE]
    on_gpu = ["tests/ops/test_cuda.py", "tests/ops/test_cuda_training.py"]
    return [
        Stage("build", build, 200, environment={"DSTEE_BUILD": "cuda"}),
        Stage("info", [sys.executable, "-m", "dstee", "info"], 60, ("build",), optional=True),
        Stage("tests", [*PYTEST, *on_gpu], 100, ("build",), environment=forbid),
        Stage("op suite", [*PYTEST, *suite, "-k", "native-cuda"], 120, ("build",), environment=forbid),
        *sanitizer_stages(find_tool("compute-sanitizer")),
        Stage("bench", bench_command(figures / "bench.json", "resnet50", DENSITIES), 170, ("build",), leaves=0,
              figures=figures / "bench.json"),
        Stage("bench 100m", bench_command(figures / "bench-100m.json", "100m", DENSITIES[:1]), 110, ("build",), optional=True,
              leaves=0, figures=figures / "bench-100m.json"),
    ]  # fmt: skip


def machine() -> dict[str, Any]:
    """The GPU, its driver, the versions, the commit.

    Raises:
        RuntimeError: there is no GPU, or no torch that sees it.
    """
    done = subprocess.run([sys.executable, "-c", MACHINE], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(summary(done.stderr.splitlines()) or f"{sys.executable} could not look for a GPU")
    facts = json.loads(done.stdout.splitlines()[-1])
    facts["driver"] = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    release = re.search(r"release (\S+),", said(find_tool("nvcc") or "nvcc", "--version"))
    return facts | {
        "nvcc": release[1] if release else "",
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d"),
        "commit": said("git", "rev-parse", "HEAD"),
        "dirty": bool(said("git", "status", "--porcelain", "--untracked-files=no")),
    }


def said(*command: str) -> str:
    """What a command prints; "" where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def file_name(facts: Mapping[str, str]) -> str:
    return re.sub(r"[^a-z0-9]+", "-", facts["gpu"].lower()).strip("-") + f"-{facts['date']}.json"


def run_all(todo: Sequence[Stage], report: Report, total: float = TOTAL) -> int:
    """0 when every stage that must succeed did."""
    deadline = time.monotonic() + total
    report.save()
    good = True
    for stage in todo:
        status = run_stage(stage, report, deadline)
        record = report.data["stages"][stage.name]
        last = summary(record.get("tail", [])) or record.get("reason", "")
        print(f"{stage.name:10} {status:8} {record.get('seconds', 0):6.1f} s  {last[:150]}", flush=True)
        good = good and (status == "ok" or record["optional"])
    report.data["complete"] = True
    report.data["good"] = good
    report.save()
    return 0 if good else 1


def stop(number: int, frame: object) -> None:
    raise Stopped


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder of the JSON file")
    options = parser.parse_args(arguments)
    try:
        facts = machine()
    except RuntimeError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 1
    report = Report(options.out.resolve() / file_name(facts), facts)
    print(
        f"{facts['gpu']}, driver {facts['driver']}, torch {facts['torch']}, nvcc {facts['nvcc']}; writing {report.path}",
        flush=True,
    )
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            return run_all(stages(Path(folder)), report)
    except Stopped:
        print(f"gpu: stopped; what there is lies in {report.path}", file=sys.stderr)
        return 130
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
