"""The commit that figures belong to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

__all__ = ["commit", "is_dirty"]

VARIABLE = "DSTEE_COMMIT"
RESULTS = (":(top,exclude)bench/results", ":(top,exclude)README.md")  # may change: they are what a run writes


def commit() -> str:
    """``DSTEE_COMMIT``, for copies of the tree without its history; else what git says, empty where it says nothing."""
    return os.environ.get(VARIABLE) or _git("rev-parse", "HEAD")


def is_dirty(folder: str = "") -> bool:
    """Whether tracked files (of ``folder``) other than results have changed; False where git says nothing."""
    return bool(_git("status", "--porcelain", "--untracked-files=no", "--", f":/{folder}", *RESULTS))


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
