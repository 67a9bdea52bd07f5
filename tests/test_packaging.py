"""What is packed: the files of the sdist and of the wheel, and what a package index shows of them.

`make sdist` and `make wheel` build with the compiled kernels, and try what they built.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.metadata import Metadata

import dstee

ROOT = Path(__file__).resolve().parents[1]
NOT_PACKED = (".ci/", ".github/", ".gitignore")
NOT_INSTALLED = ("bench/README.md", "bench/peers.txt", "bench/results/")
# What builds and tests leave in a checkout.
LEFT_BEHIND = (
    "dstee/_C.cpython-311-x86_64-linux-gnu.so", "dstee/__pycache__/cli.cpython-311.pyc", "tests/cuda_host/.build/a.o",
    "tests/cuda_ptx/.build/a.cubin", "bench/results/cpu.html", "bench/results/gpu.log", "runs/a/config.json", "build/lib/a.py",
    "dist/dstee-0.1.0.tar.gz", ".venv/built", "site/index.html",
)  # fmt: skip
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


@dataclass(frozen=True)
class Packed:
    """``tracked``: the files of the checkout. Names in the sdist are without its folder."""

    tracked: set[str]
    sdist: set[str]
    wheel: set[str]
    metadata: Metadata


def build(hook: str, tree: Path, out: Path) -> Path:
    command = [sys.executable, "-c", BUILD, hook, str(out)]
    done = subprocess.run(command, cwd=tree, env=os.environ | {"DSTEE_BUILD": "none"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = out.iterdir()
    return found


def tracked_files() -> set[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: git cannot say which files belong to it")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """The sdist of the checkout with what lies around in one, and the wheel without compiled kernels that is built from it."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("packed")
    tracked = tracked_files()
    for name in (*tracked, *LEFT_BEHIND):
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes() if name in tracked else b"left behind")
    (out / "sdist").mkdir()
    (out / "wheel").mkdir()
    with tarfile.open(build("build_sdist", tree, out / "sdist")) as archive:
        archive.extractall(out, filter="data")
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    with zipfile.ZipFile(build("build_wheel", out / f"dstee-{dstee.__version__}", out / "wheel")) as wheel:
        info = f"dstee-{dstee.__version__}.dist-info"
        metadata = Metadata.from_email(wheel.read(f"{info}/METADATA"), validate=True)
        return Packed(tracked, names, set(wheel.namelist()), metadata)


def test_the_sdist_holds_the_checkout(packed: Packed) -> None:
    made = {name for name in packed.sdist if name.startswith("dstee.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert packed.sdist - made == {name for name in packed.tracked if not name.startswith(NOT_PACKED)}
    assert {"LICENSE", "SECURITY.md", "CITATION.cff", "csrc/module.cpp", "tests/conftest.py"} <= packed.sdist


def test_the_wheel_holds_the_package_alone(packed: Packed) -> None:
    """All of dstee/, and kernels/ and bench/ inside it; no tests, no sources of the compiled module, nothing beside it."""
    installed = {name for name in packed.tracked if name.startswith(("dstee/", "kernels/", "bench/"))}
    installed = {name for name in installed if not name.startswith(NOT_INSTALLED)}
    code = {name if name.startswith("dstee/") else f"dstee/{name}" for name in installed}
    info = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    assert packed.wheel == code | {f"dstee-{dstee.__version__}.dist-info/{name}" for name in info}
    assert {"dstee/py.typed", "dstee/bench/report.html.j2", "dstee/kernels/sweep.py"} <= packed.wheel


def test_what_an_index_shows(packed: Packed) -> None:
    data = packed.metadata
    assert (data.name, str(data.version), data.license_expression) == ("dstee", dstee.__version__, "Apache-2.0")
    assert data.license_files == ["LICENSE"] and data.author == "The dstee developers"
    classifiers = data.classifiers or []
    assert "Typing :: Typed" in classifiers and not [c for c in classifiers if c.startswith("License ::")]
    pythons = sorted(int(c.rpartition(".")[2]) for c in classifiers if re.fullmatch(r".*:: Python :: 3\.\d+", c))
    assert pythons == list(range(pythons[0], pythons[-1] + 1)) and str(data.requires_python) == f">=3.{pythons[0]}"
    assert {str(r) for r in data.requires_dist or [] if r.marker is None} == {"torch>=2.11", "numpy"}
    assert data.description_content_type == "text/markdown"


def test_the_readme_has_no_dead_links_on_an_index(packed: Packed) -> None:
    """It may say nothing that :func:`for_index` cannot rewrite, such as HTML and references."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", packed.metadata.description or "", flags=re.M | re.S)
    links = re.findall(r"\]\((?!https?:)|^\[[^\]]+\]: (?!https?:)|(?:src|srcset|href)=\"(?!https?:)", text, re.M)
    assert len(text) > 2000 and links == []


HERE = "https://example.org/one/dstee"


@pytest.mark.parametrize(
    ("text", "with_source", "without"),
    [
        ("see [the docs](docs/a.md#b).", f"see [the docs]({HERE}/blob/HEAD/docs/a.md#b).", "see the docs."),
        ("[Speed](#speed)", f"[Speed]({HERE}#speed)", "Speed"),
        ("![a curve](docs/a.png)", f"![a curve]({HERE}/raw/HEAD/docs/a.png)", "a curve"),
        (
            "[![a curve](docs/a.png)](docs/a.md)",
            f"[![a curve]({HERE}/raw/HEAD/docs/a.png)]({HERE}/blob/HEAD/docs/a.md)",
            "a curve",
        ),
        ("[`a.py`](bench/a.py), `c[i](j)`", f"[`a.py`]({HERE}/blob/HEAD/bench/a.py), `c[i](j)`", "`a.py`, `c[i](j)`"),
        ("[x](https://a.example/b) [y](mailto:z)", *["[x](https://a.example/b) [y](mailto:z)"] * 2),
        ("```\n[a](b)\n```\n[a](b)", f"```\n[a](b)\n```\n[a]({HERE}/blob/HEAD/b)", "```\n[a](b)\n```\na"),
        ("a [list] (of)\n[two\nlines](a)", f"a [list] (of)\n[two\nlines]({HERE}/blob/HEAD/a)", "a [list] (of)\ntwo\nlines"),
    ],
)  # fmt: skip
def test_links_for_an_index(text: str, with_source: str, without: str) -> None:
    for_index = runpy.run_path(str(ROOT / "setup.py"))["for_index"]
    assert (for_index(text, HERE), for_index(text, None)) == (with_source, without)


def test_an_old_setuptools_is_named(tmp_path: Path) -> None:
    """It would say of pyproject.toml that it is wrong, in ninety lines."""
    old = "__version__ = '65.5.0'\nfind_packages = lambda *folders, **rules: []\nsetup = None\n"
    (tmp_path / "setuptools.py").write_text(old)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "DSTEE_BUILD": "none"}
    command = [sys.executable, str(ROOT / "setup.py"), "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines() == [
        "dstee: setuptools 65.5.0 is too old to read pyproject.toml: pip install --upgrade 'setuptools>=77'"
    ]


def test_the_citation_is_of_this_version() -> None:
    citation, project = (ROOT / "CITATION.cff").read_text(), (ROOT / "pyproject.toml").read_text()

    def value(key: str, text: str) -> str | None:
        found = re.search(rf'^{key} ?[:=] "?([^"\n]+)', text, re.M)
        return found and found[1]

    assert value("version", citation) == value("version", project) == dstee.__version__
    assert value("license", citation) == value("license", project)
    assert value("repository-code", citation) == value("Source", project)
