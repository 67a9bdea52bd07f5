"""docs/results.md says what its committed results say."""

import json
import re
from pathlib import Path

import pytest

from bench import results_page
from dstee.experiments.results.rows import read_rows
from dstee.experiments.sweep.grid import parse_grid

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"


def test_the_page_is_what_its_commands_print(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = results_page.PAGE.read_text()
    assert results_page.filled(page, pictures=False) == page, "run make results-page"


def test_the_page_shows_all_results_and_all_pictures():
    page = results_page.PAGE.read_text()
    for file in RESULTS.iterdir():
        assert file.name in page or (file.suffix == ".toml" and f"docs/results/{file.name}" in page), file.name
    for link in re.findall(r"!\[\w+\]\(([^)]+)\)", page):
        assert (ROOT / "docs" / link).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_each_results_file_says_what_made_it(file):
    held = json.loads(file.read_bytes())
    command = held["command"]
    assert command.startswith("dstee ") and "/tmp" not in command
    if command.startswith("dstee sweep "):
        grid = parse_grid((ROOT / command.split()[2]).read_bytes(), command)
        rows = read_rows([file])
        wanted = {(run.config.method, seed) for run in grid.runs for _, seed in run.config.trials()}
        assert {(row.method, row.seed) for row in rows} == wanted


def test_a_command_that_fails_ends_the_making(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(RuntimeError, match="dstee table nowhere ended with status 2"):
        results_page.filled("<!-- $ dstee table nowhere -->\n<!-- / -->")
    assert "nowhere" in capsys.readouterr().err


def test_an_overview_is_the_first_table_with_the_footer(monkeypatch):
    tables = "**a**\n\n| x |\n\n**b**\n\n| y |\n\n- footer\n"
    monkeypatch.setattr(results_page, "_output", lambda words: tables)
    shown = results_page.filled("before <!-- overview $ dstee table f.json -->\nold\n<!-- / --> after")
    assert shown == "before <!-- overview $ dstee table f.json -->\n**a**\n\n| x |\n\n- footer\n<!-- / --> after"
