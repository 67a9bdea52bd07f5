"""How time grows: what is varied, data that may be slow, and which points stand out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bench_rows import result, task

from bench import adversarial, cli, plan, report, results_file, scaling_report, sweep, worker
from bench.adversarial import KINDS, ORDINARY
from bench.environment import all_cores
from bench.layers import make_layers, masks_of

pytestmark = pytest.mark.long


def parse(*words: str) -> list[dict[str, Any]]:
    return [dict(t) for t in plan.tasks(cli.make_parser().parse_args(["--op", "scaling", *words]))]


def test_one_thing_is_varied_at_a_time() -> None:
    made = parse("--largest", "1e8")
    assert len({json.dumps(t["key"]) for t in made}) == len(made) and all(t["keep"] for t in made)
    both = {(dtype, threads) for dtype in ("float32", "bfloat16") for threads in {1, all_cores()}}
    for sweep_, least, most in (
        ("n", 1e4, 1e8), ("layers", 1, 5000), ("small layers", 1, 5000), ("density", 0.001, 0.5), ("swap", 0.001, 1),
        ("data", 0, len(KINDS) - 1),
    ):  # fmt: skip
        for op in ("drop_grow", "masked_sgd"):
            rows = [t["key"] for t in made if (t["key"]["sweep"], t["key"]["of"]) == (sweep_, op)]
            if sweep_ == "swap" and op == "masked_sgd":
                assert not rows
                continue
            assert {(key["dtype"], key["threads"]) for key in rows} == both
            assert (min(key["x"] for key in rows), max(key["x"] for key in rows)) == (least, most)
    assert {t["key"]["case"] for t in made if t["key"]["sweep"] == "data"} == set(KINDS)
    assert sum(t["shapes"][0] == [64, 78] and len(t["shapes"]) == 5000 for t in made) == 2 * len(both)


def test_tasks_that_follow_each_other_share_their_layers() -> None:
    made = parse("--largest", "1e6")
    cases = [json.dumps([t[name] for name in ("shapes", "density", "swap", "dtype", "data")]) for t in made]
    changes = sum(a != b for a, b in itertools.pairwise(cases))
    assert changes < len(made) / (2 * len({1, all_cores()})) * 1.3


def test_options_narrow_it() -> None:
    made = parse("--largest", "1e5", "--threads", "1", "--dtype", "float16", "--repeats", "3")
    assert {(t["threads"], t["dtype"], t["plan"]["repeats"]) for t in made} == {(1, "float16", 3)}


# --- data ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_data_keep_what_layers_promise(kind: str, dtype: torch.dtype) -> None:
    layers, before = (make_layers([(64, 32), (10, 3)], 0.2, 0.3, dtype=dtype) for _ in range(2))
    KINDS[kind](layers)
    assert (kind == ORDINARY) == all(torch.equal(a, b) for a, b in zip(layers.tensors(), before.tensors(), strict=True))
    for i, mask in enumerate(masks_of(layers.mask_bits, layers.shapes)):
        assert torch.equal(mask, layers.masks[i]) and int(mask.sum()) == int(before.masks[i].sum())
        assert not layers.params[i][~mask].any() and not layers.momenta[i][~mask].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_takes_odd_data(kind: str) -> None:
    for op in ("drop_grow", "masked_sgd"):
        one = task(op, ["reference"], data=kind, plan={"repeats": 3, "roof": False})
        row = worker.run_row(one, lambda name, phase: None)
        assert row["contenders"]["reference"]["status"] == "ok"


def test_what_the_data_are() -> None:
    layers = make_layers([(64, 32)], 0.2, 0.3)
    adversarial.KINDS["gradients of 8 values"](layers)
    assert len(layers.grads[0].unique()) == 8
    adversarial.KINDS["half the units dead"](layers)
    assert not layers.params[0][::2].any() and not layers.grads[0][::2].any() and layers.grads[0][1::2].all()
    adversarial.KINDS["active weights in front"](layers)
    assert layers.masks[0].view(-1)[:409].all() and int(layers.masks[0].sum()) == 409


# --- report ----------------------------------------------------------------------------------------------------------------


def rows(sweep_: str, times: dict[float, float], cases: list[str] | None = None, **key: Any) -> list[dict[str, Any]]:
    return [
        {
            "key": {"op": "scaling", "of": "drop_grow", "sweep": sweep_, "x": x, "dtype": "float32", "threads": 1,
                    "case": cases[i] if cases else f"{sweep_} {x:g}", **key},
            "n": 10**6, "contenders": {"native": result([time])},
        }
        for i, (x, time) in enumerate(times.items())
    ]  # fmt: skip


def document(*found: dict[str, Any]) -> dict[str, Any]:
    return dict(results_file.new({"cpu": "x"}, {})) | {"rows": list(found)}


def test_a_point_is_compared_with_the_line_through_its_neighbours() -> None:
    straight = document(*rows("n", {10.0: 1.0, 100.0: 10.0, 200.0: 20.0, 1000.0: 100.0}))
    (points,) = scaling_report.curves(straight).values()
    ends, *inner = scaling_report.factors("n", points)
    assert ends is None and inner.pop() is None and inner == pytest.approx([1.0, 1.0])
    assert scaling_report.above(straight) == []
    assert "0 to look at: no point is more than 2 times" in scaling_report.text(straight)

    half = rows("n", {10.0: 1.0, 100.0: 19.0, 1000.0: 100.0}, dtype="bfloat16")
    bent = document(*rows("n", {10.0: 1.0, 100.0: 25.0, 1000.0: 100.0}), *half)
    assert scaling_report.above(bent) == [
        "drop_grow, weights 100: native, float32, 1 thread: 2.5 times the line through its neighbours"
    ]
    shown = scaling_report.text(bent)
    assert "2.50!" in shown and "1.90" in shown and "1.90!" not in shown and "1 to look at:" in shown and "25.00" in shown


def test_odd_data_are_compared_with_ordinary_data() -> None:
    made = document(*rows("data", {0.0: 2.0, 1.0: 60.0, 2.0: 1.0}, [ORDINARY, "gradients NaN", "gradients 0"]))
    (sheet,) = scaling_report.sheets(made)
    assert [line[0] for line in sheet.lines] == [ORDINARY, "gradients NaN", "gradients 0"]
    assert [line[3].strip() for line in sheet.lines] == ["1.00", "30.00!", "0.50"]
    assert scaling_report.above(made) == ["drop_grow, gradients NaN: native, float32, 1 thread: 30.0 times ordinary data"]
    assert scaling_report.lines(made) == []


def test_who_has_no_number_is_named() -> None:
    made = document(*rows("n", {10.0: 1.0, 100.0: 10.0}))
    made["rows"][1]["contenders"] = {"native": {"status": "wrong", "reason": "a bit"}}
    made["rows"].append({"key": made["rows"][0]["key"] | {"x": 5.0}, "error": "crashed"})
    assert scaling_report.above(made) == ["drop_grow, n 100: native, float32: wrong: a bit", "drop_grow, n 10: crashed"]


def test_older_files_with_a_sweep_over_threads_are_shown() -> None:
    made = document(*(row for i in (1, 2, 4) for row in rows("threads", {float(i): 8.0 / i}, threads=i)))
    (points,) = scaling_report.curves(made).values()
    assert len(points) == 3 and "over threads" in scaling_report.text(made)


def test_the_page_marks_points() -> None:
    pytest.importorskip("matplotlib")
    page = report.render(document(*rows("n", {10.0: 1.0, 100.0: 25.0, 1000.0: 100.0})))
    assert '<td class="above">2.50!</td>' in page and page.count("<svg") == 2
    assert "1 to look at" in page and "in pairs of" not in page


def test_a_small_sweep_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = sweep.run_row
    monkeypatch.setattr(sweep, "run_row", lambda task, *rest: real({**task, "flush_bytes": 1 << 16}, *rest))
    for name, few in (("LAYERS", (1, 2)), ("SMALL_LAYERS", (1,)), ("DENSITIES", (0.1, 0.2)), ("SWAPS", (0.3, 1.0))):
        monkeypatch.setattr(f"bench.scaling.{name}", few)
    words = ["--op", "scaling", "--largest", "1e4", "--dtype", "float32", "--threads", "1", "--repeats", "3"]
    assert cli.main([*words, "--json", str(tmp_path / "a.json")]) == 0
    made = results_file.read(tmp_path / "a.json")
    assert made["complete"] and all("roof" not in row for row in made["rows"])
    shown = capsys.readouterr().out
    assert "scaling  n 10000  10 %  1 thread  drop_grow: " in shown and "ns each)" in shown and "to look at" in shown
    assert cli.main([*words, "--resume", str(tmp_path / "a.json")]) == 0
    assert results_file.read(tmp_path / "a.json")["rows"] == made["rows"]
