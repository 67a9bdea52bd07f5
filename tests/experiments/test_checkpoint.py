"""Checkpoint files: exact round trip, atomic replacement under every failing call, refusal of damaged and hostile files."""

import math
import os

import pytest
import torch
from support.faults import Crash, FaultyOS

from dstee import CheckpointError, _files
from dstee.experiments import checkpoint
from dstee.experiments.checkpoint import CheckpointFolder


def make_tree(step=7):
    """A tree with every kind of node."""
    g = torch.Generator().manual_seed(step)
    return {
        "step": step,
        "weights": {"a": torch.randn(3, 5, generator=g), "b": torch.randn(4, generator=g).bfloat16()},
        "bits": torch.randint(0, 256, (9,), generator=g, dtype=torch.uint8),
        "counts": torch.randint(-9, 9, (2, 2), generator=g, dtype=torch.int16),
        "mask": torch.rand(3, 3, generator=g) > 0.5,
        "scalar": torch.tensor(math.nan, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "state": {0: {"m": torch.ones(2)}, 1: None},
        "tuple": (1, [2.5, math.inf], "x"),
        "$odd": {"$tensor": 0},
        "third": 1 / 3,
        "nan": math.nan,
    }


def same(a, b):
    """Type, shape and bits."""
    if isinstance(a, torch.Tensor):
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "checkpoint-0000000007.dst"
    checkpoint.save(path, make_tree())
    return path


def test_round_trip_keeps_every_bit(file):
    assert same(checkpoint.load(file), make_tree())
    assert os.listdir(file.parent) == [file.name]


def test_non_contiguous_tensors_are_stored_in_logical_order(tmp_path):
    images = torch.arange(48.0).reshape(2, 3, 2, 4).to(memory_format=torch.channels_last)
    checkpoint.save(tmp_path / "x", [images, images.transpose(0, 3)])
    loaded = checkpoint.load(tmp_path / "x")
    assert torch.equal(loaded[0], images) and torch.equal(loaded[1], images.transpose(0, 3))


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), 1j, torch.zeros(2, dtype=torch.complex64), {(1, 2): 3}])
def test_what_cannot_be_read_back_is_not_written(tmp_path, value):
    with pytest.raises(TypeError, match="checkpoint"):
        checkpoint.save(tmp_path / "x", {"a": [value]})
    assert os.listdir(tmp_path) == []


def test_digest_sees_every_change():
    trees = [make_tree() for _ in range(6)]
    trees[1]["third"] = math.nextafter(1 / 3, 1)
    trees[2]["weights"]["a"][2, 4] = -trees[2]["weights"]["a"][2, 4]
    trees[3]["weights"]["a"] = trees[3]["weights"]["a"].reshape(5, 3)
    trees[4]["counts"] = trees[4]["counts"].int()
    trees[5]["tuple"] = list(trees[5]["tuple"])
    digests = [checkpoint.digest(tree) for tree in trees]
    assert len(set(digests)) == 6 and digests[0] == checkpoint.digest(make_tree())


# --- damage --------------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_found(file):
    """Every byte of the file, one of its bits at a time."""
    whole = file.read_bytes()
    for i in range(len(whole)):
        damaged = bytearray(whole)
        damaged[i] ^= 1 << i % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"checkpoint-0000000007\.dst: "):
            checkpoint.load(file)


def test_every_truncation_and_any_excess_is_found(file):
    whole = file.read_bytes()
    for length in (*range(60), *range(60, len(whole), 7), len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"truncated|not a dstee checkpoint"):
            checkpoint.load(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="the tensors need"):
        checkpoint.load(file)


def test_foreign_files_are_refused(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "torch.pt")
    (tmp_path / "text").write_text("hello, this is not a checkpoint, and it is longer than the prefix of one")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    reasons = {"torch.pt": "not a dstee", "text": "not a dstee", "empty": "truncated", "pipe": "regular", "no": "No such"}
    for name, reason in {**reasons, "folder": ""}.items():
        with pytest.raises(CheckpointError, match=f"{name}: .*{reason}"):
            checkpoint.load(tmp_path / name)


# --- a failing disk ------------------------------------------------------------------------------------------------------


def test_short_writes_are_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "os", FaultyOS(short=True))
    checkpoint.save(tmp_path / "x", make_tree())
    assert same(checkpoint.load(tmp_path / "x"), make_tree())


@pytest.mark.parametrize("short", [False, True])
def test_a_full_disk_at_any_call_leaves_the_old_or_the_new_file(tmp_path, monkeypatch, short):
    path = tmp_path / "x"
    failed = 0
    for n in range(3000):
        checkpoint.save(path, make_tree(1))
        faulty = FaultyOS(
            n, OSError(28, "No space left on device"), short, calls=("open", "write", "fsync", "close", "replace")
        )
        monkeypatch.setattr(_files, "os", faulty)
        try:
            checkpoint.save(path, make_tree(2))
        except OSError as error:
            assert error.errno == 28
            failed += 1
        finally:
            monkeypatch.setattr(_files, "os", os)
        assert checkpoint.load(path)["step"] in (1, 2)
        assert os.listdir(tmp_path) == ["x"], "a temporary file was left"
        if faulty.count <= n:
            break
        if short and n == 40:  # the many equal writes in the middle need no trial each
            monkeypatch.setattr(_files, "os", os)
            break
    assert failed == n or short
    assert failed > 8


def test_a_crash_at_any_call_leaves_a_whole_newest_checkpoint(tmp_path, monkeypatch):
    """Nothing that follows the crash is done, clean-up included; the folder must still resume, and clean itself up later."""
    for n in range(200):
        folder = tmp_path / str(n)
        folder.mkdir()
        checkpoints = CheckpointFolder(folder, 2, warn=pytest.fail)
        for step in (1, 2):
            checkpoints.save(step, make_tree(step))
        dead = FaultyOS(n, Crash(), dead=True)
        monkeypatch.setattr(_files, "os", dead)
        monkeypatch.setattr(checkpoint, "os", dead)
        try:
            checkpoints.save(3, make_tree(3))
        except Crash:
            finished = False
        else:
            finished = True
        monkeypatch.setattr(_files, "os", os)
        monkeypatch.setattr(checkpoint, "os", os)
        _, tree = CheckpointFolder(folder, 2, warn=pytest.fail).newest()
        assert tree["step"] in (2, 3) and same(tree, make_tree(tree["step"]))
        CheckpointFolder(folder, 2, warn=pytest.fail).save(4, make_tree(4))
        assert not [name for name in os.listdir(folder) if "tmp" in name]
        if finished:
            break
    assert finished and n > 8


def test_the_file_is_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    """fsync of the file comes before the rename, fsync of the folder after it."""
    calls = []

    class Recorder(FaultyOS):
        def __getattr__(self, name):
            real = getattr(os, name)
            if name not in ("fsync", "replace"):
                return real

            def call(*args):
                folder = name == "fsync" and os.path.isdir(f"/proc/self/fd/{args[0]}")
                calls.append("folder" if folder else name)
                return real(*args)

            return call

    monkeypatch.setattr(_files, "os", Recorder())
    checkpoint.save(tmp_path / "x", {"a": 1})
    assert calls == ["fsync", "replace", "folder"]


# --- a folder of checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    warnings = []
    checkpoints = CheckpointFolder(tmp_path, 3, warnings.append)
    for step in (10, 20, 30, 40, 50):
        checkpoints.save(step, make_tree(step))
    return checkpoints, warnings


def damage(path, offset=100):
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def test_the_last_k_stay_and_the_newest_is_found(folder):
    checkpoints, warnings = folder
    assert checkpoints.steps() == [30, 40, 50]
    assert checkpoints.newest()[1]["step"] == 50 and not warnings


def test_a_step_that_is_true_is_not_step_1(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, 3, lambda text: None)
    checkpoint.save(checkpoints.path(1), {"step": True})
    with pytest.raises(CheckpointError, match="none of 1 checkpoints is whole"):
        checkpoints.newest()


def test_files_with_other_digits_are_no_checkpoints(tmp_path):
    """Arabic ones are digits to a regular expression."""
    (tmp_path / f"checkpoint-{chr(0x0660) * 10}.dst").touch()
    assert CheckpointFolder(tmp_path, 3, pytest.fail).newest() is None


def test_damaged_ones_are_named_and_skipped(folder):
    checkpoints, warnings = folder
    damage(checkpoints.path(50))
    checkpoints.path(40).write_bytes(b"")
    path, tree = checkpoints.newest()
    assert tree["step"] == 30 and path == checkpoints.path(30)
    assert len(warnings) == 2 and "0000000050" in warnings[0] and "0000000040" in warnings[1] and "truncated" in warnings[1]


def test_damaged_newer_ones_never_push_out_whole_ones(folder):
    checkpoints, _ = folder
    damage(checkpoints.path(50))
    damage(checkpoints.path(40))
    checkpoints.keep = 2
    assert checkpoints.newest()[1]["step"] == 30
    checkpoints.save(35, make_tree(35))
    assert checkpoints.steps() == [30, 35, 40, 50]
    checkpoints.save(45, make_tree(45))
    assert checkpoints.steps() == [35, 45, 50]
    checkpoints.save(50, make_tree(50))
    assert checkpoints.steps() == [45, 50] and checkpoints.newest()[1]["step"] == 50


def test_a_renamed_checkpoint_is_not_believed(folder):
    checkpoints, warnings = folder
    os.rename(checkpoints.path(30), checkpoints.path(60))
    assert checkpoints.newest()[1]["step"] == 50
    assert "does not hold step 60" in warnings[0]


def test_none_whole_is_an_error_and_none_at_all_is_not(folder, tmp_path):
    checkpoints, _ = folder
    for step in checkpoints.steps():
        damage(checkpoints.path(step))
    with pytest.raises(CheckpointError, match="none of 3 checkpoints is whole"):
        checkpoints.newest()
    assert CheckpointFolder(tmp_path / "nowhere", 3, pytest.fail).newest() is None
