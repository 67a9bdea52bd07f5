"""The benchmark as its users run it: who is wrong, dies or hangs gets no number and stops nobody; a sweep can be resumed."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import cli, cost, harness, layers, measure, plan, results_file, sweep
from bench.layers import UsageError, make_layers
from dstee import ops
from dstee.backends import native


def task(op: str, contenders: list[str], **extra: Any) -> dict[str, Any]:
    """A small row; the buffers that empty the cache and measure the roof are small too."""
    return {
        "key": {"op": op, "case": "tiny", "density": 0.2, "dtype": "float32", "threads": 1, "device": "cpu"},
        "op": op, "shapes": [[30, 20], [7, 3]], "density": 0.2, "dtype": "float32", "swap": 0.3, "device": "cpu",
        "threads": 1, "contenders": contenders, "skipped": {}, "flush_bytes": 1 << 16, "roof_bytes": 1 << 22,
        "plugins": ["support.bench_plugin"], "plan": {"repeats": 6, "budget": 5.0, "least": 3}, **extra,
    }  # fmt: skip


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    """One row with every kind of trouble in it."""
    ours = ["native"] if native.load()[0] else []
    names = [*ours, "reference", "torch.topk", "kthvalue", "full sort", "torch.ao.pruning"]
    names += ["wrong", "lazy", "crash", "hang", "raise", "meddler"]
    return sweep.run_row(task("drop_grow", names), limit=4)


def test_only_the_right_get_a_number(row: dict[str, Any]) -> None:
    found = row["contenders"]
    statuses = {name: one["status"] for name, one in found.items()}
    assert statuses.pop("native", "ok") == "ok"
    assert statuses == {
        "reference": "ok", "torch.topk": "ok", "kthvalue": "ok", "full sort": "ok", "torch.ao.pruning": "ok",
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
    assert row["roof"]["copy_gb_s"] > 0.1 and math.isclose(one["share_of_roof"], one["gb_s"] / row["roof"]["copy_gb_s"])
    assert row["n"] == 621 and row["layers"] == 2 and row["gate"] == "reference"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_stepper_is_right_and_a_lazy_one_is_found(dtype: str) -> None:
    names = ["reference", "SGD foreach + masks", "ITOP apply_mask", "lazy"]
    if dtype == "float32":  # in bfloat16 torch 2.13's fused SGD for CPUs computes something else, and the gate says so
        names = ["SGD fused + masks", "SGD fused, dense", *names]
    found = sweep.run_row(task("masked_sgd", names, dtype=dtype), limit=60)["contenders"]
    assert {name: one["status"] for name, one in found.items()} == dict.fromkeys(names[:-1], "ok") | {"lazy": "wrong"}


def test_a_worker_that_cannot_start_is_an_error_of_the_row() -> None:
    row = sweep.run_row(task("drop_grow", ["reference"], plugins=["no_such_module"]), limit=60)
    assert "No module named" in row["error"]


# --- resume ----------------------------------------------------------------------------------------------------------------


STAMP = {"commit": "abc", "dirty": False, "torch": "2", "dstee": "0", "cpu": "x", "peers": {}}


def fake_row(task: dict[str, Any], limit: float, advance: Any) -> dict[str, Any]:
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


# --- layers and options ----------------------------------------------------------------------------------------------------


def test_shapes_by_name_and_number() -> None:
    sizes = {name: sum(math.prod(s) for s in layers.by_name(name).values()) for name in layers.SHAPES}
    assert sizes["resnet50"] == 25_502_912 and sizes["gpt2"] == 12 * 12 * 768**2 and sizes["llama-1b"] == 973_078_528
    assert abs(math.prod(layers.by_name("1e6")["weight"]) - 1e6) < 1e3
    for bad in ("resnet", "3", "1e12", "nan"):
        with pytest.raises(UsageError, match="--shapes"):
            layers.by_name(bad)


def test_the_users_own_layers(tmp_path: Path) -> None:
    expected = {"1.weight": (16, 8), "2.weight": (5, 3, 3, 3)}
    assert layers.of_model("support.bench_plugin:factory") == expected
    state = {
        "1.weight": torch.zeros(16, 8),
        "2.weight": torch.zeros(5, 3, 3, 3),
        "bias": torch.zeros(16),
        "t": torch.zeros(4, 4).int(),
    }
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "m.pt")
    assert layers.of_model(str(tmp_path / "m.pt")) == expected
    header = json.dumps({"a": {"dtype": "BF16", "shape": [4, 4], "data_offsets": [0, 32]}, "__metadata__": {}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(32))
    assert layers.of_model(str(tmp_path / "m.safetensors")) == {"a": (4, 4)}


@pytest.mark.parametrize(
    ("name", "content"),
    [("m.safetensors", b"\xff" * 20), ("m.safetensors", b""), ("m.safetensors", (9).to_bytes(8, "little") + b'{"a": 1}' + b" "),
     ("m.pt", b"junk"), ("gone.pt", None)],
)  # fmt: skip
def test_damaged_model_files_are_told(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match="--from-model"):
        layers.of_model(str(tmp_path / name))


@pytest.mark.parametrize(
    "source", ["nothing", "no_such_module:f", "support.bench_plugin:absent", "math:pi", "support.bench_plugin:Lazy.__name__"]
)
def test_factories_that_are_none(source: str) -> None:
    with pytest.raises((UsageError, TypeError)):
        layers.of_model(source)


WRONG = """--density 0
--swap 2
--repeats 1
--threads 0
--against nobody
--plugin no_such
--shapes x
--shapes mlp --from-model a:b
--op step --shapes gpt2
--resume a.json --json b.json
report /nowhere/a.json
compare a
dance"""


@pytest.mark.parametrize("words", WRONG.splitlines())
def test_wrong_options_are_told_in_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 3
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("dstee: error:")


def test_slow_contenders_run_once(capsys: pytest.CaptureFixture[str]) -> None:
    args = cli.make_parser().parse_args(["--shapes", "mlp", "--density", "0.1", "0.05"])
    updates = [t for t in plan.tasks(args) if t["op"] == "drop_grow"]
    assert "reference" in updates[0]["contenders"] and updates[1]["skipped"]["reference"].startswith("slow")


# --- counting and digests --------------------------------------------------------------------------------------------------


def test_the_cases_have_exact_counts() -> None:
    made = make_layers([(64, 33), (5,)], 0.1, 0.3)
    assert [int(m.sum()) for m in made.masks] == [layers.wanted(64 * 33, 0.1), 1] and made.k == [63, 0]
    N = ops.decode_counts(made.counts[0], made.mask_bits[0], layers.ROUND, (64, 33))
    assert int(N.min()) == 0 and 0.7 < float((N[~made.masks[0]] == 0).float().mean()) < 0.9 and len(N.unique()) > 4


def test_bytes_of_a_case_counted_by_hand() -> None:
    mask = torch.zeros(256, dtype=torch.bool)
    mask[[0, 1, 40]] = True  # lines 0 and 2 of 16 floats
    zeros = torch.zeros(256)
    made = layers.Layers([zeros], [zeros], [zeros], [mask], [ops.pack_mask(mask)], [zeros.short()], [1])
    assert cost.lines([mask], 4) == 2 and cost.lines([mask], 2) == 2 and cost.lines([mask], 4, 32) == 2
    assert cost.masked_sgd_bytes(made) == 32 + 5 * 64 * 2
    after = mask.clone()
    after[1], after[200] = False, True
    # read 6 n + n/8 + 2 lines of weights; written: counters of 1 and 200 (2 lines), the line of weight 1, all of the mask
    assert cost.drop_grow_bytes(made, [after]) == 6 * 256 + 32 + 128 + 128 + 64 + 32


def test_a_digest_sees_one_bit_and_a_swap() -> None:
    x = torch.arange(40_000, dtype=torch.int32)
    digest = measure.fingerprint([x, torch.ones(3)])
    assert digest == measure.fingerprint([x.clone(), torch.ones(3)])
    for i, j in ((5, 9), (0, 39_999), (100, 100 + 8192)):
        y = x.clone()
        y[[i, j]] = y[[j, i]]
        assert measure.fingerprint([y, torch.ones(3)]) != digest
    assert measure.fingerprint([x, torch.tensor([1.0, 1.0, 1.0 + 2**-23])]) != digest


def test_the_scripts_for_gpus_find_what_they_use() -> None:
    assert harness.quantiles([1.0, 2.0, 3.0])["median_ms"] == 2000 and harness.Layers is layers.Layers
    assert isinstance(cli.make_parser(), argparse.ArgumentParser)
