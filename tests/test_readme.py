"""What only the README must have; that its code runs and its commands exist is tested with the other pages (test_docs.py)."""

from __future__ import annotations

from pathlib import Path

from support.pages import blocks, commands

from bench.readme_table import with_table

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_both_interfaces_are_shown() -> None:
    shown = [block.text for block in blocks(README) if block.language == "python"]
    assert any("SparseSGD" in text for text in shown) and any("ops.drop_grow_" in text for text in shown)


def test_commands_are_shown() -> None:
    assert len([words for words in commands(README) if words[0] == "dstee"]) >= 6


def test_speed_tables_are_the_committed_ones() -> None:
    assert with_table(README) == README, "run `python -m bench.readme_table`"
