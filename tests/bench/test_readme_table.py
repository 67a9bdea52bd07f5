"""The README's speed tables: three small ones, one unit each, of the committed results."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
from support.bench_rows import document, result

from bench import readme_table, results_file
from bench.readme_table import BEGIN, END, RESULTS


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with both files: updates and steps at two densities, and two networks."""
    updates = {"native": 13.21, "torch.topk": 610.4, "kthvalue": 444.2, "ITOP Masking": 2134.0, "ITOP Masking, dstee's": 20.0}
    ops = document({}, case="resnet50", dtype="float32")
    for density, found in ((0.1, updates), (0.05, {"native": 9.444, "torch.topk": 0.5})):
        ops["rows"].append(
            {
                **copy.deepcopy(ops["rows"][0]), "n": 25_502_912, "layers": 54,
                "key": {**ops["rows"][0]["key"], "density": density},
                "contenders": {name: result([t], ours=name == "native") for name, t in found.items()},
            }
        )  # fmt: skip
    ops["rows"][1]["contenders"]["rigl-torch"] = {"status": "wrong", "reason": "x"}
    step = copy.deepcopy(ops["rows"][1])
    step["key"]["op"] = "masked_sgd"
    step["contenders"] = {
        name: result([t], ours=name == "native")
        for name, t in {"native": 9.9, "SGD foreach + masks": 40.0, "SGD fused + masks": 23.2, "SGD fused, dense": 11.0}.items()
    }
    ops["rows"] = [step, *ops["rows"][1:]]
    ops["stamp"] |= {"threads": 2}
    steps = document({})
    steps["stamp"] |= {"threads": 2}
    steps["rows"] = [
        {
            "key": {"op": "step", "case": case, "density": 0.1, "threads": 2, "batch": batch}, "n": n,
            "contenders": {
                "dense": result([4.0], ours=False), "dstee": result([4.2], sparse_share=share),
                "by hand": result([6.0], ours=False, sparse_share=0.434),
            },
        }
        for case, n, batch, share in (("mlp", 10_014_720, 64, 0.054), ("gnn", 368_640, 0, -0.004))
    ]  # fmt: skip
    results_file.write(tmp_path / "cpu.json", ops)
    results_file.write(tmp_path / "cpu-steps.json", steps)
    return tmp_path


def test_the_tables_are_made_of_the_files(results: Path) -> None:
    text = readme_table.table(results)
    assert "Medians on x, 2 threads, torch 2; float32, cold cache; ResNet-50, 25.5 M weights in 54 layers." in text
    assert "| active weights | dstee | PyTorch | ITOP |\n|---|---:|---:|---:|\n" in text
    assert (
        "| 10 % | **13.2** | 444 | 2,134 |\n| 5 % | **9.44** | 0.50 | - |\n" in text
        and " swapped (- : not measured):\n" in text
    )
    assert "| active weights | dstee | PyTorch | dense SGD |\n|---|---:|---:|---:|\n| 10 % | **9.90** | 23.2 | 11.0 |\n" in text
    assert "| network | dstee | PyTorch |" in text and "| MLP, 10.0 M weights, batch 64 | **5** | 43 |" in text
    assert "| graph network, 369 k weights | **0** | 43 |" in text and "at 10 % active weights" in text
    assert text.count("(- : not measured)") == 1, "below the table that has such a cell"


def test_without_whole_steps_there_are_two_tables(results: Path) -> None:
    (results / "cpu-steps.json").unlink()
    assert readme_table.table(results).count("|---|") == 2


def test_another_machine_is_told(results: Path) -> None:
    steps = results_file.read(results / "cpu-steps.json")
    steps["stamp"]["cpu"] = "another"
    results_file.write(results / "cpu-steps.json", steps)
    assert "**Whole training step** on another, 2 threads, torch 2: percent" in readme_table.table(results)


def test_the_committed_tables_are_small_and_plain() -> None:
    """A package index shows them: no HTML, few columns, few rows, and no unit but the one that is said above."""
    text = readme_table.table(RESULTS)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 3 and "<" not in text and "roof" not in text
    for one in tables:
        head, rule, *lines = one.splitlines()
        assert 4 <= head.count("|") - 1 <= 6 and 1 <= len(lines) < 6, one
        assert {line.count("|") for line in (head, rule, *lines)} == {head.count("|")}
        for line in lines:
            cells = [cell.strip(" *") for cell in line.split("|")[2:-1]]
            assert all(cell == "-" or re.fullmatch(r"-?[\d,]+(\.\d+)?", cell) for cell in cells), line
    assert max(map(len, text.splitlines())) < 400


def test_what_stands_between_the_comments_is_replaced_and_nothing_else() -> None:
    made = readme_table.with_table(f"a\n{BEGIN}old\n{END}\nb | c\n")
    assert made == f"a\n{BEGIN}{readme_table.table()}{END}\nb | c\n" and readme_table.with_table(made) == made
    for wrong in ("a\n", f"{BEGIN}a", f"{BEGIN}{END}{BEGIN}{END}"):
        with pytest.raises(ValueError, match="once each"):
            readme_table.with_table(wrong)
