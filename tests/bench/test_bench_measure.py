"""Measuring one row: the gate's digest, clocks, turns, and the path for GPUs with a clock that is made up."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from support.fake_cuda_clock import FakeCudaClock

from bench import clock, measure
from bench.contenders.dstee import Backend
from bench.contenders.registry import contenders
from bench.digest import digest
from bench.layers import make_layers
from bench.session import Contender, Session, Setting


def test_the_digest_is_one_of_all_bytes() -> None:
    x = torch.arange(40_000, dtype=torch.int32)
    found = digest([x, torch.ones(3)])
    assert found == digest([x.clone(), torch.ones(3)])
    for i, j in ((5, 9), (0, 39_999), (100, 100 + 8192)):
        y = x.clone()
        y[[i, j]] = y[[j, i]]
        assert digest([y, torch.ones(3)]) != found
    assert digest([x, torch.tensor([1.0, 1.0, 1.0 + 2**-23])]) != found
    assert digest([x[:5], x[5:]]) != digest([x[:6], x[6:]]), "the same bytes in other tensors"
    assert digest([torch.zeros(2)]) != digest([torch.tensor([0.0, -0.0])])
    assert digest([x.to(torch.bool), torch.empty(0)]) == digest([x != 0, torch.empty(0)])


def test_the_digest_sees_changes_that_cancel_in_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is added and taken away in two rows and two columns, so that the sums over rows and over columns stay."""
    x = torch.randint(1 << 40, (64, 4096), generator=torch.Generator().manual_seed(0))
    y = x.clone()
    y[3:5, 7:9] += torch.tensor([[1, -1], [-1, 1]])
    assert torch.equal(x.sum(0), y.sum(0)) and torch.equal(x.sum(1), y.sum(1))
    assert digest([x]) != digest([y])
    monkeypatch.setattr("bench.digest.CHUNK", 1 << 16)
    assert digest([x]) != digest([y]), "in several chunks"
    blocks = torch.zeros(4, 1 << 16, dtype=torch.uint8)
    blocks[1] = 1
    assert digest([blocks]) != digest([blocks[[1, 0, 2, 3]]]), "whole chunks in another order"


def test_the_gate_finds_a_change_that_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contender whose result differs in one repeat, in bits that cancel in sums, is wrong though its last result is right."""
    setting = Setting("drop_grow", make_layers([(8, 4096)], 0.2, 0.3), 0.2, 0.3)

    class OnceOtherwise(Backend):
        calls = 0

        def call(self) -> None:
            super().call()
            self.calls += 1
            if self.calls == 3:
                self.setting.work.params[0].view(torch.int64)[2:4, 5:7] += torch.tensor([[1, -1], [-1, 1]])

    contender = Contender("otherwise", "drop_grow", "", lambda setting: OnceOtherwise(setting, "reference"), ours=True)
    found = measure.measure(setting, [contender], measure.Plan(5), clock.CpuClock(64), lambda *event: None, 1 << 16)
    assert found["contenders"]["otherwise"]["reason"] == "the result differs from repeat to repeat"


def test_a_contender_that_writes_to_the_inputs_ends_the_row() -> None:
    setting = Setting("drop_grow", make_layers([(30, 20)], 0.2, 0.3), 0.2, 0.3)
    meddler = next(c for c in contenders(["support.bench_plugin"]) if c.name == "meddler")
    with pytest.raises(measure.InputsChanged, match="inputs that all contenders share"):
        measure.measure(setting, [meddler], measure.Plan(5), clock.CpuClock(64), lambda *event: None, 1 << 16)


def test_a_session_must_be_whole() -> None:
    class Half(Session):
        def call(self) -> None: ...

    with pytest.raises(TypeError, match="abstract"):
        Half(Setting("drop_grow", make_layers([(8, 8)], 0.2, 0.3), 0.2, 0.3))  # type: ignore[abstract]


def test_memory_of_a_call_is_seen() -> None:
    if not clock.reset_peak():
        pytest.skip("this system keeps no high-water mark of resident memory")
    timer = clock.CpuClock(1 << 16)
    extra, took = timer.extra_memory(lambda: torch.ones(8 << 20))  # 32 MiB
    assert extra is not None and 30 << 20 < extra < 60 << 20 and took > 0
    assert timer.seconds(lambda: time.sleep(0.02)) >= 0.02


def test_a_gpu_is_busy_with_a_cold_cache_when_the_call_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the call lies between the two events, and all is done before the time is read."""
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.time = 0.0

        def record(self) -> None:
            done.append("event")
            self.time = 5.0 * done.count("event")

        def elapsed_time(self, stop: Event) -> float:
            done.append("read")
            return stop.time - self.time

    class Buffer:
        def fill_(self, value: int) -> None:
            done.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("busy"))
    timer = FakeCudaClock()
    timer._buffer = Buffer()  # type: ignore[assignment]
    assert clock.CudaClock.seconds(timer, lambda: done.append("call")) == pytest.approx(5e-3)
    assert done == ["wait", "flush", "busy", "event", "call", "event", "wait", "read"]


def test_on_a_gpu_each_call_is_a_graph_too() -> None:
    setting = Setting("drop_grow", make_layers([(30, 20)], 0.2, 0.3), 0.2, 0.3)
    chosen = [c for c in contenders() if c.op == "drop_grow" and c.name in ("reference", "torch.topk")]
    told: list[tuple[str | None, str]] = []
    found: dict[str, Any] = measure.measure(
        setting, chosen, measure.Plan(5), FakeCudaClock(), lambda *event: told.append(event), roof_bytes=1 << 16
    )
    one = found["contenders"]["reference"]
    assert one["median_ms"] == 2 and one["graph"]["status"] == "ok" and one["graph"]["repeats"] == 5
    assert found["contenders"]["torch.topk"]["graph"] == {
        "status": "failed", "reason": "RuntimeError: operation not permitted when stream is capturing"
    }  # fmt: skip
    assert ("reference", "CUDA graph") in told


def test_turns_are_abba() -> None:
    setting = Setting("masked_sgd", make_layers([(30, 20)], 0.2, 0.3), 0.2, 0.3)
    chosen = [c for c in contenders() if c.op == "masked_sgd" and c.name in ("reference", "SGD foreach + masks")]
    told: list[str | None] = []

    def emit(name: str | None, phase: str) -> None:
        if phase.startswith("repeat"):
            told.append(name)

    measure.measure(setting, chosen, measure.Plan(4), clock.CpuClock(64), emit, roof_bytes=1 << 16)
    a, b = "reference", "SGD foreach + masks"
    assert told == [a, b, b, a] * 2
