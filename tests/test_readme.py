"""The README's code runs, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.readme_table import with_table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
BLOCKS = [text for language, text in FENCED if language == "python"]


def test_both_interfaces_are_shown() -> None:
    assert any("SparseSGD" in block for block in BLOCKS) and any("ops.drop_grow_" in block for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_code_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)", README))
    assert named and named <= targets

    from dstee.cli import make_parser

    parser = make_parser()
    shell = "\n".join(text for language, text in FENCED if not language)
    lines = re.findall(r"^dstee (.*?)(?:\s+#.*)?$", shell, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        parser.parse_args(line.split())


def test_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_speed_table_is_the_committed_one() -> None:
    assert with_table(README) == README, "run `python -m bench.readme_table`"
