"""``make gpu`` without a GPU: stages of harmless commands, and the rows of the benchmark with a clock that is made up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bench_rows import task
from support.fake_cuda_clock import FakeCudaClock

from bench import cli, cost, gpu, plan, table, worker
from bench.gpu import Report, Stage
from bench.layers import Layers

FACTS = {"gpu": "NVIDIA H100 80GB HBM3", "date": "2025-01-31"}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "out" / gpu.file_name(FACTS), dict(FACTS))


def python(name: str, code: str, limit: float = 20, **options: Any) -> Stage:
    return Stage(name, [sys.executable, "-c", code], limit, leaves=0, **options)


def on_disk(report: Report) -> dict[str, Any]:
    return json.loads(report.path.read_text())


def statuses(report: Report) -> dict[str, str]:
    return {name: record["status"] for name, record in on_disk(report)["stages"].items()}


def test_the_file_is_named_after_the_gpu_and_the_day() -> None:
    assert gpu.file_name(FACTS) == "nvidia-h100-80gb-hbm3-2025-01-31.json"


def test_every_stage_is_on_disk_before_the_next_starts(report: Report) -> None:
    look = f"import json; d = json.load(open({str(report.path)!r})); assert d['stages']['one']['status'] == 'ok', d"
    todo = [python("one", "print('3 passed in 0.1s')", environment={"SPAM": "egg"}), python("two", look)]
    assert gpu.run_all(todo, report) == 0
    data = on_disk(report)
    assert data["complete"] and data["good"] and data["machine"] == FACTS
    assert data["stages"]["one"]["tail"] == ["3 passed in 0.1s"]
    assert [p.name for p in report.path.parent.iterdir()] == [report.path.name], "no half-written file stays"


def test_a_failure_is_told_and_the_rest_goes_on(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    todo = [
        python("build", "print('boom'); raise SystemExit(3)"),
        python("tests", "pass", needs=("build",)),
        python("apart", "pass"),
    ]
    assert gpu.run_all(todo, report) == 1
    assert statuses(report) == {"build": "failed", "tests": "left out", "apart": "ok"}
    assert on_disk(report)["stages"]["build"]["exit"] == 3 and not on_disk(report)["good"]
    assert "boom" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "expected", "follower"), [("raise SystemExit(9)", 0, "left out"), ("pass", 1, "failed")])
def test_a_tool_that_cannot_run_is_no_failure(report: Report, code: str, expected: int, follower: str) -> None:
    """But what it finds where it works is one."""
    todo = [python("sanitizer", code, optional=True), python("memcheck", "raise SystemExit(9)", needs=("sanitizer",))]
    assert gpu.run_all(todo, report) == expected
    assert statuses(report)["memcheck"] == follower


def test_a_slow_stage_is_ended_with_its_children_and_keeps_its_figures(report: Report, tmp_path: Path) -> None:
    figures, child = tmp_path / "bench.json", tmp_path / "child"
    code = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path({str(child)!r}).write_text(str(child.pid))
pathlib.Path({str(figures)!r}).write_text('{{"rows": [1, 2]}}')
time.sleep(60)
"""
    start = time.monotonic()
    assert gpu.run_all([python("bench", code, limit=3, figures=figures)], report) == 1
    assert time.monotonic() - start < 15
    assert statuses(report) == {"bench": "timeout"} and on_disk(report)["bench"] == {"rows": [1, 2]}
    for _ in range(50):
        if not alive(int(child.read_text())):
            return
        time.sleep(0.1)
    pytest.fail("the child lives on")


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_half_written_figures_are_left_out(report: Report, tmp_path: Path) -> None:
    figures = tmp_path / "bench.json"
    figures.write_text('{"rows": [1,')
    gpu.run_all([python("bench", "pass", figures=figures)], report)
    assert "bench" not in on_disk(report) and statuses(report) == {"bench": "ok"}


def test_no_stage_starts_when_the_time_is_up(report: Report) -> None:
    assert gpu.run_all([python("late", "pass")], report, total=-1) == 1
    assert on_disk(report)["stages"]["late"]["reason"] == "no time left"


def test_stages_leave_time_for_the_benchmarks(report: Report) -> None:
    greedy = Stage("tests", [sys.executable, "-c", "pass"], 500)
    assert gpu.run_all([greedy, python("bench", "pass")], report, total=gpu.FOR_BENCH - 1) == 1
    assert statuses(report) == {"tests": "left out", "bench": "ok"}


def test_a_stop_keeps_what_there_is(tmp_path: Path) -> None:
    """The signal that ends `make gpu` from outside."""
    code = f"""
import sys
from pathlib import Path
from bench import gpu
gpu.machine = lambda: dict(gpu="G", date="D", driver="", torch="", nvcc="")
sleep = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
gpu.stages = lambda figures: [gpu.Stage("one", [sys.executable, "-c", ""], 20), gpu.Stage("two", sleep, 60)]
sys.exit(gpu.main(["--out", {str(tmp_path)!r}]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=gpu.ROOT
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("one "):
            break
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "stopped" in errors
    data = json.loads((tmp_path / "g-D.json").read_text())
    assert not data["complete"] and {name: r["status"] for name, r in data["stages"].items()} == {"one": "ok", "two": "stopped"}


def test_the_stages_of_make_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_tool", lambda name: f"/opt/{name}")
    todo = {stage.name: stage for stage in gpu.stages(tmp_path)}
    assert list(todo) == ["build", "info", "tests", "op suite", "sanitizer", "memcheck", "racecheck", "bench", "bench 100m"]
    assert all(todo[name].environment["DSTEE_REQUIRE_GPU"] == "1" for name in ("tests", "op suite", "memcheck", "racecheck"))
    for word in [w for stage in todo.values() for w in stage.command if w.startswith("tests/")]:
        assert (gpu.ROOT / word).is_file(), word
    assert gpu.TOTAL < 9 * 60 - 10
    monkeypatch.setattr(gpu, "find_tool", lambda name: None)
    assert "memcheck" not in {stage.name for stage in gpu.stages(tmp_path)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert "sees no GPU" in capsys.readouterr().err and not os.listdir(tmp_path)


# --- the benchmark -------------------------------------------------------------------------------------------------------


def test_the_commands_of_the_benchmark_can_be_parsed(tmp_path: Path) -> None:
    """``python -m bench`` takes them, up to the GPU that is not here, and knows whom they name."""
    todo = [stage for stage in gpu.stages(tmp_path) if stage.figures is not None]
    assert [stage.name for stage in todo] == ["bench", "bench 100m"]
    for stage in todo:
        assert stage.command[1:3] == ["-m", "bench"]
        args = cli.make_parser().parse_args(stage.command[3:])
        assert (args.device, args.json) == ("cuda", stage.figures)
        args.device = "cpu"
        assert {task["op"] for task in plan.tasks(args)} == {"masked_sgd", "drop_grow"}


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's row for a GPU runs on the CPU; every call takes 2 ms."""
    monkeypatch.setattr(worker, "make_clock", lambda device, flush_bytes: FakeCudaClock())
    monkeypatch.setattr(Layers, "to", lambda layers, device: layers.clone())


@pytest.mark.parametrize("op", ["masked_sgd", "drop_grow"])
def test_a_row_on_a_gpu_has_the_bytes_of_the_kernels(op: str, on_cpu: None) -> None:
    peer = {"masked_sgd": "SGD foreach + masks", "drop_grow": "torch.topk"}[op]
    shapes = [[64, 33], [40, 5, 3]]
    row = worker.run_row(task(op, ["reference", peer], device="cuda", shapes=shapes), lambda name, phase: None)
    json.dumps(row, allow_nan=False)
    n = row["n"]
    assert n == 64 * 33 + 600 and row["roof"]["copy_gb_s"] == pytest.approx(2 * (1 << 22) / 2e-3 * 1e-9)
    one = row["contenders"]["reference"]
    assert one["graph"]["status"] == "ok" and one["gb_s"] == pytest.approx(row["bytes"] / 2e6)
    assert one["share_of_roof"] == pytest.approx(row["roof_ms"] / 2)
    dense_step, dense_update = n * (20 + 1 / 8), n * (6 + 4 + 4 + 4 + 2 + 1 / 4)
    assert row["bytes"] <= sum(row["kernel_bytes"].values()) < (dense_step if op == "masked_sgd" else dense_update)

    row["contenders"]["native"] = one  # what would be timed where there is a GPU
    row["key"] = {"op": op, "case": "small", "density": 0.2, "device": "cuda"}
    assert f"{sum(row['kernel_bytes'].values()) / n:.2f} bytes a weight" in table.row_text(row)


def test_the_gate_stops_a_wrong_result_on_a_gpu(on_cpu: None) -> None:
    told: list[tuple[str | None, str]] = []
    row = worker.run_row(task("drop_grow", ["lazy"], device="cuda"), lambda *event: told.append(event))
    assert row["contenders"]["lazy"]["status"] == "wrong" and ("lazy", "repeat 1") not in told


def test_sectors_of_32_bytes() -> None:
    mask = torch.zeros(41, dtype=torch.bool)
    mask[[0, 7, 8, 40]] = True
    assert cost.lines([mask], 4, 32) == 3 and cost.lines([mask], 2, 32) == 2 and cost.lines([mask, mask], 4, 32) == 6
