"""The examples of hosts run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(example: str, *options: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(EXAMPLES / example), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def active(text: str) -> tuple[str, ...]:
    """Active weights of each layer, as the summary's lines have them."""
    return tuple(re.findall(r"^\S+\.weight +\d+x\d+ +[\d.]+ +([\d,]+)", text, re.M))


def test_lightning_module(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed: make test-hosts")
    out = str(tmp_path / "a")
    whole = run("lightning_module.py", "--out", out)
    accuracy = re.search(r"accuracy\W+([\d.]+)", whole)
    assert accuracy and float(accuracy[1]) > 0.8
    (middle,) = (tmp_path / "a").rglob("epoch=2.ckpt")
    resumed = run("lightning_module.py", "--out", str(tmp_path / "b"), "--checkpoint", str(middle))
    assert resumed == whole and len(active(whole)) == 3


def test_trainer_callback(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: make test-hosts")
    pytest.importorskip("accelerate", reason="accelerate is not installed: make test-hosts")
    whole = run("trainer_callback.py", "--out", str(tmp_path))
    losses = [float(found) for found in re.findall(r"'loss': '?([\d.]+)", whole)]
    assert len(losses) == 6 and losses[-1] < losses[0] / 2
    summary = whole[whole.index("layer ") :]
    assert len(active(summary)) == 8
    for path in tmp_path.glob("checkpoint-*"):
        assert (path / "sparse.pt").exists()
    for step in (160, 192):
        (tmp_path / f"checkpoint-{step}").rename(tmp_path / f"later-{step}")
    resumed = run("trainer_callback.py", "--out", str(tmp_path), "--resume")
    assert resumed[resumed.index("layer ") :] == summary
