"""The examples run as they stand, and show what they say."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
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


ABORT = "terminate called without an active exception\n"


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}


def run(example: str, processes: int, *options: str) -> list[str]:
    """The lines that it prints, started by torchrun; as a plain program where it is to be one process."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launch, str(EXAMPLES / example), *options]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    # gloo of torch 2.13 now and then aborts a process that has left its group and returned from main().
    aborted_at_exit = processes > 1 and done.stderr.startswith(ABORT) and "exitcode: -6" in done.stderr
    assert done.returncode == 0 or aborted_at_exit, done.stderr
    return done.stdout.splitlines()


def told(lines: list[str]) -> list[tuple[int, float, float, int, int]]:
    """(epoch, loss, accuracy in percent, active weights, updates) of each epoch; nothing else may be there."""
    pattern = r"epoch (\d+): loss ([\d.]+), accuracy ([\d.]+)%, (\d+) of \d+ weights active after (\d+) updates"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert lines and all(found), lines
    return [(int(m[1]), float(m[2]), float(m[3]), int(m[4]), int(m[5])) for m in found if m]


def assert_alike(found: list[str], expected: list[str]) -> None:
    """The same epochs, active weights and updates. Other numbers of processes add gradients up in another order, after which
    losses and accuracies are near each other."""
    assert len(found) == len(expected)
    for mine, other in zip(told(found), told(expected), strict=True):
        assert (mine[0], mine[3:]) == (other[0], other[3:])
        assert mine[1] == pytest.approx(other[1], rel=0.1, abs=0.01) and mine[2] == pytest.approx(other[2], abs=3)


@pytest.mark.ranks
def test_ddp(tmp_path: Path) -> None:
    file = str(tmp_path / "checkpoint.pt")
    lines = run("ddp.py", 2)
    epochs = told(lines)
    assert [(epoch, updates) for epoch, *_, updates in epochs] == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 9), (6, 9)]
    assert {nnz for *_, nnz, _ in epochs} == {2586} and epochs[-1][2] > 88
    assert run("ddp.py", 2, "--epochs", "3", "--checkpoint", file) == lines[:3]
    shutil.copy(file, tmp_path / "alone.pt")
    assert run("ddp.py", 2, "--checkpoint", file) == lines[3:]
    assert_alike(run("ddp.py", 1, "--checkpoint", str(tmp_path / "alone.pt")), lines[3:])


@pytest.mark.ranks
def test_fsdp2(tmp_path: Path) -> None:
    lines = run("fsdp2.py", 2, "--out", str(tmp_path / "whole"))
    epochs = told(lines)
    assert [(epoch, updates) for epoch, *_, updates in epochs] == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 9), (6, 9)]
    assert {nnz for *_, nnz, _ in epochs} == {8083} and epochs[-1][2] > 95
    assert sorted(p.name for p in (tmp_path / "whole").iterdir()) == [f"epoch-000{i}" for i in range(1, 7)]
    saved = lines[2].removeprefix("epoch 3: ").partition(", ")[2]  # without the loss
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        shutil.copytree(tmp_path / "whole" / "epoch-0003", folder / "epoch-0003")
        (folder / "unfinished").mkdir()  # what a kill while saving left
        resumed, *after = run("fsdp2.py", processes, "--resume", "--out", str(folder))
        assert resumed == f"resumed after epoch 3, {saved}"
        if processes == 2:
            assert after == lines[3:]  # to the last bit: as if it had not been interrupted
        assert_alike(after, lines[3:])
        assert (folder / "epoch-0006" / ".metadata").exists() and not (folder / "unfinished").exists()


@pytest.mark.long
def test_cifar_goes_on_after_a_kill(tmp_path: Path) -> None:
    options = ("--data", "digits", "--batch-size", "96", "--lr", "0.05", "--epochs", "3", "--out")
    lines = run("cifar.py", 1, *options, str(tmp_path / "whole"))
    epochs = told(lines)
    assert [(epoch, updates) for epoch, *_, updates in epochs] == [(1, 4), (2, 8), (3, 9)]
    assert {nnz for *_, nnz, _ in epochs} == {26805} and epochs[-1][1] < epochs[0][1] - 0.2
    folder = str(tmp_path / "killed")
    command = [sys.executable, str(EXAMPLES / "cifar.py"), *options, folder]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert [started.stdout.readline().rstrip("\n") for _ in range(2)] == lines[:2]
        started.kill()  # perhaps while it writes the second checkpoint
    with pytest.raises(AssertionError, match="--resume is for an --out with a checkpoint"):
        run("cifar.py", 1, *options, folder)
    resumed = run("cifar.py", 1, *options, folder, "--resume")
    assert resumed and resumed == lines[-len(resumed) :]


ITOP = '''
"""ITOP's names over a re-implementation of its Masking, which runs on a CPU, too."""
from support.compat_originals import ItopMasking

class CosineDecay:
    def __init__(self, death_rate, steps): self.death_rate = death_rate

class Masking(ItopMasking):
    def __init__(self, optimizer, death_rate, death_rate_decay, growth_mode, redistribution_mode, args):
        super().__init__(optimizer, death_rate, "magnitude", growth_mode, args.update_frequency)

    def add_module(self, module, sparse_init, density): super().add_module(module, density)
'''


def patched(*options: str, path: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "patch_itop.py"), *options]
    return subprocess.run(command, env=ENVIRONMENT | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=240)


def assert_patched(done: subprocess.CompletedProcess[str], weights: range) -> None:
    assert done.returncode == 0, done.stderr
    pattern = (
        r"a step with a mask update by its own code: [\d.]+ ms, (\d+) of them\n"
        r"a step with a mask update by dstee's kernels: [\d.]+ ms, (\d+) of them\n"
        r"test accuracy ([\d.]+)%, (\d+) weights active\n"
    )
    found = re.fullmatch(pattern, done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 5 and int(found[2]) > 5 and float(found[3]) > 90 and int(found[4]) in weights


@pytest.mark.long
def test_patch_itop(tmp_path: Path) -> None:
    (tmp_path / "sparselearning").mkdir()
    (tmp_path / "sparselearning" / "core.py").write_text(ITOP)
    root = EXAMPLES.parent
    assert_patched(patched(path=os.pathsep.join(map(str, (tmp_path, root, root / "tests")))), range(29_000, 31_000))
    done = patched()
    assert done.returncode == 1 and "sparselearning" in done.stderr and "then PYTHONPATH=that folder" in done.stderr


def test_patch_rigl_torch(tmp_path: Path) -> None:
    pytest.importorskip("rigl_torch", reason="rigl-torch is not installed: pip install --no-deps rigl-torch==0.5.2")
    (tmp_path / "torchvision" / "models").mkdir(parents=True)  # of which it needs two class names
    (tmp_path / "torchvision" / "models" / "resnet.py").write_text("class Bottleneck: ...\nclass BasicBlock: ...\n")
    (tmp_path / "torchvision" / "__init__.py").write_text("import torchvision.models.resnet")
    (tmp_path / "torchvision" / "models" / "__init__.py").touch()
    assert_patched(patched("--library", "rigl-torch", path=str(tmp_path)), range(55_000, 65_000))
