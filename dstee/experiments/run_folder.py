"""The folder of a run: who owns it, and what happens when writing fails.

config.json                        what was asked for; its presence makes the folder a run
<method>-seed<n>/metrics.jsonl     one JSON object per line: updates, epochs
<method>-seed<n>/checkpoint-*.dst  the last whole states, until the run has finished
<method>-seed<n>/final.dst         the network and its masks, of a finished run
<method>-seed<n>/masks-*.dst       the masks after each update, where they are to be kept
<method>-seed<n>/wandb.json  events.out.tfevents.*   of loggers, where they are asked for
<method>-seed<n>/ignored-*.json    what an update ignored, where that is to be measured
<method>-seeds<a>-<b>/             those of seeds that train at once
results.json  curves.png           written at the end
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, cast

from dstee._console import UsageError, needs
from dstee._files import WriteError, dump_json, parse_json, read_file, remove_leftovers, write_atomic
from dstee.experiments.config import differences

if TYPE_CHECKING:
    from filelock import FileLock

__all__ = ["Manifest", "Mode", "RunFolder", "WriteRetries", "hold_folder", "read_manifest", "refuse_link"]

Mode = Literal["new", "resume", "overwrite"]
FORMAT = "dstee-run"
VERSION = 1
PAUSE = 0.5
"""Seconds before a write that must succeed is tried again."""

_TRIAL = re.compile(r"[a-z0-9_-]{1,40}-(seed[0-9]{1,10}|seeds[0-9]{1,10}-[0-9]{1,10})")
_FILES = r"config\.json|results\.json|curves\.png|metrics\.jsonl|(?:checkpoint|masks)-[0-9]{10}\.dst|ignored-[0-9]{10}\.json"
_FILES += r"|final\.dst|wandb\.json|events\.out\.tfevents\.[\w.-]+"
_OURS = re.compile(_FILES + r"|\.lock|\.[\w.-]+\.tmp")
_MAX_MANIFEST = 1 << 20
_KEYS = {"format": str, "version": int, "dstee": str, "torch": str, "identity": dict, "data_digest": str, "config": dict}


class Manifest(TypedDict):
    """``config.json``, beside its format: the settings, and what must be the same when the run goes on."""

    dstee: str
    torch: str
    identity: dict[str, object]
    data_digest: str
    config: dict[str, object]


class WriteRetries:
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

    def until_done(self, write: Callable[[], None]) -> None:
        """As :meth:`attempt`, again and again until it succeeds or has failed too often."""
        while not self.attempt(write):
            time.sleep(PAUSE)


class RunFolder:
    """A run's folder, held by one process at a time.

    ``mode``: "new" refuses a folder that holds a run; "resume" continues one of the same settings and data, or starts it;
    "overwrite" removes the files of the run that was there, and nothing else.

    Raises:
        UsageError: the folder belongs to something else, or is in use, or has links where its own files and folders belong.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, manifest: Manifest, mode: Mode = "new"):
        self.path = path
        _require_filelock()
        made = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        self._lock: FileLock | None = None
        try:
            self._lock = _lock(path / ".lock")
            held = read_manifest(path)
            if held is not None and mode == "new":
                raise UsageError(_occupied(path, manifest, held))
            if held is None and any(not _OURS.fullmatch(name) for name in os.listdir(path)):
                raise UsageError(f"{path} holds other files and no run: choose another folder with --out")
            if held is not None and mode == "resume" and (text := _different(manifest, held)):
                raise UsageError(
                    f"{path} holds another run: {text}: continue it with its own settings, or choose another --out"
                )
            trials = [path / name for name in os.listdir(path) if _TRIAL.fullmatch(name)]
            for folder in trials:
                refuse_link(folder)
            for folder in (path, *trials):
                remove_leftovers(folder, _FILES)  # no other process writes here
            if mode == "overwrite":
                self._remove_run()
            write_atomic(path / "config.json", [dump_json({"format": FORMAT, "version": VERSION, **manifest})])
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
        for folder in [*(f for f in folders if f.is_dir()), self.path]:
            for name in os.listdir(folder):
                if _OURS.fullmatch(name) and name not in (".lock", "config.json"):
                    os.unlink(folder / name)
            if folder != self.path:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def refuse_link(path: Path) -> None:
    """Raises UsageError where ``path`` is a symbolic link: what is written and removed there would be somebody else's."""
    if path.is_symlink():
        raise UsageError(f"{path} is a symbolic link, which a run does not follow: remove it, or choose another --out")


@contextlib.contextmanager
def hold_folder(path: Path, what: str) -> Iterator[None]:
    """The folder ``path`` of several runs, made where it is missing, for one ``what`` at a time.

    Raises:
        UsageError: it is in use, or cannot be written.
    """
    _require_filelock()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path / ".lock", what)
    except OSError as error:
        raise UsageError(f"the folder {path} (--out) cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _require_filelock() -> None:
    """Before a folder is made."""
    try:
        import filelock  # noqa: F401
    except ImportError as error:
        raise UsageError(needs("a run folder", "filelock", "cli")) from error


def _lock(path: Path, what: str = "training") -> FileLock:
    """Held until released, or until the kernel drops it because the process died."""
    from filelock import FileLock, Timeout

    refuse_link(path)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"{path.parent} is in use by another {what}") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # else a file system without locks
            raise
    return lock


def read_manifest(path: Path) -> Manifest | None:
    """``config.json`` of a run folder, or None where there is none.

    Raises:
        UsageError: there is one, but it is not a run's.
    """
    file = path / "config.json"
    if not file.exists():
        return None
    try:
        manifest = parse_json(read_file(file, _MAX_MANIFEST))
        if not (isinstance(manifest, dict) and manifest.get("format") == FORMAT and "config" in manifest):
            raise ValueError("it is not the configuration of a dstee run")
        if (version := manifest.get("version", VERSION)) != VERSION:
            raise ValueError(f"it has version {version!r}, this dstee reads {VERSION}")
        for key, value in manifest.items():
            if type(value) is not _KEYS.get(key):
                raise ValueError(f"{key!r} is unknown or no {_KEYS.get(key, str).__name__}")
        if wrong := [name for name, value in manifest["config"].items() if not _is_setting(name, value)]:
            raise ValueError(f"{wrong[0]!r} has no value of a setting")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be used: {error}") from error
    return cast(Manifest, manifest)  # the rest may be missing


def _is_setting(name: str, value: object) -> bool:
    """Whether the setting ``name`` of some version may have this value; what it is good for :class:`Config` knows."""
    if isinstance(value, dict) and name == "method_settings":
        return len(value) <= 100 and all(len(key) <= 100 and (one is None or _is_plain(one)) for key, one in value.items())
    if isinstance(value, list):
        return len(value) <= 100 and all(type(item) is int for item in value)
    return _is_plain(value)


def _is_plain(value: object) -> bool:
    return type(value) in (bool, int, float) or (isinstance(value, str) and len(value) <= 1000)


def _different(here: Manifest, there: Manifest) -> str:
    found = differences(here["identity"], there.get("identity") or {})
    if here.get("data_digest") != there.get("data_digest"):
        found.append("the data are not the same")
    return "; ".join(found)


def _occupied(path: Path, here: Manifest, there: Manifest) -> str:
    text = _different(here, there)
    hint = "continue it with --resume, replace it with --overwrite, or choose another --out"
    return f"{path} already holds a run" + (f" of another configuration ({text})" if text else "") + f": {hint}"
