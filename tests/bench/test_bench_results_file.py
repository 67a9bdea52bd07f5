"""The form of result files, and what is shown of them."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from support.bench_rows import document, result, samples

from bench import compare, environment, report, results_file, table
from dstee._console import UsageError

ROOT = Path(__file__).resolve().parents[2]


def test_a_document_comes_back_as_it_went(tmp_path: Path) -> None:
    made = document({"native": result(samples(1)), "peer": {"status": "skipped", "reason": "absent"}})
    made["stamp"] = environment.describe()
    results_file.write(tmp_path / "x" / "a.json", made)
    assert results_file.read(tmp_path / "x" / "a.json") == json.loads(json.dumps(made))
    assert {"commit", "dirty", "cpu", "torch", "date", "build"} <= made["stamp"].keys()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(schema_version=2), "schema_version is 2"),
        (lambda d: d.update(schema_version=True), "schema_version is True"),
        (lambda d: d.update(schema_version=1.0), "schema_version is 1.0"),
        (lambda d: d.update(stamp=[]), "stamp is missing or no dict"),
        (lambda d: d.pop("rows"), "rows is missing"),
        (lambda d: d["rows"][0]["key"].update(density="high"), "row 0: density of its key is 'high'"),
        (lambda d: d["rows"][0]["key"].update(threads=True), "row 0: threads of its key is True"),
        (lambda d: d["rows"][0]["key"].update(case=1), "row 0: case of its key is 1"),
        (lambda d: d["rows"][0].update(contenders=[]), "contenders is no object"),
        (lambda d: d["rows"][0]["contenders"]["native"].update(samples_ms=[True]), "samples_ms"),
        (lambda d: d["rows"][0]["contenders"]["native"].update(samples_ms=[-1.0]), "samples_ms"),
        (lambda d: d["rows"][0]["contenders"]["native"].update(samples_ms=[]), "samples_ms"),
        (lambda d: d["rows"][0]["contenders"]["native"].update(median_ms=True), "median_ms"),
        (lambda d: d["rows"][0]["contenders"]["native"].update(median_ms=-1), "median_ms"),
        (lambda d: d["rows"][0]["contenders"]["native"].update(p80_ms="1"), "p80_ms is '1'"),
        (lambda d: d["rows"][0]["contenders"]["native"].update(ours=1), "ours is 1"),
        (lambda d: d["rows"].append({}), "row 1 has no key"),
        (lambda d: d["rows"][0].update(roof={"copy_gb_s": 1.0}), "row 0: roof has no copy_gb_s or no read_gb_s"),
        (lambda d: d["rows"][0].update(roof_by="guess"), "roof_by is 'guess', expected copy or pairs"),
        (lambda d: d["rows"][0].update(roof_by="pairs"), "roofs_ms has no lines or no pairs"),
        (lambda d: d["rows"][0].update(roof_by="pairs", roofs_ms={"lines": 1, "pairs": 2}), "read_bytes has no lines"),
        (lambda d: d["rows"][0]["contenders"]["native"].pop("samples_ms"), "samples_ms"),
        (lambda d: d["rows"][0]["contenders"]["native"].update(status="great"), "no status"),
        (lambda d: d["rows"][0]["contenders"].update(x={"status": "wrong"}), "no reason"),
    ],
)
def test_a_document_of_another_form_is_refused(tmp_path: Path, change: Any, told: str) -> None:
    made = document({"native": result(samples(1))})
    change(made)
    (tmp_path / "a.json").write_text(json.dumps(made))
    with pytest.raises(UsageError, match=told):
        results_file.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": 1, "a": 2}', "[NaN]", "[1e999]", "[" * 100_000, "[" * 99 + "]" * 99, "9" * 9999]
)
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UsageError, match="proper JSON"):
        results_file.read(tmp_path / "a.json")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe cannot be read: not a regular file"):
        results_file.read(tmp_path / "pipe")
    monkeypatch.setattr(results_file, "LARGEST", 10)
    (tmp_path / "a.json").write_text("{}" + " " * 9)
    with pytest.raises(UsageError, match=r"a\.json cannot be read: more than 10 bytes"):
        results_file.read(tmp_path / "a.json")


def test_cost_per_step() -> None:
    made = document({"native": result([10.0]), "topk": result([300.0], step="by hand")})
    step = copy.deepcopy(made["rows"][0])
    step["key"]["op"], step["contenders"] = "masked_sgd", {"native": result([2.0]), "by hand": result([5.0])}
    made["rows"].append(step)
    results_file.amortised(made, 100)
    found = made["rows"][0]["contenders"]
    assert math.isclose(found["native"]["amortised_ms"], 2.1) and math.isclose(found["topk"]["amortised_ms"], 8.0)


READ_ROOF = {
    "roof_by": "pairs", "roofs_ms": {"lines": 0.4, "pairs": 0.6, "copy": 0.9},
    "read_bytes": {"lines": 8000, "pairs": 9_000_000, "lines_again": 500, "pairs_again": 3_000_000},
}  # fmt: skip


def test_what_a_roof_is_stands_beside_the_figures(tmp_path: Path) -> None:
    """Files from before the roof was one of reads have a copy for it; both can be shown, and compared with each other."""
    pytest.importorskip("matplotlib")
    old = document({"native": result([10.0])})
    new = document({"native": result([10.0])})
    new["rows"][0].update(READ_ROOF)
    for made, has, has_not in ((old, "of a parallel copy", "in pairs of"), (new, "in pairs of 64-byte lines", "parallel copy")):
        results_file.write(tmp_path / "cpu.json", made)
        held = results_file.read(tmp_path / "cpu.json")
        for text in (table.document_text(held), report.render(held)):
            assert has in text and has_not not in text
    assert "12 MB to read; roof 0.50 ms at 20.0 GB/s read (0.40 ms by single lines; 0.90 ms at 20.0 GB/s copy)" in (
        table.document_text(new)
    )
    assert "9.0 kB to move; roof 0.50 ms at 20.0 GB/s copy (20.0 read)" in table.document_text(old)
    both = document({"native": result([10.0])}) | {"rows": [old["rows"][0], new["rows"][0]]}
    assert "; or, in other rows, " in table.document_text(both)
    assert len(compare.compare(old, new)) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "bench" / "results").glob("*.json")), ids=lambda path: path.name)
def test_committed_results_can_be_shown_drawn_and_compared(path: Path) -> None:
    pytest.importorskip("matplotlib")
    held = results_file.read(path)
    assert all(name in table.document_text(held) for row in held["rows"] for name in row["contenders"])
    assert report.render(held).count("<svg") >= min(10, len(held["rows"]))
    verdicts = compare.compare(held, held)
    assert verdicts and {v.verdict for v in verdicts} <= {compare.SAME, compare.UNKNOWN}
