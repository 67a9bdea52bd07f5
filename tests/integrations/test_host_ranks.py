"""The callbacks on two ranks, under DDP and FSDP2: the same masks on both, and a resumed training that ends like another."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "support" / "host_ranks.py"


@pytest.mark.ranks
@pytest.mark.parametrize("case", ["lightning-ddp", "lightning-fsdp2", "trainer-ddp"])
def test_two_ranks(case: str, tmp_path: Path) -> None:
    host = "transformers" if case.startswith("trainer") else "lightning"
    pytest.importorskip(host, reason=f"{host} is not installed: make test-hosts")
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(SCRIPT), case, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    found = [path.read_text() for path in sorted(tmp_path.glob("rank-*.txt"))]
    assert len(found) == 2, done.stderr
    assert found[0] == found[1]
    whole, resumed = ast.literal_eval(found[0])
    assert resumed == whole and whole[2] in (32, 48) and whole[3] == whole[2] // 3
