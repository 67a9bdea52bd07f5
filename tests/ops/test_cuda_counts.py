"""How ``make cuda-check`` holds what the CUDA kernels execute against the committed figures; nothing is compiled or counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from compile_checks import cuda_counts
from cuda_ptx import backend as ptx

from bench import cuda_counts as reader
from bench import predict

OP, DENSITY = "drop_grow with SGD", 0.05


@pytest.fixture
def committed() -> dict[str, Any]:
    return json.loads(reader.FILE.read_text())


@pytest.fixture
def found(committed: dict[str, Any]) -> dict[str, Any]:
    """The same again, for tests to change."""
    return json.loads(json.dumps(committed))


def entry(data: dict[str, Any], kernel: str = "sweep") -> dict[str, Any]:
    (one,) = (e for e in data["entries"] if (e["op"], e["density"], e["kernel"]) == (OP, DENSITY, kernel))
    return one


def raise_figure(e: dict[str, Any], figure: str, factor: float) -> None:
    if figure == "sectors":
        e[figure] = {kind: value * factor for kind, value in e[figure].items()}
    else:
        e[figure] *= factor


def test_the_committed_figures_are_of_every_call_and_of_these_conditions(committed: dict[str, Any]) -> None:
    assert cuda_counts.compare(committed, committed) == []
    for op in predict.OPS:
        for density in cuda_counts.DENSITIES:
            of_call = [e for e in committed["entries"] if (e["op"], e["density"]) == (op, density)]
            assert [e["kernel"] for e in of_call] == list(
                cuda_counts.STAGES[:1] if op == "masked_sgd" else cuda_counts.STAGES[1:]
            )
    ours = {"weights": cuda_counts.N, "processors": cuda_counts.PROCESSORS, "swap": cuda_counts.SWAP, "layers": 1}
    assert {key: committed[key] for key in ours} == ours and set(cuda_counts.CONDITIONS) < set(committed)
    assert reader.FILE.read_text() == cuda_counts.text(committed)


@pytest.mark.parametrize(
    ("figure", "word"),
    [("warp_instructions", "warp instructions"), ("sectors", "sectors"), ("wavefronts", "turns of shared memory")],
)
def test_a_rise_is_named(committed: dict[str, Any], found: dict[str, Any], figure: str, word: str) -> None:
    raise_figure(entry(found, "sample"), figure, 1.025)
    assert cuda_counts.compare(committed, found) == []
    raise_figure(entry(found, "sample"), figure, 1.01)
    (complaint,) = cuda_counts.compare(committed, found)
    old, new = (cuda_counts._figures(data, word)[OP, DENSITY, "sample"] for data in (committed, found))
    assert complaint == f"{OP} at density {DENSITY}: {word} of sample rose from {old:g} to {new:g} (+3.5%)"


def test_more_launches_are_a_rise(committed: dict[str, Any], found: dict[str, Any]) -> None:
    entry(found)["launches"] = 2
    complaints = cuda_counts.compare(committed, found)
    assert complaints[0] == f"{OP} at density 0.05: launches of sweep rose from 1 to 2 (+100.0%)"
    assert complaints[1].startswith(f"{OP} at density 0.05: launches of all launches rose from 5 to 6")


def test_a_figure_that_was_zero_may_not_rise(committed: dict[str, Any], found: dict[str, Any]) -> None:
    entry(found, "commit")["wavefronts"] = 0.001
    assert entry(committed, "commit")["wavefronts"] == 0
    assert cuda_counts.compare(committed, found) == [
        f"{OP} at density 0.05: turns of shared memory of commit rose from 0 to 0.001"
    ]


def test_small_rises_of_all_kernels_add_up_to_no_more_than_the_margin(committed: dict[str, Any], found: dict[str, Any]) -> None:
    """A fall of one does not pay for another's rise, nor hide it; the whole call is held too."""
    entry(found)["warp_instructions"] *= 0.9
    entry(found, "sample")["warp_instructions"] *= 1.2
    (complaint,) = cuda_counts.compare(committed, found)
    assert "of sample rose" in complaint
    entry(found)["warp_instructions"] *= 1.2
    assert [c.partition(" rose")[0].rpartition(" of ")[2] for c in cuda_counts.compare(committed, found)] == [
        "sample", "sweep", "all launches",
    ]  # fmt: skip


def test_falls_are_accepted_and_counted(committed: dict[str, Any], found: dict[str, Any]) -> None:
    entry(found)["warp_instructions"] *= 0.5
    assert cuda_counts.compare(committed, found) == []
    assert cuda_counts.fallen(committed, found) == 2 and cuda_counts.fallen(committed, committed) == 0


def test_kernels_that_come_and_go_are_to_be_committed(committed: dict[str, Any], found: dict[str, Any]) -> None:
    entry(found, "sample")["kernel"] = "spam"
    gone, new = cuda_counts.compare(committed, found)
    assert gone.startswith(f"{OP} at density 0.05: sample is not launched any more: ") and cuda_counts.REMEDY in gone
    assert new.startswith(f"{OP} at density 0.05: spam is not in bench/cuda_counts.json: ") and cuda_counts.REMEDY in new


def test_figures_of_other_conditions_are_not_compared(committed: dict[str, Any], found: dict[str, Any]) -> None:
    found["weights"] = 100
    (complaint,) = cuda_counts.compare(committed, found)
    assert f"weights {cuda_counts.N}, now 100" in complaint and cuda_counts.REMEDY in complaint


def test_instances_of_a_kernel_are_counted_as_one() -> None:
    one = {"launches": 1, "warp_instructions": cuda_counts.N, "sectors": {"load": 1024}, "bytes": {"load": 0}, "wavefronts": 3}
    names = ("sweep_kernel", "sample_kernel<128>", "sample_kernel<64>")
    sample, sweep = cuda_counts.entries_of(dict.fromkeys(names, one), OP, DENSITY)
    assert (sample["kernel"], sample["launches"], sample["warp_instructions"]) == ("sample", 2, 2.0)
    assert (sweep["kernel"], sweep["launches"], sweep["sectors"]) == ("sweep", 1, {"load": 0.000977})


# --- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]) -> dict[str, Any]:
    """What the command counts in place of the kernels."""
    monkeypatch.setattr(ptx, "why_not", lambda: "")
    monkeypatch.setattr(cuda_counts, "count", lambda: found)
    return found


def test_the_command_prints_a_table_and_a_verdict(counted: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda_counts.main([]) == 0
    *lines, verdict = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-3:] == ["2%", "5%", "10%"] and len(lines) == 1 + 2 + 6 + 6
    sweep = entry(counted)["warp_instructions"]
    assert any(line.startswith(f"{OP}: sweep") and line.split()[-2] == f"{sweep:.4f}" for line in lines)
    assert verdict.startswith("cuda-counts: 33 kernels") and verdict.endswith("nothing rose by more than 3%")
    entry(counted)["warp_instructions"] *= 2
    assert cuda_counts.main([]) == 1
    said = capsys.readouterr().out
    assert f"cuda-counts: {OP} at density 0.05: warp instructions of sweep rose" in said and cuda_counts.REMEDY in said


def test_the_command_writes_what_it_reads(
    counted: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reader, "FILE", tmp_path / "counts.json")
    entry(counted)["warp_instructions"] *= 2
    assert cuda_counts.main(["--write"]) == 0 and cuda_counts.main([]) == 0
    assert json.loads(reader.FILE.read_text()) == counted
    entry(counted)["warp_instructions"] *= 0.5
    assert cuda_counts.main([]) == 0 and "2 figures fell" in capsys.readouterr().out


def test_another_compiler_is_not_compared(counted: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    counted["nvcc"] = "99.1"
    entry(counted)["warp_instructions"] *= 2
    assert cuda_counts.main([]) == 0
    assert "not compared, nvcc is 99.1 here and " in capsys.readouterr().out.splitlines()[-1]


def test_wrong_bits_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def count() -> dict[str, Any]:
        raise AssertionError("drop_grow at 0.05[2]: index 7")

    monkeypatch.setattr(ptx, "why_not", lambda: "")
    monkeypatch.setattr(cuda_counts, "count", count)
    assert cuda_counts.main([]) == 1
    assert capsys.readouterr().out == "cuda-counts: FAILED, not the reference's bits: drop_grow at 0.05[2]: index 7\n"


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ptx, "why_not", lambda: "nvcc was not found")
    assert cuda_counts.main([]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") == 1 and "skipped, nvcc was not found: warp instructions were not counted" in text
    assert cuda_counts.main(["--write"]) == 1
