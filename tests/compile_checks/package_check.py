"""``make sdist`` and ``make wheel``: builds the package as users get it, and tries it where nothing else of dstee is.

sdist  written to dist/, then compiled from there into an empty folder and tried in it.
wheel  compiled from such an sdist, CPU kernels only, and written to dist/; then installed into a new virtual environment with
       the torch and numpy of requirements-dev.txt, as the registry in use has them, and tried there.

What the archives hold tests/test_packaging.py looks at; what is tried stands in installed_check.py.

A wheel is for the Python that runs this, and for linux_x86_64, which package indexes do not take. For them, rename it after the
oldest glibc that it needs, leaving torch's libraries to torch; built in the image manylinux_2_28 that is an older one:
``auditwheel repair --plat auto --exclude 'libtorch*' --exclude 'libc10*' dist/*.whl``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRY = Path(__file__).with_name("installed_check.py")
LARGEST = 2_000_000
"""Bytes of a wheel with CPU kernels."""


class CheckError(Exception):
    """Something does not hold; the text is what the user sees."""


def clean_environment(**more: str) -> dict[str, str]:
    """Nothing that leads Python or dstee back to this checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DSTEE_", "VIRTUAL_"))} | more


def run(*command: object, cwd: Path, environment: Mapping[str, str]) -> str:
    """What it prints; its output is the error where it fails."""
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise CheckError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def build(kind: str, tree: Path, folder: Path) -> Path:
    """An "sdist" or "wheel" of ``tree``, the only file in the new ``folder``."""
    options = ["--no-isolation", f"--{kind}", "--outdir", folder]
    run(sys.executable, "-m", "build", *options, tree, cwd=tree, environment=clean_environment(DSTEE_BUILD="cpu"))
    (found,) = folder.iterdir()
    return found


def unpacked(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz")


def check_module(wheel: Path) -> None:
    """One compiled module, without symbols, in a wheel that is small."""
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if name.endswith((".so", ".pyd", ".dylib"))]
        if len(modules) != 1 or not modules[0].startswith("dstee/_C."):
            raise CheckError(f"{wheel.name} has the compiled modules {modules}, expected dstee/_C alone")
        left = [section for section in (".symtab", ".debug_info") if section.encode() in archive.read(modules[0])]
    if left:
        raise CheckError(f"{modules[0]} is not stripped, it has {' and '.join(left)}")
    if (size := wheel.stat().st_size) > LARGEST:
        raise CheckError(f"{wheel.name} has {size} bytes, expected at most {LARGEST}")


def try_sdist(sdist: Path, folder: Path) -> str:
    """Builds it as pip does, into an empty folder."""
    target = folder / "installed"
    options = ["--quiet", "--disable-pip-version-check", "--no-build-isolation", "--no-deps", "--target", target]
    environment = clean_environment(DSTEE_BUILD="cpu")
    run(sys.executable, "-m", "pip", "install", *options, sdist, cwd=folder, environment=environment)
    return run(sys.executable, TRY, target, cwd=folder, environment=clean_environment(PYTHONPATH=str(target)))


def try_wheel(wheel: Path, folder: Path) -> str:
    """Installs it into a virtual environment of its own."""
    environment = clean_environment()
    run(sys.executable, "-m", "venv", "venv", cwd=folder, environment=environment)
    python = folder / "venv/bin/python"
    options = ["--quiet", "--disable-pip-version-check", "--constraint", ROOT / "requirements-dev.txt"]
    run(python, "-m", "pip", "install", *options, wheel, cwd=folder, environment=environment)
    run(python.with_name("dstee"), "--version", cwd=folder, environment=environment)
    return run(python, "-I", TRY, folder / "venv", cwd=folder, environment=environment)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["sdist", "wheel"])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            made = build("sdist", ROOT, folder / "sdist")
            if options.kind == "wheel":
                made = build("wheel", unpacked(made, folder), folder / "wheel")
                check_module(made)
            said = try_sdist(made, folder) if options.kind == "sdist" else try_wheel(made, folder)
            options.out.mkdir(parents=True, exist_ok=True)
            shutil.copy(made, options.out)
            size = made.stat().st_size
    except CheckError as error:
        print(f"{options.kind}: FAILED: {error}")
        return 1
    print(f"{options.kind}: {options.out / made.name}, {size / 1e6:.2f} MB: {said.strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
