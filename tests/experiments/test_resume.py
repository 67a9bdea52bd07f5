"""Real processes, killed and stopped from outside, must end with the bits of the undisturbed one."""

import os
import random
import re
import signal
import subprocess
import time

import pytest
from support.command_server import TINY, digests

from dstee import cli
from dstee.experiments import verify

pytestmark = pytest.mark.usefixtures("quiet_place")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The digests of a training that nothing disturbs, and its options."""
    options = ["--method", "dst-ee", "--seeds", "2", *TINY, "--epochs", "30", "--hidden", "64"]
    out = tmp_path_factory.mktemp("straight") / "a"
    assert cli.main(["train", "--out", str(out), *options]) == 0
    return options, digests(out)


@pytest.mark.long
def test_kill_9_at_several_moments(server, straight, tmp_path, capsys):
    """One run, killed again and again from outside, whatever it is doing then, and finished at last."""
    options, expected = straight
    out, rng = tmp_path / "a", random.Random(0)
    killed, reached = 0, set()
    for _ in range(40):
        before = {path.name for path in out.glob("*/checkpoint-*.dst")}
        pid = server.start(["train", "--out", out, "--resume", *options], [tmp_path / "stdout", tmp_path / "stderr"])
        end = time.monotonic() + 20
        while {path.name for path in out.glob("*/checkpoint-*.dst")} <= before and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        os.kill(pid, signal.SIGKILL)
        if server.wait() != -signal.SIGKILL:
            break
        killed += 1
        reached |= {path.parent.name for path in out.glob("*/checkpoint-*.dst")}
        if killed == 10 or (killed >= 5 and len(reached) == 2):
            break
    assert killed >= 3
    assert cli.main(["train", "--out", str(out), "--resume"]) == 0
    assert digests(out) == expected
    shown, told = capsys.readouterr()
    assert "continues at step" in told or "finished already" in shown


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_has_its_own_status(server, straight, tmp_path, capsys, signum, status):
    options, expected = straight
    out, stderr = tmp_path / "a", tmp_path / "stderr"
    argv = ["train", "--out", out, *options, "--checkpoint-every", "100000"]
    pid = server.start(argv, [tmp_path / "stdout", stderr])
    end = time.monotonic() + 20
    while not (out / "dst-ee-seed0" / "metrics.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.03)
    os.kill(pid, signum)
    assert server.wait() == status
    line = f"dstee: stopped: {signum.name}; the state is saved, continue with --resume"
    assert stderr.read_text().splitlines()[-1] == line
    assert list(out.glob("*/checkpoint-*.dst")) and not (out / "results.json").exists()
    assert cli.main(["train", "--out", str(out), "--resume"]) == 0
    assert digests(out) == expected
    capsys.readouterr()


@pytest.mark.long
def test_verify_resume_proves_it_on_the_users_configuration(capsys):
    assert cli.main(["verify-resume", *TINY, "--method", "rigl", "--order", "after"]) == 0
    text = capsys.readouterr().out
    assert "killed (SIGKILL) at step" in text and "verdict: identical to the last bit" in text
    assert re.search(r"^rigl-seed0 +(\w{32})  \1  same$", text, re.M)


def test_verify_resume_says_when_it_is_not_so(capsys, monkeypatch):
    monkeypatch.setattr(
        verify, "_dstee", lambda arguments: subprocess.CompletedProcess([], -9 if "--kill-at-step" in arguments else 0)
    )
    answers = iter([{"dst-ee-seed0": "0" * 32}, {"dst-ee-seed0": "1" * 32}])
    monkeypatch.setattr(verify, "read_digests", lambda folder: next(answers))
    assert cli.main(["verify-resume", *TINY]) == 1
    assert "DIFFERENT" in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "trials", "every"), [(1, 1, 1), (2, 1, 1), (20, 1, 2), (20, 15, 5), (7, 2, 7)])
def test_the_kill_comes_before_the_end_and_between_checkpoints(steps, trials, every):
    step = verify._kill_step(steps, trials, every)
    assert 1 <= step <= steps * trials
    if steps > 2 and every > 1:
        assert step % steps % every != 0 and step < steps * trials
