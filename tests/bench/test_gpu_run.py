"""``make gpu`` without a GPU: stages of harmless commands, what is said of a machine that lacks something."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import cli, commit, plan
from bench.gpu import __main__ as program
from bench.gpu import counters, machine
from bench.gpu.run import ROOT, TOTAL, Report, Stage, run_all
from bench.gpu.stages import stages

FACTS: Any = {"gpu": "NVIDIA H100 80GB HBM3", "capability": "9.0", "date": "2025-01-31", "time": "1830"}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "out" / f"{machine.file_stem(FACTS)}.json", dict(FACTS))


def python(name: str, code: str, limit: float = 20, **options: Any) -> Stage:
    return Stage(name, [sys.executable, "-c", code], limit, "all", **options)


def on_disk(report: Report) -> dict[str, Any]:
    return json.loads(report.path.read_text())


def statuses(report: Report) -> dict[str, str]:
    return {name: record["status"] for name, record in on_disk(report)["stages"].items()}


def test_files_are_named_after_the_gpu_and_the_time(report: Report) -> None:
    assert report.path.name == "nvidia-h100-80gb-hbm3-2025-01-31-1830.json"
    assert report.log("tests").name == "nvidia-h100-80gb-hbm3-2025-01-31-1830-tests.log"
    h200 = FACTS | {"gpu": "NVIDIA H200"}
    assert machine.file_stem(h200) == "nvidia-h200-2025-01-31-1830"


def test_every_stage_is_on_disk_before_the_next_starts(report: Report) -> None:
    look = f"import json; d = json.load(open({str(report.path)!r})); assert d['stages']['one']['status'] == 'ok', d"
    todo = [python("one", "print('3 passed in 0.1s')", environment={"SPAM": "egg"}), python("two", look)]
    assert run_all(todo, report) == 0
    data = on_disk(report)
    assert data["complete"] and data["good"] and data["machine"] == FACTS
    assert data["stages"]["one"]["tail"] == ["3 passed in 0.1s"]
    assert {p.name for p in report.path.parent.iterdir()} == {report.path.name, report.log("all").name}, "nothing half-written"


def test_logs_hold_all_that_the_stages_print(report: Report) -> None:
    """Each under its command, also of a stage that is ended."""
    long = "print('\\n'.join(map(str, range(500))), flush=True)"
    stop = python("two", f"{long}; import time; time.sleep(60)", limit=1)
    assert run_all([python("one", long, environment={"SPAM": "egg"}), stop], report) == 1
    log = report.log("all").read_text()
    assert log.count("\n0\n") == log.count("\n499\n") == 2
    assert "=== one: SPAM=egg " in log and log.index("=== one") < log.index("499") < log.index("=== two")
    assert on_disk(report)["stages"]["two"]["log"] == report.log("all").name


def test_figures_may_be_read_from_what_is_printed(report: Report) -> None:
    run_all([python("one", "print('12')", parse=lambda text: [int(text)]), python("two", "print('spam')", parse=int)], report)
    assert on_disk(report)["one"] == [12] and "two" not in on_disk(report)


def test_a_failure_is_told_and_the_rest_goes_on(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    todo = [
        python("build", "print('boom'); raise SystemExit(3)"),
        python("tests", "pass", needs=("build",)),
        python("apart", "pass"),
    ]
    assert run_all(todo, report) == 1
    assert statuses(report) == {"build": "failed", "tests": "left out", "apart": "ok"}
    assert on_disk(report)["stages"]["build"]["exit"] == 3 and not on_disk(report)["good"]
    assert "boom" in capsys.readouterr().out


def test_a_tool_that_cannot_run_or_reports_is_no_failure(report: Report) -> None:
    todo = [
        python("sanitizer", "raise SystemExit(9)", optional=True),
        python("memcheck", "pass", needs=("sanitizer",)),
        python("racecheck", "raise SystemExit(9)", optional=True),
    ]
    assert run_all(todo, report) == 0
    assert statuses(report) == {"sanitizer": "failed", "memcheck": "left out", "racecheck": "failed"}


def test_a_command_that_is_not_there_is_a_failure(report: Report) -> None:
    assert run_all([Stage("probe", ["/none/nvidia-smi"], 9, "all", optional=True), python("next", "pass")], report) == 0
    assert statuses(report) == {"probe": "failed", "next": "ok"} and "/none/nvidia-smi'" in report.log("all").read_text()


@pytest.mark.long
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
    assert run_all([python("bench", code, limit=3, figures=figures)], report) == 1
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
    run_all([python("bench", "pass", figures=figures)], report)
    assert "bench" not in on_disk(report) and statuses(report) == {"bench": "ok"}


def test_no_stage_starts_when_the_time_is_up(report: Report) -> None:
    assert run_all([python("late", "pass")], report, total=-1) == 1
    assert on_disk(report)["stages"]["late"]["reason"] == "no time left"


def test_a_stage_leaves_time_for_those_after_it(report: Report) -> None:
    assert run_all([python("greedy", "pass", limit=500, leaves=60), python("last", "pass")], report, total=59) == 1
    assert statuses(report) == {"greedy": "left out", "last": "ok"}


def test_a_stop_keeps_what_there_is(tmp_path: Path) -> None:
    """The signal that ends `make gpu` from outside."""
    code = f"""
import sys
from pathlib import Path
from bench.gpu import __main__ as program
from bench.gpu.run import Report, Stage
sleep = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
todo = [Stage("one", [sys.executable, "-c", ""], 20, "all"), Stage("two", sleep, 60, "all")]
sys.exit(program.go(todo, Report(Path({str(tmp_path)!r}) / "g.json", {{}})))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("one "):
            break
    while "here\n" not in (tmp_path / "g-all.log").read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "stopped" in errors
    data = json.loads((tmp_path / "g.json").read_text())
    assert not data["complete"] and {name: r["status"] for name, r in data["stages"].items()} == {"one": "ok", "two": "stopped"}
    assert "here" in data["stages"]["two"]["tail"]


# --- the stages of make gpu ----------------------------------------------------------------------------------------------


@pytest.fixture
def todo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Stage]:
    monkeypatch.setattr("bench.gpu.stages.find_tool", lambda name: f"/opt/{name}")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    return {stage.name: stage for stage in stages(tmp_path, FACTS)}


def test_the_most_telling_stages_come_first(todo: dict[str, Stage]) -> None:
    assert list(todo) == [
        "probe", "build", "info", "small tests", "bench", "tests", "op suite", "sanitizer", "memcheck", "racecheck",
        "bench densities", "bench 100m", "bench 1b", "ncu", "bench triton",
    ]  # fmt: skip
    assert todo["build"].environment == {"DSTEE_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": "9.0"}
    tests = [todo[name] for name in ("small tests", "tests", "op suite", "memcheck", "racecheck")]
    assert all(stage.environment["DSTEE_REQUIRE_GPU"] == "1" for stage in tests)
    for word in [w for stage in todo.values() for w in stage.command if w.startswith("tests/")]:
        assert (ROOT / word).is_file(), word
    assert TOTAL <= 9 * 60 - 20
    assert len({stage.log for stage in todo.values()}) + 1 <= 8, "files: the report and the logs"


def test_tools_that_are_not_installed_have_no_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu.stages.find_tool", lambda name: None)
    assert not {"sanitizer", "memcheck", "racecheck", "ncu"} & {stage.name for stage in stages(tmp_path, FACTS)}


def test_the_commands_of_the_benchmark_can_be_parsed(todo: dict[str, Stage]) -> None:
    """``python -m bench`` takes them, up to the GPU that is not here, and knows whom they name."""
    benches = [stage for stage in todo.values() if stage.figures is not None]
    assert len(benches) == 5
    for stage in benches:
        assert stage.command[1:3] == ["-m", "bench"]
        args = cli.make_parser().parse_args(stage.command[3:])
        assert (args.device, args.json) == ("cuda", stage.figures)
        args.device = "cpu"
        assert {task["op"] for task in plan.tasks(args)} == {"masked_sgd", "drop_grow"}


@pytest.mark.long
def test_the_commands_of_the_tests_can_be_parsed(todo: dict[str, Stage]) -> None:
    """Up to the GPU that is not here."""
    command = [*todo["op suite"].command, "--collect-only"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 5), done.stdout + done.stderr  # 5: no test is left


def test_the_profiled_calls_run(todo: dict[str, Stage]) -> None:
    command = list(todo["ncu"].command)
    command = [*command[command.index(sys.executable) :], "--device", "cpu", "--shapes", "mlp"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PROFILED = """\
==PROF== Connected to process 7
spam
==PROF== Profiling "sweep_kernel": 0%....50%....100% - 9 passes
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"Section Name","Metric Name","Metric Unit","Metric Value","Rule Name","Rule Type","Rule Description"
"0","7","python3","127.0.0.1","void dstee::cuda::<unnamed>::sweep_kernel<0>(Table)","1","7","(256, 1, 1)","(528, 1, 1)","0",\
"9.0","GPU Speed Of Light Throughput","Duration","ns","48,160","","",""
"0","7","python3","127.0.0.1","void dstee::cuda::<unnamed>::sweep_kernel<0>(Table)","1","7","(256, 1, 1)","(528, 1, 1)","0",\
"9.0","Compute Workload Analysis","Issue Slots Busy","%","61.25","","",""
"0","7","python3","127.0.0.1","void dstee::cuda::<unnamed>::sweep_kernel<0>(Table)","1","7","(256, 1, 1)","(528, 1, 1)","0",\
"9.0","Occupancy","","","","Occupancy","OPT","a, hint"
"1","7","python3","127.0.0.1","masked_sgd_kernel","1","7","(256, 1, 1)","(99, 1, 1)","0",\
"9.0","Command line profiler metrics","dram__bytes_read.sum","byte","1.5e+06","","",""
"""


def test_the_profilers_table_is_read() -> None:
    assert counters.parse(PROFILED) == [
        {"kernel": "sweep_kernel", "grid": "(528, 1, 1)", "block": "(256, 1, 1)",
         "metrics": {"Duration": 48160.0, "Issue Slots Busy": 61.25}},
        {"kernel": "masked_sgd_kernel", "grid": "(99, 1, 1)", "block": "(256, 1, 1)",
         "metrics": {"dram__bytes_read.sum": 1.5e6}},
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no table"):
        counters.parse("==ERROR== ERR_NVGPUCTRPERM")


# --- the machine ---------------------------------------------------------------------------------------------------------


def test_a_copy_without_git_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSTEE_COMMIT", "abc123")
    assert commit.commit() == "abc123"
    monkeypatch.delenv("DSTEE_COMMIT")
    monkeypatch.setattr(commit, "__file__", "/commit.py")
    assert commit.commit() == "" and not commit.is_dirty()


def test_what_is_missing_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "find_tool", lambda name: None)
    monkeypatch.setattr(machine, "MODULES", ("json", "spam"))
    monkeypatch.setattr(machine.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(machine, "_torch", lambda: {"torch": "2.11.0", "torch_cuda": "13.0"})
    monkeypatch.setattr(machine, "said", lambda *command: "")
    modules, gpu, nvcc, headers = machine.problems()
    assert modules.endswith("has no spam: install them, or name another Python by PYTHON=...")
    assert gpu == "torch 2.11.0 sees no GPU, and nvidia-smi lists none: run this on a machine that has one"
    assert nvcc == "nvcc was not found: install the CUDA toolkit, or set CUDA_HOME to where it is"
    assert "finds no usable Python.h" in headers and "CPLUS_INCLUDE_PATH" in headers
    (tmp_path / "Python.h").touch()
    assert machine.problems() == [modules, gpu, nvcc]
    monkeypatch.setenv("CXX", "spam++ -O1")
    assert machine.problems()[3] == "spam++ -O1 was not found: install g++, or set CXX to another C++ compiler"


@pytest.mark.parametrize(
    ("found", "said", "expected"),
    [
        ({"error": "ImportError: libcudart.so.13"}, "", "torch cannot be imported: ImportError: libcudart.so.13"),
        ({"torch": "2.9.1", "torch_cuda": "13.0"}, "", "torch 2.9.1 is too old: the kernels need 2.11 or newer"),
        ({"torch": "2.11.0+cpu", "torch_cuda": None}, "", "torch 2.11.0+cpu is built without CUDA"),
        ({"torch": "2.11.0", "torch_cuda": "13.0"}, "GPU 0: NVX (UUID: 1)", "torch 2.11.0 cannot use GPU 0: NVX: the driver"),
        ({"torch": "2.11.0", "torch_cuda": "13.0", "gpu": "NVIDIA H200"}, "", ""),
    ],
)  # fmt: skip
def test_why_torch_has_no_gpu(found: dict[str, Any], said: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_torch", lambda: found)
    monkeypatch.setattr(machine, "said", lambda *command: said)
    assert machine._why_no_gpu().startswith(expected) and bool(machine._why_no_gpu()) == bool(expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert ("sees no GPU" in said or "without CUDA" in said) and not list(tmp_path.iterdir())
