"""Rules that no other test would notice being broken, read off the source tree and a fresh interpreter.

Who may import whom stands in pyproject.toml (import-linter, ``make check``).
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 400
SHIPPED = ("dstee", "kernels", "csrc", "bench", "examples", "setup.py")
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# CIFAR's own archives are pickles. What it reads them with imports nothing that they name; test_cifar.py attacks it.
RESTRICTED = "dstee/experiments/data/cifar_pickle.py"
# Written in parts, so that this file does not hold them.
PRIVATE = re.compile(
    r"\b(" + "|".join(("final" + "ists?", "cro" + "wds?", "handi" + "cap", "retel" + "ling", "sound tw" + "ins?")) + r")\b"
)
LATER = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")


def sources(root: Path, *places: str, suffixes: tuple[str, ...] = (".py",)) -> Iterator[Path]:
    for place in places:
        path = root / place
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.suffix in suffixes and "__pycache__" not in file.parts:
                yield file


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call) and _called(node) in ("__import__", "import_module"):
            yield from ((node.lineno, str(a.value)) for a in node.args[:1] if isinstance(a, ast.Constant))


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


# --- the rules: each yields "file:line what" ------------------------------------------------------------------------------


def unpickles(root: Path) -> Iterator[str]:
    """Files of the user are never unpickled: no pickle module, torch.load only with weights_only=True written out."""
    for file in sources(root, *SHIPPED):
        tree = ast.parse(file.read_text())
        if file.relative_to(root).as_posix() != RESTRICTED:
            yield from (f"{file}:{line} imports {name}" for line, name in imported(tree) if name.split(".")[0] in PICKLES)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if ast.unparse(node.func).endswith("torch.load") and keywords.get("weights_only") is not True:
                yield f"{file}:{node.lineno} torch.load without weights_only=True"
            if keywords.get("allow_pickle"):
                yield f"{file}:{node.lineno} allow_pickle"


def unsafe_loads(root: Path) -> Iterator[str]:
    for file in sources(root, *SHIPPED, "tests"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "weights_only" and getattr(node.value, "value", None) is not True:
                yield f"{file}:{node.value.lineno} weights_only is not True"


def public_modules_without_all(root: Path) -> Iterator[str]:
    """A module whose name has no leading underscore says what it offers."""
    for file in sources(root, "dstee", "kernels", "bench"):
        public = not any(part.startswith("_") for part in file.relative_to(root).with_suffix("").parts if part != "__init__")
        tree = ast.parse(file.read_text())
        offers = [node for node in tree.body if not isinstance(node, ast.Expr)]
        if public and offers and not any(_assigns(node, "__all__") for node in tree.body):
            yield f"{file} has no __all__"


def _assigns(node: ast.stmt, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(t, ast.Name) and t.id == name for t in targets)


def private_words(root: Path) -> Iterator[str]:
    """Words that only their author knows; CONTRIBUTING.md has the ones to use."""
    suffixes = (".py", ".cpp", ".cu", ".h", ".cuh", ".md", ".j2")
    for file in sources(root, *SHIPPED, "tests", "docs", "README.md", "CONTRIBUTING.md", suffixes=suffixes):
        for line, text in enumerate(file.read_text().splitlines(), 1):
            if PRIVATE.search(text):
                yield f"{file}:{line} {text.strip()}"


CPP = (".cpp", ".cu", ".h", ".cuh", ".hpp")


def included(root: Path, place: str = "csrc", suffixes: tuple[str, ...] = CPP) -> Iterator[tuple[Path, int, str]]:
    """(file, line, name as it is written) of every #include."""
    for file in sources(root, place, suffixes=suffixes):
        for line, text in enumerate(file.read_text().splitlines(), 1):
            found = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', text)
            if found:
                yield file, line, found[1]


def cpu_and_cuda_are_apart(root: Path) -> Iterator[str]:
    for one, other in (("cpu", "cuda"), ("cuda", "cpu")):
        others = {f.name for f in sources(root, f"csrc/{other}", suffixes=CPP)}
        others -= {f.name for f in sources(root, f"csrc/{one}", suffixes=CPP)}
        for file, line, name in included(root, f"csrc/{one}"):
            if (f"{other}/" in name and not name.startswith("torch/")) or name in others:
                yield f"{file}:{line} includes {name}"


def torch_is_included_elsewhere(root: Path) -> Iterator[str]:
    """Kernels see pointers: torch comes in with the arguments, with its threads and with the launches, nowhere else."""
    allowed = {"csrc/arguments.h", "csrc/cpu/parallel.h", "csrc/cuda/launch.cuh"}
    for file, line, name in included(root):
        if name.startswith("torch/") and file.relative_to(root).as_posix() not in allowed:
            yield f"{file}:{line} includes {name}"
    for file, line, name in included(root, "csrc/cpu", (".h",)):
        if name.endswith("arguments.h"):
            yield f"{file}:{line} includes {name}"


# A header includes only those before it. csrc/cuda has no order but that there is no circle.
HEADERS = (
    "rules.h", "threshold.h", "test_limits.h", "bind_test_limits.h", "layouts.h", "layers.h", "arguments.h", "checks.h",
    "cpu/loops.h", "cpu/lanes_scalar.h", "cpu/lanes_avx2.h", "cpu/lanes_avx512.h",
    "cpu/active_groups.h", "cpu/step_over_lanes.h", "cpu/loops_over_lanes.h",
    "cpu/pieces.h", "cpu/radix_select.h", "cpu/parallel.h", "cpu/packed_rows.h", "cpu/workspace.h", "cpu/update.h",
    "cpu/update_stats.h",
    "cpu/lists.h", "cpu/kth_largest.h", "cpu/stages.h",
)  # fmt: skip


def includes_out_of_order(root: Path) -> Iterator[str]:
    place = {(root / "csrc" / name).resolve(): i for i, name in enumerate(HEADERS)}
    for file in sources(root, "csrc", suffixes=(".h",)):
        if file.resolve() not in place:
            yield f"{file} is not in the order of headers"
    for file, line, name in included(root, suffixes=(".h",)):
        target = (file.parent / name).resolve()
        if target in place and file.resolve() in place and place[target] >= place[file.resolve()]:
            yield f"{file}:{line} includes {name}"


def includes_in_a_circle(root: Path) -> Iterator[str]:
    headers: dict[Path, list[Path]] = {}
    for file, _, name in included(root):
        headers.setdefault(file.resolve(), []).append((file.parent / name).resolve())
    done: set[Path] = set()

    def visit(file: Path, above: tuple[Path, ...]) -> Iterator[str]:
        if file in above:
            yield " -> ".join(f.name for f in (*above[above.index(file) :], file))
        elif file not in done:
            for target in headers.get(file, []):
                yield from visit(target, (*above, file))
            done.add(file)

    for file in headers:
        yield from visit(file, ())


def long_files(root: Path) -> Iterator[str]:
    for file in sources(root, *SHIPPED, "tests", suffixes=(".py", ".cpp", ".cu", ".h", ".cuh")):
        lines = len(file.read_text().splitlines())
        if lines > LONGEST:
            yield f"{file} has {lines} lines"


def left_for_later(root: Path) -> Iterator[str]:
    for file in sources(root, *SHIPPED, "tests", "docs", suffixes=(".py", ".cpp", ".cu", ".h", ".cuh", ".toml", ".md")):
        for line, text in enumerate(file.read_text().splitlines(), 1):
            if LATER.search(text):
                yield f"{file}:{line} {text.strip()}"


Rule = Callable[[Path], Iterator[str]]
RULES: list[Rule] = [
    unpickles,
    unsafe_loads,
    public_modules_without_all,
    private_words,
    cpu_and_cuda_are_apart,
    long_files,
    left_for_later,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    assert list(rule(ROOT)) == []


BROKEN: list[tuple[Rule, str, str]] = [
    (unpickles, "dstee/a.py", "import pickle"),
    (unpickles, "dstee/a.py", "from dill import loads"),
    (unpickles, "bench/a.py", "importlib.import_module('pickle')"),
    (unpickles, "setup.py", "import torch\ntorch.load('x')"),
    (unpickles, "kernels/a.py", "torch.load('x', weights_only=flag)"),
    (unpickles, "dstee/a.py", "np.load('x', allow_pickle=True)"),
    (unsafe_loads, "tests/a.py", "torch.load('x', weights_only=" + "False)"),
    (public_modules_without_all, "dstee/deep/__init__.py", "from dstee.ops import SGDRule as SGDRule"),
    (public_modules_without_all, "bench/a.py", "__some__ = []"),
    (private_words, "csrc/cpu/a.cpp", "// the final" + "ists of a layer"),
    (cpu_and_cuda_are_apart, "csrc/cpu/a.cpp", '#include "../cuda/launch.cuh"'),
    (cpu_and_cuda_are_apart, "csrc/cuda/a.cu", '#  include "cpu/loops.h"'),
    (torch_is_included_elsewhere, "csrc/cuda/a.cuh", "#include <torch/csrc/stable/tensor.h>"),
    (torch_is_included_elsewhere, "csrc/cpu/a.h", '#include "../arguments.h"'),
    (includes_out_of_order, "csrc/rules.h", '#include "layers.h"'),
    (includes_out_of_order, "csrc/cpu/update.h", '#include "stages.h"'),
    (includes_in_a_circle, "csrc/cuda/a.cuh", '#include "../cuda/a.cuh"'),
    (long_files, "csrc/cpu/a.cpp", "\n" * (LONGEST + 1)),
    (left_for_later, "csrc/rules.h", "// TO" + "DO: later"),
    (left_for_later, "dstee/a.py", "x = 1  # FIX" + "ME"),
]


@pytest.mark.parametrize(("rule", "place", "text"), BROKEN)
def test_rule_finds_what_breaks_it(tmp_path: Path, rule: Rule, place: str, text: str) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    assert list(rule(tmp_path)) == []
    file.write_text(text)
    assert len(list(rule(tmp_path))) == 1


# --- import --------------------------------------------------------------------------------------------------------------

INERT = """
import os, random, sys, threading
import numpy, torch

def os_threads():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0

STARTS = ("subprocess", "socket", "ctypes", "urllib", "os.system", "os.fork", "os.posix_spawn")
HEAVY = ("_dynamo", "_inductor", "onnx", "testing", *(f"distributed.{name}" for name in ("tensor", "checkpoint", "fsdp")))
seen = []

def watch(event, arguments):
    if event == "open" and not str(arguments[0]).endswith((".py", ".pyc")):  # such as the metadata of all that is installed
        seen.append(f"opens {arguments[0]}")
    elif event.startswith(STARTS):
        seen.append(event)

before = set(sys.modules)
state, seeds, threads = torch.get_rng_state(), random.getstate(), (torch.get_num_threads(), os_threads())
sys.addaudithook(watch)
import dstee
done, seen = seen, []
assert not done, done
assert torch.equal(state, torch.get_rng_state()) and seeds == random.getstate(), "random state"
assert threads == (torch.get_num_threads(), os_threads()) and threading.active_count() == 1, "threads"
assert not torch.cuda.is_initialized(), "CUDA"
assert torch.get_default_dtype() is torch.float32
new = set(sys.modules) - before
packages = {name.partition(".")[0] for name in new} - set(sys.stdlib_module_names)
assert packages <= {"dstee", "numpy", "torch"}, f"imported: {packages}"
heavy = [name for name in new if name.startswith(tuple(f"torch.{one}" for one in HEAVY))]
assert not heavy, f"imported: {heavy}"
assert "dstee._C" not in sys.modules, "the compiled module is loaded by the first call, not by the import"
assert not {"dstee.compat", "dstee.integrations", "dstee.testing"} & set(sys.modules), "submodules that nobody asked for"
assert dstee.compat.torch_ao.DSTEESparsifier and dstee.integrations.logging.scalars and not hasattr(dstee, "compat_")
"""


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=settings, timeout=120, check=False)


def test_import_is_inert() -> None:
    result = fresh(INERT)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_import_does_not_judge_the_environment() -> None:
    """A wrong wish is an error of the call that it concerns, which can say what is wrong."""
    result = fresh("import dstee, torch\ndstee.ops.pack_mask(torch.ones(1, dtype=torch.bool))", DSTEE_BACKEND="abacus")
    assert result.returncode == 1 and "unknown backend 'abacus'" in result.stderr.splitlines()[-1]


def test_the_public_names_are_there() -> None:
    import dstee

    names = (
        "sparsify SparseModel SparseSGD SGDRule DSTEE RigL SET Static UpdateSchedule ConstantDrop CosineDrop LinearDrop "
        "bonus_table use_backend ops metrics CheckpointError __version__"
    )
    assert [name for name in names.split() if not hasattr(dstee, name)] == []


# --- what the documents name ---------------------------------------------------------------------------------------------


def test_paths_in_contributing_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:dstee|csrc|kernels|tests|bench|examples)/[\w./]*)`", text))
    assert len(named) > 15 and [path for path in sorted(named) if not (ROOT / path).exists()] == []
