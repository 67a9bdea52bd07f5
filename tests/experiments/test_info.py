"""What ``dstee info`` tells those who lack something: a checkout, a compiler, a package, a backend."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dstee
from dstee import cli
from dstee.backends import native
from dstee.experiments import info

PACKAGE = Path(dstee.__file__).parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder as that in which pip unpacks a wheel without compiled kernels."""
    folder = tmp_path_factory.mktemp("site-packages")
    unwanted = shutil.ignore_patterns("__pycache__", "_C*", "kernels")
    shutil.copytree(PACKAGE, folder / "dstee", ignore=unwanted)
    shutil.copytree(PACKAGE.parent / "kernels", folder / "dstee" / "kernels", ignore=unwanted)
    return folder


@pytest.mark.parametrize("wish", [None, "none"])
def test_a_wheel_without_kernels_or_compiler(site, wish):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DSTEE", "TRITON_"))}
    environment |= {"PYTHONPATH": str(site), "PATH": "/nowhere", **({"DSTEE_BUILD": wish} if wish else {})}
    code = (  # without what finds the modules of an editable installation
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]; "
        "from dstee.cli import main; sys.exit(main(['info']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=120, env=environment, cwd="/", check=True,
    )  # fmt: skip
    text = done.stdout
    (reason,) = re.findall(r"^  native +cpu +cannot run: (.*)$", text, re.M)
    assert "dstee._C is not built" in reason and "g++ or clang" in reason and 'pybind11 "setuptools>=77"' in reason
    assert "--no-build-isolation" in reason and "--no-binary=dstee" in reason and "-e ." not in reason
    assert ("unset DSTEE_BUILD" in reason) == (wish is not None)
    assert re.search(r"^  triton +cpu +cannot run: it is for GPUs, a CPU needs nothing more for it", text, re.M)
    assert re.search(r"^  reference +cpu +can run$", text, re.M)
    assert re.search(r"^  -> runs on +cpu +reference \(the same bits, but slow: full sorts\)$", text, re.M)


def test_a_checkout_is_told_the_shorter_command(monkeypatch):
    monkeypatch.delenv("DSTEE_BUILD", raising=False)
    text = native._how_to_build()
    assert f"run `pip install --no-build-isolation -e .` in {PACKAGE.parent}" in text and "--no-binary" not in text
    monkeypatch.setenv("DSTEE_BUILD", "none")
    assert native._how_to_build().startswith("unset DSTEE_BUILD, which says none; ")


def test_a_gpu_without_kernels_has_two_ways_out(monkeypatch):
    module = type("module", (), {"build_info": staticmethod(lambda: {"cuda": "", "why_no_cuda": "nvcc not found"})})
    monkeypatch.setattr(native, "load", lambda: (module, ""))
    reason = native.why_not("drop_grow_", torch.device("cuda"))
    assert "nvcc not found" in reason and "DSTEE_BUILD=cuda" in reason and 'pip install "dstee[triton]"' in reason


def test_packages_that_are_missing_are_named_with_their_extra(monkeypatch, capsys):
    monkeypatch.setattr(info, "versions", lambda: {"dstee": "1", "rich": "not installed", "scipy": "1.2"})
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'rich not installed: pip install "dstee[cli]"' in lines and "scipy 1.2" in lines
