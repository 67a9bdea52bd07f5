"""Whole steps, the command line from end to end, two real runs compared, and the path for GPUs with a clock that is made up."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench import cli, clock, compare, measure, models, plan, results_file, scaling, steps, sweep
from bench.contenders import Setting, registry
from bench.layers import make_layers
from dstee import cli as dstee_cli


def small_job(name: str, batch: int) -> models.Job:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 10))
    return models.Job(model, torch.randn(5, 3, 4, 4), torch.randint(10, (5,)))


def test_whole_steps_train_and_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "make_job", small_job)
    names = [n for n in steps.IMPLEMENTATIONS if n not in steps.NEEDS or importlib.util.find_spec(steps.NEEDS[n])]
    work = {"contenders": names, "model": "small", "batch": 5, "density": 0.3, "swap": 0.3, "every": 100, "steps": 12,
            "plan": {"budget": 5.0}}  # fmt: skip
    told: list[str | None] = []
    row = steps.run_steps(work, lambda name, phase: told.append(name))
    assert set(told) == set(names) and row["n"] == 8 * 27 + 320
    for name, one in row["contenders"].items():
        assert one["status"] == "ok", one
        assert (
            one["phases_ms"].keys() == set(steps.PHASES) and one["median_ms"] > 0 and (one["updates"] >= 2 or name == "dense")
        )
        assert ("sparse_share" in one) == (name != "dense")


@pytest.mark.parametrize("name", ["dstee", "by hand"])
def test_an_implementation_keeps_the_density(name: str) -> None:
    one = steps.IMPLEMENTATIONS[name](small_job("", 0), 0.3, 0.3)
    counts = []
    for _ in range(9):
        steps._step(one)
        counts.append([int((w != 0).sum()) for w in steps.weights_of(one.model)])
    assert all(c[1] <= 0.4 * 320 for c in counts) and max(c[1] for c in counts) > 0.1 * 320


@pytest.mark.parametrize("name", ["gnn", "mlp"])
def test_models_have_a_loss(name: str) -> None:
    loss = models.make_job(name, 2).loss().detach()
    assert float(loss) > 0 and torch.equal(loss, models.make_job(name, 2).loss().detach())


def test_vgg_and_resnet_have_their_sizes() -> None:
    with torch.device("meta"):
        sizes = [sum(w.numel() for w in steps.weights_of(m())) for m in (models.vgg19, models.resnet50)]
    assert sizes[0] == 20_070_080 and 23e6 < sizes[1] < 24e6


# --- end to end --------------------------------------------------------------------------------------------------------------


def test_the_command_makes_all_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    real = sweep.run_row
    small = {"flush_bytes": 1 << 16, "roof_bytes": 1 << 22}
    monkeypatch.setattr(sweep, "run_row", lambda task, limit, advance: real({**task, **small}, limit, advance))
    words = ["bench", "--shapes", "3000", "--backends", "reference", "--against", "torch.topk", "SGD foreach + masks",
             "--repeats", "7", "--threads", "1", "--json", str(tmp_path / "a.json")]  # fmt: skip
    assert dstee_cli.main([*words, "--html", str(tmp_path / "a.html")]) == 0
    made = results_file.read(tmp_path / "a.json")
    assert made["complete"] and [r["key"]["op"] for r in made["rows"]] == ["masked_sgd", "drop_grow"]
    assert made["rows"][1]["contenders"]["torch.topk"]["amortised_ms"] > 0
    assert "<svg" in (tmp_path / "a.html").read_text()
    shown = capsys.readouterr().out
    assert "torch.topk" in shown and "3,008 weights" in shown

    words[-1] = str(tmp_path / "b.json")
    assert dstee_cli.main([*words, "--op", "drop_grow"]) == 0
    verdicts = compare.compare(made, results_file.read(tmp_path / "b.json"), margin=1.0)
    assert len(verdicts) == 2 and {v.verdict for v in verdicts} <= {"same", "cannot tell"}, verdicts
    assert dstee_cli.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--margin", "1"]) in (0, 2)
    assert dstee_cli.main(["bench", "report", str(tmp_path / "a.json")]) == 0
    json.loads((tmp_path / "b.json").read_text())


def test_scaling_varies_one_thing_at_a_time() -> None:
    args = cli.make_parser().parse_args(["--op", "scaling", "--largest", "1e6"])
    rows = [t for t in plan.tasks(args) if t["op"] == "drop_grow"]
    by = {sweep_: [t["key"]["x"] for t in rows if t["key"]["sweep"] == sweep_] for sweep_ in scaling.SWEEPS}
    assert by["n"][0] == 1000 and by["n"][-1] == 1_000_000 and by["layers"][-1] == 500 and by["density"][-1] == 0.5
    assert by["threads"][-1] == plan.all_cores() and len({json.dumps(t["key"]) for t in rows}) == len(rows)


# --- clocks ------------------------------------------------------------------------------------------------------------------


def test_memory_of_a_call_is_seen() -> None:
    if not clock.reset_peak():
        pytest.skip("this system keeps no high-water mark of resident memory")
    timer = clock.CpuClock(1 << 16)
    extra, took = timer.extra_memory(lambda: torch.ones(8 << 20))  # 32 MiB
    assert extra is not None and 30 << 20 < extra < 60 << 20 and took > 0
    assert timer.seconds(lambda: time.sleep(0.02)) >= 0.02


class FakeCuda(clock.CudaClock):
    """A GPU's clock on a machine without one: the time is made up, a graph is the call itself."""

    def __init__(self) -> None:
        self.flushed, self.calls = 0, 0

    def seconds(self, call: Callable[[], object]) -> float:
        call()
        self.calls += 1
        return 2e-3

    def extra_memory(self, call: Callable[[], object]) -> tuple[int | None, float]:
        call()
        return 1 << 20, 5e-3

    def graphed(self, call: Callable[[], object]) -> Callable[[], object]:
        if "topk" in type(getattr(call, "__self__", call)).__name__.lower():
            raise RuntimeError("operation not permitted when stream is capturing")
        return call


def test_the_path_for_gpus() -> None:
    setting = Setting("drop_grow", make_layers([(30, 20)], 0.2, 0.3), 0.2, 0.3)
    chosen = [c for c in registry() if c.op == "drop_grow" and c.name in ("reference", "torch.topk")]
    told: list[tuple[str | None, str]] = []
    found: dict[str, Any] = measure.measure(
        setting, chosen, measure.Plan(5), FakeCuda(), lambda *event: told.append(event), roof_bytes=1 << 16
    )
    one = found["contenders"]["reference"]
    assert one["median_ms"] == 2 and one["graph"]["status"] == "ok" and one["graph"]["repeats"] == 5
    assert found["contenders"]["torch.topk"]["graph"] == {
        "status": "failed", "reason": "RuntimeError: operation not permitted when stream is capturing"
    }  # fmt: skip
    assert ("reference", "CUDA graph") in told


def test_turns_are_abba() -> None:
    setting = Setting("masked_sgd", make_layers([(30, 20)], 0.2, 0.3), 0.2, 0.3)
    chosen = [c for c in registry() if c.op == "masked_sgd" and c.name in ("reference", "SGD foreach + masks")]
    told: list[str | None] = []

    def emit(name: str | None, phase: str) -> None:
        if phase.startswith("repeat"):
            told.append(name)

    measure.measure(setting, chosen, measure.Plan(4), clock.CpuClock(64), emit, roof_bytes=1 << 16)
    a, b = "reference", "SGD foreach + masks"
    assert told == [a, b, b, a] * 2
