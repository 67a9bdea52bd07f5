"""The pages' code runs, what they name exists, and each public module has its place in the reference."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.pages import PAGES, ROOT, blocks, commands, links

import dstee
from dstee.methods import METHODS
from dstee.schedule import DROPS

GENERATED = "results.md"  # by make results-page
LONGEST = 400


def of_pages(*left_out: str) -> pytest.MarkDecorator:
    chosen = [page for page in PAGES if page.name not in left_out]
    return pytest.mark.parametrize("page", chosen, ids=[page.relative_to(ROOT).as_posix() for page in chosen])


@pytest.fixture
def as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pages may register methods, seed generators and write files."""
    monkeypatch.chdir(tmp_path)
    methods, drops, threads = dict(METHODS), dict(DROPS), torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)
    for table, held in ((METHODS, methods), (DROPS, drops)):
        table.clear()
        table.update(held)


@of_pages(GENERATED)
def test_code_runs(page: Path, as_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one page follow each other in one namespace."""
    module = types.ModuleType("page_of_the_documentation")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    left_out = []
    for block in blocks(page.read_text()):
        if block.language != "python":
            continue
        code = compile("\n" * (block.first_line - 1) + block.text, str(page), "exec")
        if block.missing():
            left_out.append(f"line {block.first_line} needs {', '.join(block.missing())}")
        elif not block.not_run:
            with warnings.catch_warnings():
                if block.needs:
                    warnings.simplefilter("ignore")  # other packages' business
                exec(code, vars(module))
    if left_out:
        pytest.skip(f"all other code of the page ran; {'; '.join(left_out)}")


@of_pages()
def test_commands_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    for words in commands(text):
        try:
            check(words, targets)
        except SystemExit:
            pytest.fail(f"{' '.join(words)}\n{capsys.readouterr().err}")


def check(words: list[str], targets: set[str]) -> None:
    """Raises, or lets argparse exit, where a command of the project is wrong; others are none of its business."""
    from bench.cli import make_parser as bench_parser
    from dstee.cli import make_parser

    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= targets, words
    if words[0] == "pip" and words[1] == "install":
        extras = {extra for found in re.findall(r"\[([\w,-]+)\]", " ".join(words)) for extra in found.split(",")}
        section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
        assert extras <= set(re.findall(r"^(\w+) =", section, re.MULTILINE)), words
    if words[0] in ("python", "torchrun") and (scripts := [word for word in words if word.endswith(".py")]):
        assert all((ROOT / script).exists() for script in scripts), words
    if words[0] in ("python", "torchrun") and "-m" in words:
        module, *arguments = words[words.index("-m") + 1 :]
        if module == "bench":
            bench_parser().parse_args(arguments)
        elif module == "dstee":
            make_parser().parse_args(arguments)
        elif module.startswith("bench."):
            assert importlib.util.find_spec(module), words
    if words[0] == "dstee":
        make_parser().parse_args(words[1:])


@of_pages()
def test_names_are_found_after_import_dstee(page: Path) -> None:
    """Who copies a name from a page has imported dstee, and perhaps nothing else."""
    missing = []
    text = re.sub(r"\bfrom dstee\.experiments\.\w+ import\b", "", page.read_text())  # the application: not imported with dstee
    for name in sorted(set(re.findall(r"\bdstee\.(?!bench\b)(\w+(?:\.\w+)*)", text))):
        found: object = dstee
        try:
            for part in name.split("."):
                found = getattr(found, part)
        except AttributeError:
            missing.append(name)
        except ImportError as error:  # a host that is not installed; the rest of the name is another test's
            assert "pip install" in str(error)
    assert missing == []


@of_pages()
def test_links_exist(page: Path) -> None:
    assert [target for target in links(page.read_text()) if not (page.parent / target).exists()] == []


@of_pages(GENERATED)
def test_pages_are_short(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= LONGEST


def test_the_grid_file_of_the_page_is_one() -> None:
    from dstee.experiments.sweep.grid import parse_grid

    found = [block.text for block in blocks((ROOT / "docs" / "sweep.md").read_text()) if block.language == "toml"]
    assert len(found) == 1 and parse_grid(found[0].encode(), "docs/sweep.md").runs


# --- the reference -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site_modules() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("site_modules", ROOT / "docs" / "_site" / "modules.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_public_module_has_a_place(site_modules: types.ModuleType) -> None:
    in_table = set(re.findall(r"^\| `([\w.]+)` \| .+ \|$", site_modules.table(), re.MULTILINE))
    public = set(site_modules.public_modules())
    assert {"dstee.metrics", "dstee.kernels.drop_grow", "dstee.bench.measure", "dstee.experiments.train"} <= public
    assert not {name for name in public if "._" in name}
    assert public <= in_table | site_modules.named() and not in_table & site_modules.named()
    assert site_modules.MARK in (ROOT / "docs" / "api" / "modules.md").read_text()


DIRECTIVE = re.compile(r"^::: ([\w.]+)\n(?:    options:\n(?:      .*\n)*?      members: \[([^\]]*)\]\n)?", re.MULTILINE)


def shown() -> Iterator[tuple[str, str]]:
    """(module, name) of what the pages of the reference show, where it can be imported."""
    for module, name in listed():
        try:
            importlib.import_module(module)
        except ImportError as error:
            assert module.startswith("dstee.integrations.") and "pip install" in str(error)
        else:
            yield module, name


def listed() -> Iterator[tuple[str, str]]:
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for found, members in DIRECTIVE.findall(page.read_text()):
            module, _, name = found.rpartition(".")
            if members:
                yield from ((found, one) for one in members.split(", "))
            elif importlib.util.find_spec(found) is None:
                yield module, name  # an object, and no module
            else:
                yield from ((found, one) for one in importlib.import_module(found).__all__)


def test_the_reference_shows_what_is_there() -> None:
    missing = [f"{module}.{name}" for module, name in shown() if not hasattr(importlib.import_module(module), name)]
    assert missing == []


@pytest.mark.parametrize(
    "module",
    [
        "dstee", "dstee.ops", "dstee.methods", "dstee.metrics", "dstee.export", "dstee.distributed", "dstee.compat",
        "dstee.compat.checkpoints", "dstee.compat.sparselearning", "dstee.compat.rigl_torch", "dstee.compat.torch_ao",
        "dstee.compat.sparsimony", "dstee.testing", "dstee.integrations.logging",
    ],
)  # fmt: skip
def test_the_reference_shows_all_that_is_exported(module: str) -> None:
    there = {id(getattr(importlib.import_module(place), name)) for place, name in shown()}
    offered = vars(importlib.import_module(module))
    exported = [name for name in offered["__all__"] if not isinstance(offered[name], types.ModuleType)]
    assert [name for name in exported if id(offered[name]) not in there and name != "__version__"] == []


def test_the_methods_page_has_every_method() -> None:
    text = (ROOT / "docs" / "methods" / "index.md").read_text()
    keys = [key for key, method in METHODS.items() if method.__module__.startswith("dstee.")]  # not those of other tests
    assert {"dst-ee", "rigl"} <= set(keys)
    keys.append(dstee.SoftThreshold.key)
    assert [key for key in keys if f"| `{key}` |" not in text] == []
    assert [name for name in dstee.methods.PRESETS if f"`{name}`" not in text] == []
