"""Rows in processes of their own: who is wrong, dies or hangs gets no number and stops nobody; a sweep can be resumed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.bench_rows import task

from bench import results_file, sweep
from dstee.backends import native

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    """One row with every kind of trouble in it."""
    ours = ["native"] if native.load()[0] else []
    names = [*ours, "reference", "torch.topk", "kthvalue", "ITOP sorts", "torch.ao.pruning"]
    names += ["wrong", "lazy", "crash", "hang", "raise", "meddler"]
    return sweep.run_row(task("drop_grow", names), limit=4)


def test_a_wrong_or_broken_contender_gets_no_number(row: dict[str, Any]) -> None:
    found = row["contenders"]
    statuses = {name: one["status"] for name, one in found.items()}
    assert statuses.pop("native", "ok") == "ok"
    assert statuses == {
        "reference": "ok", "torch.topk": "ok", "kthvalue": "ok", "ITOP sorts": "ok", "torch.ao.pruning": "ok",
        "wrong": "wrong", "lazy": "wrong", "crash": "crashed", "hang": "timed out", "raise": "failed",
        "meddler": "crashed",
    }  # fmt: skip
    for name, one in found.items():
        if one["status"] != "ok":
            assert "median_ms" not in one and "samples_ms" not in one and one["reason"], name


def test_reasons_say_what_happened(row: dict[str, Any]) -> None:
    found = row["contenders"]
    assert "params[0]: 1 of 600 elements differ" in found["wrong"]["reason"] or "repeat to repeat" in found["wrong"]["reason"]
    assert "wrote to the inputs" in found["meddler"]["reason"]
    assert "SIGABRT" in found["crash"]["reason"]
    assert "nothing for 4 s" in found["hang"]["reason"]
    assert found["raise"]["reason"] == "RuntimeError: <b>no</b> & never"


def test_a_row_has_what_the_report_needs(row: dict[str, Any]) -> None:
    one = row["contenders"]["reference"]
    assert len(one["samples_ms"]) == one["repeats"] == 6 and one["p20_ms"] <= one["median_ms"] <= one["p80_ms"]
    assert one["digests_equal"] and one["first_call_ms"] > 0 and (one["peak_extra_bytes"] or 0) >= 0
    roof, reads = row["roof"], row["read_bytes"]
    assert roof["copy_gb_s"] > 0.1 and roof["reads_gb_s"].keys() == {"sum", "dot", "max"}
    assert roof["read_gb_s"] == max(roof["reads_gb_s"].values())
    assert row["roof_by"] == "pairs" and math.isclose(one["share_of_roof"], one["gb_s"] / roof["read_gb_s"])
    assert math.isclose(row["roof_ms"] * roof["read_gb_s"], 1e-6 * (reads["pairs"] + reads["pairs_again"]))
    assert math.isclose(row["roofs_ms"]["lines"] * roof["read_gb_s"], 1e-6 * (reads["lines"] + reads["lines_again"]))
    assert math.isclose(row["roofs_ms"]["copy"] * roof["copy_gb_s"], 1e-6 * row["bytes"])
    assert row["n"] == 621 and row["layers"] == 2 and row["gate"] == "reference"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_masked_step_is_right_and_a_call_that_does_nothing_is_not(dtype: str) -> None:
    names = ["reference", "SGD foreach + masks", "ITOP apply_mask", "lazy"]
    if dtype == "float32":  # in bfloat16 torch 2.13's fused SGD for CPUs computes something else, and the gate says so
        names = ["SGD fused + masks", "SGD fused, dense", *names]
    found = sweep.run_row(task("masked_sgd", names, dtype=dtype), limit=60)["contenders"]
    assert {name: one["status"] for name, one in found.items()} == dict.fromkeys(names[:-1], "ok") | {"lazy": "wrong"}


def test_a_worker_that_cannot_start_is_an_error_of_the_row() -> None:
    row = sweep.run_row(task("drop_grow", ["reference"], plugins=["no_such_module"]), limit=60)
    assert "No module named" in row["error"]


def test_a_worker_is_kept_for_tasks_that_say_so_until_it_dies() -> None:
    keep = {"keep": True, "plan": {"repeats": 3, "budget": 5.0, "least": 3, "roof": False}}
    with sweep.Workers() as workers:

        def row(names: list[str], **more: Any) -> tuple[dict[str, Any], int | None]:
            found = sweep.run_row(task("drop_grow", names, **{**keep, **more}), 60, lambda text: None, workers)
            return found, workers._kept and workers._kept._process.pid

        first, process = row(["reference"])
        again, same = row(["reference"], dtype="bfloat16")
        assert process is not None and same == process and "roof" not in first and "bytes" not in first
        assert first["contenders"]["reference"]["digest"] != again["contenders"]["reference"]["digest"]
        back, same = row(["reference"], threads=2)
        assert same == process and back["contenders"]["reference"]["digest"] == first["contenders"]["reference"]["digest"]
        lost, other = row(["crash", "reference"])
        assert other not in (None, process), "the worker that died is followed by another"
        assert [one["status"] for one in lost["contenders"].values()] == ["crashed", "ok"]
        _, none = row(["reference"], keep=False)
        assert none is None


# --- resume ----------------------------------------------------------------------------------------------------------------


STAMP = {"commit": "abc", "dirty": False, "torch": "2", "dstee": "0", "cpu": "x", "peers": {}}


def fake_row(task: dict[str, Any], limit: float, advance: Any, workers: Any) -> dict[str, Any]:
    if task["key"]["case"] == "b" and limit == 1:
        raise KeyboardInterrupt
    times = {"status": "ok", "samples_ms": [1.0], "median_ms": 1.0, "p20_ms": 1.0, "p80_ms": 1.0, "repeats": 1}
    return {"contenders": {name: dict(times, ours=True) for name in task["contenders"]}}


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "run_row", fake_row)
    path, said, shown = tmp_path / "r.json", [], []
    tasks = [task("drop_grow", ["native"], key={"op": "drop_grow", "case": case}) for case in "abc"]

    def go(limit: float, stamp: dict[str, Any], kept: list[dict[str, Any]]) -> None:
        shown.clear()
        fresh = results_file.new(stamp, {"every": 100})
        sweep.run(
            tasks, fresh, path, limit=limit, say=said.append, show=lambda row: shown.append(row["key"]["case"]), kept=kept
        )

    with pytest.raises(KeyboardInterrupt):
        go(1, STAMP, [])
    assert [r["key"]["case"] for r in results_file.read(path)["rows"]] == ["a"] and not results_file.read(path)["complete"]
    go(2, STAMP, sweep.resume_from(path))
    assert results_file.read(path)["complete"] and said == ["kept: drop_grow  a"] and shown == ["a", "b", "c"]
    said.clear()
    go(2, STAMP | {"commit": "def"}, sweep.resume_from(path))
    assert len(said) == 3 and all(text.startswith("measured again") for text in said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json"]
