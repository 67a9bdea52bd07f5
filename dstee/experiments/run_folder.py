"""The folder of a run: who owns it, its checkpoints and its metrics, and what happens when writing fails.

config.json                        what was asked for; its presence makes the folder a run
<method>-seed<n>/metrics.jsonl     one JSON object per line: updates, epochs
<method>-seed<n>/checkpoint-*.dst  the last whole states
results.json  curves.png           written at the end
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dstee._console import UsageError
from dstee._files import CheckpointError, parse_json, write_atomic
from dstee.experiments import checkpoint
from dstee.experiments.config import differences

FORMAT = "dstee-run"
PAUSE = 0.5
"""Seconds before a write that must succeed is tried again."""

_CHECKPOINT = re.compile(r"checkpoint-(\d{10})\.dst")
_TRIAL = re.compile(r"[a-z-]{1,20}-seed\d{1,10}")
_OURS = re.compile(r"config\.json|results\.json|curves\.png|metrics\.jsonl|checkpoint-\d{10}\.dst|\.lock|\.[\w.-]+\.tmp")


class WriteError(Exception):
    """Writing failed so often that the training stops; the text is the one line that the user sees."""


class Patience:
    """Lets writing fail, with a warning each time; the ``limit``-th failure in a row ends the run."""

    def __init__(self, what: str, warn: Callable[[str], None], limit: int = 3):
        self.what, self.warn, self.limit = what, warn, limit
        self.failures = 0

    def attempt(self, write: Callable[[], None]) -> bool:
        """True when ``write`` succeeded. Raises WriteError when it failed once too often."""
        try:
            write()
        except OSError as error:
            self.failures += 1
            reason = f"{self.what} could not be written: {error.strerror or error} ({self.failures} of {self.limit} times)"
            if self.failures >= self.limit:
                raise WriteError(f"{reason}: make room, then continue with --resume") from error
            self.warn(f"{reason}; training goes on")
            return False
        self.failures = 0
        return True

    def insist(self, write: Callable[[], None]) -> None:
        """As :meth:`attempt`, again and again until it succeeds or has failed too often."""
        while not self.attempt(write):
            time.sleep(PAUSE)


def json_line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def json_file(value: Any) -> bytes:
    return json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"


class RunFolder:
    """A run's folder, held by one process at a time (a lock that the kernel drops when the process dies).

    ``mode``: "new" refuses a folder that holds a run; "resume" continues one of the same settings and data, or starts it;
    "overwrite" removes the files of the run that was there, and nothing else.

    Raises:
        UsageError: the folder belongs to something else, or is in use. OSError: it cannot be written.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], mode: str = "new"):
        self.path = path
        made = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = None
        try:
            self._lock = _locked(path / ".lock")
            held = read_manifest(path)
            if held is not None and mode == "new":
                raise UsageError(_occupied(path, manifest, held))
            if held is None and any(not _OURS.fullmatch(name) for name in os.listdir(path)):
                raise UsageError(f"{path} holds other files and no run: choose another folder with --out")
            if held is not None and mode == "resume" and (text := _different(manifest, held)):
                raise UsageError(
                    f"{path} holds another run: {text}: continue it with its own settings, or choose another --out"
                )
            if mode == "overwrite":
                self._remove_run()
            write_atomic(path / "config.json", [json_file({"format": FORMAT, "version": 1, **manifest})])
        except BaseException:
            self.close()
            if made:
                with contextlib.suppress(OSError):
                    os.unlink(path / ".lock")
                    os.rmdir(path)
            raise

    def _remove_run(self) -> None:
        """config.json stays until it is replaced, so that a removal that is cut short leaves a run, not foreign files."""
        folders = [self.path / name for name in os.listdir(self.path) if _TRIAL.fullmatch(name)]
        for folder in [*(f for f in folders if f.is_dir() and not f.is_symlink()), self.path]:
            for name in os.listdir(folder):
                if _OURS.fullmatch(name) and name not in (".lock", "config.json"):
                    os.unlink(folder / name)
            if folder != self.path:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(path: Path) -> int | None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # no such locks on this system
        pass
    except BlockingIOError:
        os.close(fd)
        raise UsageError(f"{path.parent} is in use by another training") from None
    except OSError:  # a file system without locks
        pass
    return fd


def read_manifest(path: Path) -> dict[str, Any] | None:
    """``config.json`` of a run folder, or None where there is none.

    Raises:
        UsageError: there is one, but it is not a run's.
    """
    file = path / "config.json"
    if not file.exists():
        return None
    try:
        manifest = parse_json(file.read_bytes())
        if not (isinstance(manifest, dict) and manifest.get("format") == FORMAT and isinstance(manifest.get("config"), dict)):
            raise ValueError("it is not the configuration of a dstee run")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be used: {error}") from error
    return manifest


def _different(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    found = differences(here["identity"], there.get("identity") or {})
    if here.get("data_digest") != there.get("data_digest"):
        found.append("the data are not the same")
    return "; ".join(found)


def _occupied(path: Path, here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    text = _different(here, there)
    hint = "continue it with --resume, replace it with --overwrite, or choose another --out"
    return f"{path} already holds a run" + (f" of another configuration ({text})" if text else "") + f": {hint}"


class CheckpointFolder:
    """The checkpoints of one training, named by optimizer step; the last ``keep`` whole ones stay.

    ``warn`` gets one line for every damaged file that is skipped.
    """

    def __init__(self, folder: Path, keep: int, warn: Callable[[str], None]):
        self.folder, self.keep, self.warn = folder, keep, warn
        self._damaged: set[int] = set()

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:010d}.dst"

    def steps(self) -> list[int]:
        """Steps of the files present, oldest first, whole or not."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for name in os.listdir(self.folder) if (match := _CHECKPOINT.fullmatch(name)))

    def save(self, step: int, tree: dict[str, Any]) -> None:
        """Writes the checkpoint of ``step``, then removes those that it makes superfluous and what a killed writer left.

        Raises:
            OSError: it could not be written; the older ones are untouched.
        """
        checkpoint.save(self.path(step), tree)
        self._damaged.discard(step)
        older = [s for s in self.steps() if s <= step]
        whole = [s for s in older if s not in self._damaged]
        with contextlib.suppress(OSError):
            for old in set(older) - set(whole[-self.keep :]):
                os.unlink(self.path(old))
            for name in os.listdir(self.folder):
                if name.startswith(".checkpoint-") and name.endswith(".tmp"):
                    os.unlink(self.folder / name)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint; damaged ones are named in a warning and skipped. None when there are no files.

        Raises:
            CheckpointError: there are files, but none is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                tree = checkpoint.load(self.path(step))
                if not isinstance(tree, dict) or tree.get("step") != step:
                    raise CheckpointError(f"{self.path(step)}: does not hold step {step}, which its name says")
            except CheckpointError as error:
                self._damaged.add(step)
                self.warn(f"skipped a checkpoint: {error}")
            else:
                return self.path(step), tree
        if steps:
            raise CheckpointError(f"{self.folder}: none of {len(steps)} checkpoints is whole: remove them to train afresh")
        return None


class MetricsLog:
    """``records``, a list that its owner extends, as JSON lines on disk."""

    def __init__(self, path: Path, records: list[dict[str, Any]]):
        self.path, self.records = path, records
        self._behind = True

    def flush(self, *new: dict[str, Any]) -> None:
        """Brings the file up to date: appends ``new``, or writes all records where the file was never whole or is not now.

        Raises:
            OSError: it could not be written; the next call repairs it.
        """
        if self._behind:
            write_atomic(self.path, [json_line(record) for record in self.records])
        elif new:
            self._behind = True
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                data = memoryview(b"".join(json_line(record) for record in new))
                while data:
                    data = data[os.write(fd, data) :]
            finally:
                os.close(fd)
        self._behind = False
