"""Tables on terminals of 50 columns: every figure is there, whole, and no line is longer."""

from __future__ import annotations

import dataclasses
import io
import re
import sys

import pytest
from experiments.test_figures import row
from rich.console import Console

import dstee
from dstee import _console, cli
from dstee.experiments import info
from dstee.experiments.config import grouped_keys
from dstee.experiments.fitting_table import FittingTable
from dstee.experiments.models.mlp import mlp
from dstee.experiments.progress import results_table
from dstee.experiments.records import Result
from dstee.experiments.results.file import dump_rows

WIDTHS = (30, 50, 64, 80, 120)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(renderable, width):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return out.getvalue()


def result(method, seed):
    return Result(
        method, seed, 0.9123 + 0.01 * seed, 0.1234, 0.2345, 0.0678, 3328, 166400, 0.0212, 0.021, 0.0345, 1.0, 0.5, "00"
    )


def cells(table):
    return [cell if isinstance(cell, str) else cell[0] for row, _ in table.rows for cell in row if cell]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_results_of_all_methods(width):
    table = results_table([result(key, seed) for key in grouped_keys() for seed in (0, 1)])
    text = drawn(table, width)
    assert "…" not in text and all(len(line) <= width for line in text.splitlines())
    for header in table.columns:
        for part in header.split("\n"):
            assert part in text
    for cell in cells(table):
        assert cell in text, cell
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    assert (len(blocks) == 1) == (width >= 80) and all(re.search(r"^RigL ", block, re.M) for block in blocks)


def test_a_name_that_is_too_long_is_folded():
    table = FittingTable("method", "a", "b")
    table.add_row("x" * 70, "1.234", "5.678")
    table.add_row("group", style="italic")
    text = drawn(table, 50)
    assert text.replace(" ", "").replace("\n", "").count("x") == 140 and "1.234" in text and "5.678" in text and "…" not in text
    assert all(len(line) <= 50 for line in text.splitlines())


@pytest.mark.parametrize(
    ("widths", "room", "keys", "expected"),
    [
        ([5, 5, 5], None, 1, [[0, 1, 2]]),
        ([5, 5, 5], 19, 1, [[0, 1, 2]]),
        ([5, 5, 5], 18, 1, [[0, 1], [0, 2]]),
        ([5, 5, 5], 3, 1, [[0, 1], [0, 2]]),
        ([5, 5, 5, 5], 19, 2, [[0, 1, 2], [0, 1, 3]]),
        ([5], 3, 1, [[0]]),
    ],
)
def test_columns_that_fit(widths, room, keys, expected):
    assert _console.column_blocks(widths, room, keys) == expected


def test_the_summary_of_a_model(monkeypatch):
    model = mlp((1, 28, 28), 10, (1000, 300))
    summary = dstee.sparsify(model, 0.95).summary()
    wide = str(summary)
    assert max(map(len, wide.splitlines())) > 60
    monkeypatch.setenv("COLUMNS", "50")
    assert str(summary) == wide  # no terminal
    monkeypatch.setattr(sys, "stdout", Terminal())
    text = str(summary)
    assert all(len(line.rstrip()) <= 50 for line in text.splitlines())
    assert set(re.findall(r"\S+", text)) == set(re.findall(r"\S+", wide))
    assert text.count("hidden1.weight") == len(text.split("\n\n")) > 1


def test_the_table_command_on_a_terminal(tmp_path, monkeypatch, capsys):
    rows = [row(m, seed, accuracy=0.9 + 0.01 * seed + 0.02 * i) for i, m in enumerate(("rigl", "dst-ee")) for seed in range(3)]
    rows = [dataclasses.replace(one, label=f"{one.label} $x$ [bold]") for one in rows]
    (tmp_path / "r.json").write_bytes(dump_rows(rows))
    words = ["table", str(tmp_path / "r.json"), "--baseline", "rigl"]
    assert cli.main(words) == 0
    markdown = capsys.readouterr().out
    for width in ("50", "200"):
        monkeypatch.setenv("COLUMNS", width)
        terminal = Terminal()
        with monkeypatch.context() as there:
            there.setattr(sys, "stdout", terminal)
            assert cli.main(words) == 0
        text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
        assert "…" not in text and all(len(line) <= int(width) for line in text.splitlines()), text
        assert "RIGL $x$ [bold]" in text and text.count("- Density: mean while training.") == 1
        for figure in re.findall(r"[+\d][\d.]+(?: ± [\d.]+)?x?", markdown.partition("\n- ")[0]):
            assert figure in text, figure
    with monkeypatch.context() as there:
        there.setattr(sys, "stdout", terminal := Terminal())
        assert cli.main([*words, "--format", "md"]) == 0
    assert terminal.getvalue() == markdown


def test_info_on_a_narrow_terminal(monkeypatch, capsys):
    whole = " ".join(info.backend_lines()).split()
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    info.info()
    lines = terminal.getvalue().partition("\nbackends")[2].splitlines()[1:]
    assert all(len(line) <= 50 for line in lines if "/" not in line) and " ".join(lines).split() == whole
