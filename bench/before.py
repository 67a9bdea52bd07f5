"""The compiled kernels of another commit of this repository, as a library under an op namespace of its own.

``--before REV`` takes the commit's tree from git, gives its op library another name, builds its extension for the CPU as its
own setup.py does, and reads the schemas of its ops from its Python files. The result is kept in ``build/before``.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch

from dstee._console import UsageError

__all__ = ["OPS", "Build", "build", "schemas"]

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "before"
OPS = ("masked_sgd_", "drop_grow_")
REGISTRATION = re.compile(r"(STABLE_TORCH_LIBRARY(?:_IMPL|_FRAGMENT)?\()dstee\b")
LIMIT = 900  # seconds that a build may take


class Build(TypedDict):
    """Goes to the workers in JSON. ``library``: the file; ``schemas``: those of :data:`OPS`, by name."""

    name: str
    commit: str
    space: str
    library: str
    schemas: dict[str, str]


def build(revision: str, say: Callable[[str], None]) -> Build:
    """Builds the kernels of ``revision``, unless that has been done; ``say`` is told before something that takes long.

    Raises:
        UsageError: there is no git, no such commit or no compiler, or the commit's kernels cannot be built or named.
    """
    commit = _git(revision, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
    short = commit[:7]
    space = f"dstee_before_{commit[:12]}"
    folder = CACHE / f"{commit[:12]}-{_toolchain()}"
    if not folder.is_dir():
        say(f"--before {revision}: building the kernels of {short}, once: about a minute")
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            tree = Path(work) / "tree"
            zipfile.ZipFile(io.BytesIO(_git(revision, "archive", "--format=zip", commit))).extractall(tree)
            _rename(revision, tree, space)
            _compile(revision, tree)
            try:
                (tree / "dstee").rename(folder)
            except OSError:
                if not folder.is_dir():  # else another run was faster
                    raise
    return {
        "name": f"native {short}", "commit": commit, "space": space, "library": str(_library(revision, folder)),
        "schemas": schemas(revision, folder),
    }  # fmt: skip


def schemas(revision: str, package: Path) -> dict[str, str]:
    """The schemas of :data:`OPS` as the Python files of the commit's package have them, each as one string.

    Raises:
        UsageError: one is not there, or there are several.
    """
    found: dict[str, str] = {}
    for path in [package / "ops.py", *sorted((package / "ops").glob("*.py"))]:
        if not path.is_file():
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            text = node.value if isinstance(node, ast.Constant) else None
            if not isinstance(text, str) or " -> " not in text:
                continue
            name = text[: text.find("(")]
            if name in OPS and found.setdefault(name, text) != text:
                raise UsageError(f"--before {revision}: its Python files have two schemas of {name}")
    missing = [name for name in OPS if name not in found]
    if missing:
        raise UsageError(f"--before {revision}: no schema of {missing[0]} in its dstee/ops")
    return found


def _git(revision: str, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    except OSError as error:
        raise UsageError(f"--before {revision}: git cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(f"--before {revision}: git knows no such commit in {ROOT}{': ' + told[0] if told else ''}")
    return done.stdout


def _toolchain() -> str:
    """What a library that is kept depends on, beside its source."""
    told = [torch.__version__, str(sysconfig.get_config_var("EXT_SUFFIX"))]
    told += [f"{name}={os.environ.get(name, '')}" for name in ("CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def _rename(revision: str, tree: Path, space: str) -> None:
    """Gives the op library of the sources another name, so that both can be loaded into one process."""
    renamed = 0
    for path in tree.glob("csrc/**/*.cpp"):
        text, count = REGISTRATION.subn(rf"\g<1>{space}", path.read_text())
        if count:
            path.write_text(text)
            renamed += count
    if not renamed:
        raise UsageError(f"--before {revision}: it has no compiled kernels in csrc/ that register ops of dstee")


def _compile(revision: str, tree: Path) -> None:
    environment = os.environ | {"DSTEE_BUILD": "cpu"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise UsageError(f"--before {revision}: its kernels were not built in {LIMIT} seconds") from None
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith("dstee: DSTEE_BUILD") or "error:" in line.lower()]
        raise UsageError(f"--before {revision}: its kernels cannot be built: {(telling or lines or ['no message'])[0][:300]}")


def _library(revision: str, folder: Path) -> Path:
    found = sorted(folder.glob("_C*.so"))
    if len(found) != 1:
        raise UsageError(f"--before {revision}: {len(found)} libraries _C*.so in {folder}, expected one: delete the folder")
    return found[0]
