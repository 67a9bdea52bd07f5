"""Verdicts of a comparison of two result files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from support.bench_rows import document, result, samples

from bench import compare, results_file


@pytest.mark.parametrize(
    ("factor", "noise", "n", "machine", "verdict", "status"),
    [
        (1.0, 0.01, 31, 1.0, "same", 0),
        (1.02, 0.01, 31, 1.0, "same", 0),
        (1.2, 0.01, 31, 1.0, "slower", 1),
        (0.8, 0.01, 31, 1.0, "faster", 0),
        (1.2, 0.5, 31, 1.0, "cannot tell", 2),  # drowned in noise
        (1.5, 0.01, 3, 1.0, "cannot tell", 2),  # three samples prove nothing
        (1.2, 0.01, 31, 1.2, "cannot tell", 2),  # the machine itself got slower
        (1.2, 0.01, 31, 0.8, "slower", 1),  # the machine got faster, this did not
        (1.045, 0.03, 31, 1.0, "cannot tell", 2),
    ],
)
def test_verdicts(factor: float, noise: float, n: int, machine: float, verdict: str, status: int) -> None:
    a = document({"native": result(samples(10, n, noise, 1))})
    b = document({"native": result(samples(10 * factor, n, noise, 2))}, copy_gb_s=20 / machine)
    found = compare.compare(a, b)
    assert [v.verdict for v in found] == [verdict] and compare.exit_status(found) == status


def test_a_run_compares_as_same_with_itself_and_the_interval_holds_the_truth() -> None:
    hits = 0
    for seed in range(200):
        r = compare.ratio(samples(10, 31, 0.1, seed), samples(11, 31, 0.1, seed + 1000))
        hits += r.low <= 1.1 <= r.high
    assert hits >= 194, "a 99 % interval"
    same = samples(5)
    assert compare.judge(compare.ratio(same, same), 0.05) == "same"


def test_who_counts_for_the_exit_status() -> None:
    a = document({"native": result(samples(1)), "peer": result(samples(1), ours=False)})
    b = document({"native": result(samples(1)), "peer": result(samples(2), ours=False)})
    found = compare.compare(a, b)
    assert compare.exit_status(found) == 0 and compare.exit_status(found, everyone=True) == 1
    b["rows"][0]["contenders"]["native"] = {"status": "wrong", "reason": "x", "ours": True}
    assert compare.exit_status(compare.compare(a, b)) == 2, "a figure that is gone is no 'same'"
    assert compare.exit_status([]) == 2
    b["rows"][0]["key"]["density"] = 0.2
    assert compare.compare(a, b) == []


def test_compare_prints_and_returns(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, middle in zip(paths, (10, 13), strict=True):
        results_file.write(path, document({"native": result(samples(middle))}))
    out = io.StringIO()
    assert compare.run(*paths, 0.05, False, out) == 1
    text = out.getvalue()
    assert "slower" in text and "1.3" in text and text.strip().endswith("slower (dstee's backends; margin 5%)")
