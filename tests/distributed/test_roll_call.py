"""DSTEE_CHECK_RANKS: a rank that does not come to a mask update is named on all that wait, in the time that they wait."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist
from support.processes import Launcher
from support.rank_steps import build, steps
from support.rank_training import Run

import dstee
from dstee.distributed import roll_call

pytestmark = pytest.mark.ranks

SECONDS = 0.8
SLACK = 0.7  # for a busy machine
MISSED = (
    "rank 1 did not reach the mask update at step 2 within 0.8 s: it skipped an update, has another schedule, or has failed"
)


def said(act: Callable[[], object]) -> tuple[str, float]:
    """What ``act`` raised, and after how many seconds."""
    start = time.monotonic()
    try:
        act()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - start
    return "", time.monotonic() - start


def all_there(rank: int, name: str, n: int, method: str) -> None:
    os.environ["DSTEE_CHECK_RANKS"] = "20"
    built = build(name, n, Run(method))
    steps(built, 1, 8)
    assert built.sparse.round == 4


@pytest.mark.parametrize(("name", "n", "method"), [("copies", 3, "dst-ee"), ("ddp", 2, "rigl-replace"), ("hsdp", 4, "dst-ee")])
def test_nothing_is_wrong(launcher: Launcher, name: str, n: int, method: str) -> None:
    launcher.run(n, all_there, name, n, method)


def skip(rank: int, name: str, n: int, forward: bool) -> tuple[str, float]:
    """Rank 1 makes no update at step 2, and waits for the others in what comes next."""
    os.environ["DSTEE_CHECK_RANKS"] = str(SECONDS)
    built = build(name, n, Run())
    steps(built, 1, 1, forward)
    if rank == 1:
        built.sparse.schedule = dstee.UpdateSchedule(100)
    found = said(lambda: steps(built, 2, 2, forward))
    if rank == 1 and forward:
        found = said(lambda: steps(built, 3, 3, forward))
    dist.distributed_c10d._get_default_store().set(f"through {rank}", "")
    if rank == 1 and not forward:
        dist.distributed_c10d._get_default_store().wait([f"through {r}" for r in range(n)])
        built.sparse.schedule = dstee.UpdateSchedule(3)
        found = said(lambda: steps(built, 3, 3))
    return found


@pytest.mark.parametrize(
    ("name", "n", "forward"), [("copies", 3, False), ("ddp", 2, True), ("fsdp", 2, True), ("fsdp", 3, True)]
)
def test_a_skipped_update(launcher: Launcher, name: str, n: int, forward: bool) -> None:
    found = launcher.run(n, skip, name, n, forward)
    for rank, (text, seconds) in enumerate(found):
        if rank != 1:
            assert text == f"RuntimeError: {MISSED}"
            assert seconds < SECONDS + SLACK
        elif not forward:  # a rank that comes later hears of it at once
            assert text == f"RuntimeError: {MISSED}" and seconds < SLACK
        else:  # it was in a collective that the others do not make
            assert text.startswith("RuntimeError: ")


def other_schedules(rank: int) -> tuple[str, float]:
    os.environ["DSTEE_CHECK_RANKS"] = "20"
    built = build("copies", 3, Run(every=3 if rank == 2 else 2))
    return said(lambda: steps(built, 1, 3))


def test_another_update(launcher: Launcher) -> None:
    for text, seconds in launcher.run(3, other_schedules):
        assert text == (
            "RuntimeError: rank 2 came to the mask update at step 3, the others to the mask update at step 2: an update was "
            "skipped, or schedules differ"
        )
        assert seconds < 5


def fail(rank: int, how: str) -> tuple[str, float]:
    os.environ["DSTEE_CHECK_RANKS"] = str(SECONDS)
    built = build("copies", 3, Run())
    steps(built, 1, 1)
    if rank == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1:  # within the update
        for p in built.model.parameters():
            p.grad = None
        return said(lambda: built.sparse.step(built.optimizer))
    return said(lambda: steps(built, 2, 2))


@pytest.mark.parametrize("how", ["killed", "raises"])
def test_a_failed_rank(launcher: Launcher, how: str) -> None:
    first, second, third = launcher.outcomes(3, fail, how)
    for outcome in (first, third):
        text, seconds = outcome.value
        assert text == f"RuntimeError: {MISSED}" and seconds < SECONDS + SLACK
    if how == "killed":
        assert second.error == ("dead", "SIGKILL")
    else:
        assert "no gradient" in second.value[0]


def differ(rank: int, seconds: str) -> tuple[str, float]:
    os.environ["DSTEE_CHECK_RANKS"] = seconds
    built = build("copies", 2, Run())
    steps(built, 1, 1)
    if rank:
        layer = built.sparse.layers["third.weight"]
        layer.counts[0] += 1
    return said(lambda: steps(built, 2, 2))


def test_updates_are_checked(launcher: Launcher) -> None:
    found = launcher.run(2, differ, "5")
    assert found[0][0] == found[1][0]
    assert found[0][0].startswith("ValueError: rank 1 has other counters of third.weight than rank 0: ")
    assert max(seconds for _, seconds in found) < 1
    assert [text for off in ("", "0") for text, _ in launcher.run(2, differ, off)] == [""] * 4
    for text, _ in launcher.run(2, differ, "soon"):
        assert text.startswith("ValueError: DSTEE_CHECK_RANKS must be the seconds to wait for a rank")


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf", "1e300", "1 s"])
def test_values_of_the_variable(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSTEE_CHECK_RANKS", value)
    with pytest.raises(ValueError, match=f"got '{value}'"):
        roll_call.seconds_to_wait()
    built = build("copies", 1, Run())
    steps(built, 1, 2)  # one process does not look
    assert built.sparse.round == 1


def test_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, seconds in {"1": 1.0, " 0.8 ": 0.8, "0": None, "": None}.items():
        monkeypatch.setenv("DSTEE_CHECK_RANKS", value)
        assert roll_call.seconds_to_wait() == seconds
    monkeypatch.delenv("DSTEE_CHECK_RANKS")
    assert roll_call.seconds_to_wait() is None


def move(rank: int, folder: str) -> list[str]:
    """Leaves the group for another one, twice."""
    found = []
    for name in ("a", "b"):
        dist.destroy_process_group()
        dist.init_process_group("gloo", f"file://{folder}/{name}", rank=rank, world_size=2)
        os.environ["DSTEE_CHECK_RANKS"] = "20"
        built = build("copies", 2, Run())
        steps(built, 1, 2)
        os.environ["DSTEE_CHECK_RANKS"] = "0.2"
        found.append(said(lambda of=built: steps(of, 3, 4) if rank == 0 else None)[0])  # type: ignore[misc]
        dist.barrier()
    return found


def test_groups_come_and_go(launcher: Launcher, tmp_path: Path) -> None:
    first, second = launcher.run(2, move, str(tmp_path))
    assert second == [""] * 2
    assert all(text.startswith("RuntimeError: rank 1 did not reach the mask update at step 4 within 0.2 s") for text in first)


class Group:
    """What a roll call needs of a process group."""

    def __init__(self, store: dist.Store) -> None:
        self.get_group_store = lambda: store


def test_a_store_that_served_another_group() -> None:
    store = dist.HashStore()
    for _ in range(2):
        groups = [Group(store), Group(store)]

        def come(rank: int, seconds: float, groups: list[Group] = groups) -> str:
            return roll_call.meet_in_store(groups[rank], [0, 1], rank, "there", seconds)  # type: ignore[arg-type]

        with ThreadPoolExecutor() as threads:
            for _ in range(3):
                assert [*threads.map(come, range(2), [20.0] * 2)] == ["all", "all"]
        assert come(0, 0.1).startswith("rank 1 did not reach there within 0.1 s")
        assert come(1, 0.1).startswith("rank 1 did not reach there within 0.1 s")
    assert store.num_keys() < 30  # meetings that are over leave nothing behind
