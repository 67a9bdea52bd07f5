"""Writing a file: nobody who may write to its folder can lead it elsewhere, and it looks as if open() had made it."""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dstee import _files
from dstee._files import write_atomic


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "victim"
    path.parent.mkdir()
    path.write_text("mine")
    return path


@pytest.fixture(params=[0o022, 0o002, 0o077, 0o027, 0])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("name", ["x", "config.json", "a.b.c"])
def test_a_link_with_the_name_of_0_1_0_s_temporary_file_is_not_followed(tmp_path: Path, victim: Path, name: str) -> None:
    (tmp_path / f".{name}.tmp").symlink_to(victim)
    write_atomic(tmp_path / name, [b"new"])
    assert victim.read_text() == "mine" and (tmp_path / name).read_bytes() == b"new"
    assert not (tmp_path / name).is_symlink()


def test_what_fails_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for target, kind in ((tmp_path / "no" / "x", FileNotFoundError), (tmp_path / "folder", IsADirectoryError)):
        with pytest.raises(kind) as caught:
            write_atomic(target, [b"new"])
        assert (caught.value.filename, caught.value.filename2) == (str(target), None)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "folder"])
def test_what_stands_where_the_temporary_file_would_is_not_opened(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Even one that foresees the name only makes the writing fail."""
    monkeypatch.setattr(secrets, "token_hex", lambda n: "0" * 2 * n)
    planted = tmp_path / f".x.{'0' * 16}.tmp"
    if "link" in kind:
        planted.symlink_to(victim if kind == "link" else tmp_path / "elsewhere" / "made")
    elif kind == "file":
        planted.write_text("mine")
    else:
        planted.mkdir()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "x", [b"new"])
    assert victim.read_text() == "mine" and os.listdir(tmp_path / "elsewhere") == ["victim"]
    assert sorted(os.listdir(tmp_path)) == [planted.name, "elsewhere"]


def test_temporary_names_cannot_be_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, int]] = []
    real = os.open

    def watch(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            opened.append((os.path.basename(path), flags))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", watch)
    for _ in range(5):
        write_atomic(tmp_path / "x", [b"new"])
    assert len({name for name, _ in opened}) == 5
    for name, flags in opened:
        assert re.fullmatch(r"\.x\.[0-9a-f]{16}\.tmp", name) and flags & os.O_EXCL and flags & os.O_NOFOLLOW


@pytest.mark.parametrize("dangling", [False, True])
def test_a_target_that_is_a_link_is_replaced(tmp_path: Path, victim: Path, dangling: bool) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "missing" if dangling else victim)
    write_atomic(tmp_path / "x", [b"new"])
    assert not (tmp_path / "x").is_symlink() and (tmp_path / "x").read_bytes() == b"new"
    assert victim.read_text() == "mine" and not (tmp_path / "missing").exists()


def test_a_new_file_has_the_mode_that_open_gives(tmp_path: Path, umask: int) -> None:
    (tmp_path / "opened").write_bytes(b"")
    write_atomic(tmp_path / "x", [b"new"])
    assert mode(tmp_path / "x") == mode(tmp_path / "opened") == 0o666 & ~umask


@pytest.mark.parametrize("old", [0o600, 0o444, 0o755])
def test_a_file_that_is_replaced_gets_the_mode_of_a_new_one(tmp_path: Path, umask: int, old: int) -> None:
    (tmp_path / "x").write_text("old")
    (tmp_path / "x").chmod(old)
    write_atomic(tmp_path / "x", [b"new"])
    assert mode(tmp_path / "x") == 0o666 & ~umask


def test_what_killed_writers_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    """A younger file may be that of another process which writes now."""
    names = {
        "dead": [".x.tmp", ".x.0123456789abcdef.tmp"],
        "alive": [".x.fedcba9876543210.tmp"],
        "of others": [".x.y.tmp", ".x.y.0123456789abcdef.tmp", ".y.tmp", ".x.0123.tmp", "x.tmp", ".xx.tmp"],
    }
    for kind, listed in names.items():
        for name in listed:
            (tmp_path / name).write_text(kind)
            if kind != "alive":
                os.utime(tmp_path / name, (0, time.time() - 3700))
    write_atomic(tmp_path / "x", [b"new"])
    assert sorted(os.listdir(tmp_path)) == sorted(["x", *names["alive"], *names["of others"]])


def test_names_at_the_file_system_s_limit_are_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    write_atomic(path, [b"new"])
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == [path.name]


def test_two_writers_at_once_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins and ends while the first is about to rename."""
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", real)
        write_atomic(tmp_path / "x", [b"second"])
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    write_atomic(tmp_path / "x", [b"first"])
    assert (tmp_path / "x").read_bytes() == b"first" and os.listdir(tmp_path) == ["x"]
    assert _files.os.replace is real
