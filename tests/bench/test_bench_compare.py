"""Verdicts of a comparison of two result files."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
from support.bench_rows import document, result, samples

from bench import cli, compare, results_file
from dstee._console import UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("factor", "noise", "n", "machine", "verdict", "status"),
    [
        (1.0, 0.01, 31, 1.0, "same", 0),
        (1.02, 0.01, 31, 1.0, "same", 0),
        (1.2, 0.01, 31, 1.0, "slower", 1),
        (0.8, 0.01, 31, 1.0, "faster", 0),
        (1.2, 0.5, 31, 1.0, "cannot tell", 3),  # drowned in noise
        (1.5, 0.01, 3, 1.0, "cannot tell", 3),  # three samples prove nothing
        (1.2, 0.01, 31, 1.2, "cannot tell", 3),  # the machine itself got slower
        (1.2, 0.01, 31, 0.8, "slower", 1),  # the machine got faster, this did not
        (1.045, 0.03, 31, 1.0, "cannot tell", 3),
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


def test_compare_prints_and_returns(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, middle in zip(paths, (10, 13), strict=True):
        results_file.write(path, document({"native": result(samples(middle))}))
    out = io.StringIO()
    assert compare.run(*paths, 0.05, False, out) == 1
    text = out.getvalue()
    assert "slower" in text and "1.3" in text and text.strip().endswith("slower (dstee's backends; margin 5%)")


# --- who decides -----------------------------------------------------------------------------------------------------------


def pair(**middles: tuple[float, float]) -> tuple[Any, Any]:
    """Two documents with contenders of these medians; those of one letter are others'."""
    made = []
    for i in (0, 1):
        made.append(document({
            name: result(samples(middle[i], 31 if name != "reference" else 3, seed=i), ours=len(name) > 1)
            for name, middle in middles.items()
        }))  # fmt: skip
    return made[0], made[1]


def status(a: Any, b: Any) -> int:
    return compare.exit_status(compare.compare(a, b))


def test_dstees_own_backends_decide() -> None:
    a, b = pair(native=(1, 1), x=(1, 2))
    assert status(a, b) == 0 and compare.exit_status(compare.compare(a, b), everyone=True) == 1
    assert status(*pair(native=(1, 2), x=(2, 1))) == 1
    assert status(*pair(native=(1, 1), triton=(1, 2))) == 1, "each of them"
    assert compare.exit_status([]) == 3 and status(*pair(x=(1, 1))) == 3, "nobody is there to judge by"


def test_the_reference_decides_where_it_is_alone() -> None:
    assert status(*pair(native=(1, 1), reference=(1, 3))) == 0, "the specification, and three samples of it"
    assert status(*pair(reference=(1, 3), x=(1, 1))) == 3


def test_a_figure_that_is_gone_is_no_same() -> None:
    for gone in ({"status": "wrong", "reason": "x", "ours": True}, {"status": "skipped", "reason": "not built"}, None):
        a, b = pair(native=(1, 1), reference=(1, 1), x=(1, 1))
        del b["rows"][0]["contenders"]["native"]
        if gone:
            b["rows"][0]["contenders"]["native"] = gone
        assert status(a, b) == 3, gone
    a, b = pair(native=(1, 1), x=(1, 1))
    del b["rows"][0]["contenders"]["x"]
    a["rows"][0]["contenders"]["triton"] = {"status": "skipped", "reason": "no GPU"}
    b["rows"][0]["contenders"]["triton"] = result(samples(1))
    assert [v.contender for v in compare.compare(a, b)] == ["native"] and status(a, b) == 0
    b["rows"][0]["key"]["density"] = 0.2
    assert compare.compare(a, b) == [] and "1 of 1 rows of B are in that file alone" in compare.differences(a, b)


@pytest.mark.parametrize("path", sorted((ROOT / "bench" / "results").glob("*.json")), ids=lambda path: path.name)
def test_a_file_is_the_same_as_itself(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(path), str(path)]) == 0
    shown = capsys.readouterr()
    assert "slower" not in shown.out and shown.out.endswith("same or faster (dstee's backends; margin 5%)\n") and not shown.err
    held = results_file.read(path)
    verdicts = compare.compare(held, copy.deepcopy(held))
    assert verdicts and all(v.verdict == compare.SAME or "in A" in v.why for v in verdicts)


def test_what_changed_for_others_stands_in_one_line(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    made = pair(native=(1, 1), x=(1, 2), y=(2, 1), z=(1, 1), reference=(1, 1.5))
    for path, one in zip(paths, made, strict=True):
        results_file.write(path, one)
    out = io.StringIO()
    assert compare.run(*paths, 0.05, False, out) == 0
    lines = [line.split() for line in out.getvalue().splitlines() if line.startswith("  ")]
    assert [line[0] for line in lines] == ["native", "others,"]
    folded = " ".join(lines[1])
    assert folded.startswith("others, which decide nothing: 1 slower (x 2.0") and "1 faster (y 0.5" in folded
    assert "1 same, 1 cannot tell" in folded
    out = io.StringIO()
    assert compare.run(*paths, 0.05, True, out) == 1
    lines = [line.split() for line in out.getvalue().splitlines() if line.startswith("  ")]
    assert [line[0] for line in lines] == ["native", "x", "y", "z", "reference"]


def test_what_processes_send_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "bench" / "results" / "ranks" / "cpu.json"
    with pytest.raises(UsageError, match="of bench ranks, which counts what processes send"):
        compare.run(path, path, 0.05, False, io.StringIO())
    assert cli.main(["compare", str(path), str(path)]) == 2 and len(capsys.readouterr().err.splitlines()) == 1
