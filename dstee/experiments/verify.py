"""``dstee verify-resume``: the user's own training, straight and killed, must end with the same bits."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from dstee._console import UsageError
from dstee._files import dump_json, write_atomic
from dstee.experiments import commands, data
from dstee.experiments.config import DENSE, Config
from dstee.experiments.records import read_digests
from dstee.experiments.trial import Trial, task_of

__all__ = ["verify_resume"]


def verify_resume(config: Config, data_dir: str | None, out: Path | None) -> int:
    """Trains straight, then in a process killed mid-way (SIGKILL) and one that resumes; 0 if all bits are equal, else 1.

    The two runs stay in ``out`` if it is given.

    Raises:
        UsageError: a training could not be done at all.
    """
    dataset = task_of(config).prepare(data.load(config.data, data_dir), config)
    steps = Trial(config, DENSE, config.seed, dataset).total
    every = min(config.checkpoint_every, max(1, steps // 8))
    kill = _kill_step(steps, len(config.trials()), every)
    config = dataclasses.replace(config, checkpoint_every=every, log="")
    with tempfile.TemporaryDirectory(prefix="dstee-verify-") as temporary:
        base = out or Path(temporary)
        print(f"straight: {len(config.trials())} x {steps} steps")
        commands.train(config, base / "straight", data_dir, "new", show_paths=out is not None)
        settings = base / "settings.json"
        write_atomic(settings, [dump_json(config.to_dict())])
        command = ["train", "--config", str(settings), "--out", str(base / "killed")]
        if data_dir is not None:
            command += ["--data-dir", data_dir]
        died = _dstee([*command, "--kill-at-step", str(kill)])
        if died.returncode != -signal.SIGKILL:
            raise UsageError(f"the second training was not killed but ended with status {died.returncode}: {_last_line(died)}")
        saved = sorted(path.name for path in (base / "killed").glob("*/checkpoint-*.dst"))
        total = len(config.trials()) * steps
        print(f"killed (SIGKILL) at step {kill} of {total}, with {len(saved)} checkpoints on disk; resuming")
        resumed = _dstee([*command, "--resume"])
        if resumed.returncode != 0:
            raise UsageError(f"the killed training could not be resumed: {_last_line(resumed)}")
        return _verdict(read_digests(base / "straight"), read_digests(base / "killed"))


def _kill_step(steps: int, trials: int, every: int) -> int:
    """In the middle of the middle training, between two checkpoints where that is possible."""
    within = steps // 2
    if within % every == 0 and within + 1 < steps and every > 1:
        within += 1
    return max(1, trials // 2 * steps + within)


def _dstee(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dstee", *arguments], capture_output=True, text=True, errors="replace")


def _last_line(process: subprocess.CompletedProcess[str]) -> str:
    return (process.stderr.strip().splitlines() or ["(it said nothing)"])[-1]


def _verdict(straight: dict[str, str], killed: dict[str, str]) -> int:
    for name, digest in straight.items():
        print(f"{name:16} {digest}  {killed.get(name)}  {'same' if killed.get(name) == digest else 'DIFFERENT'}")
    same = straight == killed
    print("verdict: identical to the last bit" if same else "verdict: the resumed training ended differently")
    return 0 if same else 1
