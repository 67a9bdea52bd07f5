"""The examples run as they stand, and show what they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from dstee.methods import METHODS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_own_method(capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(METHODS)
    try:
        runpy.run_path(str(EXAMPLES / "own_method.py"), run_name="__main__")
    finally:
        METHODS.clear()
        METHODS.update(before)
    out = capsys.readouterr().out
    updates = re.findall(r"step (\d+): update (\d+) changed ([\d.]+)% of (\d+) active weights, .* accuracy ([\d.]+)%", out)
    assert [(int(t), int(number)) for t, number, *_ in updates] == [(60, 3), (120, 6), (180, 9)]
    assert len({total for *_, total, _ in updates}) == 1 and all(0 < float(churn) <= 30 for _, _, churn, *_ in updates)
    assert float(updates[-1][-1]) > 90
    assert out.rstrip().endswith("the same bits on every backend")
