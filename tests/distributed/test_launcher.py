"""The launcher itself: what becomes of ranks that raise, die, hang or are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.processes import Launcher, RanksFailed

pytestmark = pytest.mark.ranks
ROOT = Path(__file__).resolve().parents[2]


def add_up(rank: int, factor: int) -> tuple[int, int, int]:
    x = torch.tensor([rank * factor])
    dist.all_reduce(x)
    return int(x), dist.get_world_size(), torch.get_num_threads()


def one_fails(rank: int) -> int:
    if rank == 1:
        print("seen from here")
        raise ValueError("not today")
    return rank


def one_dies(rank: int) -> None:
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def one_hangs(rank: int) -> int:
    while rank == 1:
        time.sleep(0.01)
    return os.getpid()


def warns(rank: int) -> None:
    warnings.warn(f"from {rank}", stacklevel=1)


def announce(rank: int, folder: str) -> None:
    Path(folder, f"pid{rank}").write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(60)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_values_by_rank(launcher: Launcher, n: int) -> None:
    launcher.run(1, one_hangs)  # the server is up
    start = time.monotonic()
    assert launcher.run(n, add_up, 3) == [(3 * sum(range(n)), n, 1)] * n
    assert time.monotonic() - start < 5, "ranks must start in a fraction of a second"


def test_errors_by_rank(launcher: Launcher) -> None:
    first, second = launcher.outcomes(2, one_fails)
    assert first.value == 0 and first.error is None
    assert second.error == ("ValueError", "not today") and "seen from here" in second.log and "one_fails" in second.log
    with pytest.raises(RanksFailed, match=r"1 of 2 ranks failed\nrank 1: ValueError: not today"):
        launcher.run(2, one_fails)
    assert [o.error for o in launcher.outcomes(2, warns)] == [("UserWarning", "from 0"), ("UserWarning", "from 1")]


def test_a_dead_rank_is_named(launcher: Launcher) -> None:
    outcomes = launcher.outcomes(3, one_dies)
    assert outcomes[2].error == ("dead", "SIGKILL")
    assert all(o.error is not None and o.error[0] not in ("dead", "hangs") for o in outcomes[:2])


def test_a_hanging_rank_is_named_and_killed(launcher: Launcher) -> None:
    first, second = launcher.outcomes(2, one_hangs, limit=1)
    assert not alive(first.value)
    assert second.error == ("hangs", "no answer within 1 s") and "in one_hangs" in second.log


def test_what_cannot_be_started(launcher: Launcher) -> None:
    launcher.run(1, one_hangs)
    with pytest.raises(Exception, match="lambda"):
        launcher.run(1, lambda rank: rank)
    assert launcher.run(1, add_up, 1) == [(0, 1, 1)]


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_nobody_outlives_the_tests(tmp_path: Path, how: signal.Signals) -> None:
    program = (
        "from pathlib import Path; import sys, test_launcher; from support.processes import Launcher\n"
        "Launcher(Path(sys.argv[1])).run(2, test_launcher.announce, sys.argv[1])"
    )
    path = os.pathsep.join(str(ROOT / p) for p in ("", "tests", "tests/distributed"))
    environment = os.environ | {"PYTHONPATH": path}
    tests = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL)
    files = [tmp_path / "pid0", tmp_path / "pid1"]
    assert within(60, lambda: all(f.exists() and f.read_text() for f in files))
    pids = {int(pid) for f in files for pid in f.read_text().split()}
    assert len(pids) == 3 and all(map(alive, pids))
    tests.send_signal(how)
    tests.wait(30)
    assert within(10, lambda: not any(map(alive, pids)))


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    """False for a process that has ended and whose parent has not looked, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
