"""The rows of the benchmark for a GPU, without one: on the CPU, with a clock that is made up."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from support.bench_rows import task
from support.fake_cuda_clock import FakeCudaClock

from bench import cost, table, worker
from bench.layers import Layers, make_layers


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's row for a GPU runs on the CPU; every call takes 2 ms."""
    monkeypatch.setattr(worker, "make_clock", lambda device, flush_bytes: FakeCudaClock())

    def make(*arguments: Any, device: str, **options: Any) -> Layers:
        assert device == "cuda"
        return make_layers(*arguments, **options)

    monkeypatch.setattr(worker, "make_layers", make)


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
    assert one["share_of_roof"] == pytest.approx(row["roof_ms"] / 2) and row["roof_by"] == "copy" and "read_bytes" not in row
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
