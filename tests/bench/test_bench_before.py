"""Kernels of another commit beside this one's: built from git, called with the arguments that they have."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from support.bench_rows import task

from bench import before, cli, plan, sweep
from bench.contenders import _before
from dstee import ops
from dstee._console import UsageError
from dstee.sgd_rule import SGDRule, pack

PACKAGE = Path(ops.__file__).parents[1]
STEP_OF_0_1_0 = (
    "masked_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, Tensor[] mask_bits, float lr, Tensor? lr_tensor, "
    "float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, bool first_step, "
    "Tensor? grad_scale, Tensor? found_inf) -> ()"
)
UPDATE_OF_0_1_0 = (
    "drop_grow_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, Tensor(c!)[] mask_bits, Tensor(d!)[] counts, "
    "int[] k, Tensor? k_tensor, Tensor? bonus, int round, Tensor? round_tensor, Tensor[] drop_scores, Tensor[] grow_signal, "
    "int[] grow_seeds, bool regrow, bool reset_regrown, bool sgd, float lr, Tensor? lr_tensor, float momentum, "
    "float dampening, float weight_decay, bool nesterov, bool maximize, bool first_step, Tensor? found_inf) -> ()"
)
SETUP = """import pathlib, sys
assert sys.argv[1:] == ["build_ext", "--inplace"]
assert "STABLE_TORCH_LIBRARY_IMPL(dstee_before_" in pathlib.Path("csrc/cpu/ops.cpp").read_text()
pathlib.Path("dstee/_C.so").write_text("")
"""


def git(folder: Path, *words: str) -> None:
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of which one commit looks like dstee; its setup.py makes an empty file for a library."""
    files = {
        "setup.py": SETUP, "dstee/ops.py": f"declare('{STEP_OF_0_1_0}')\ndeclare('{UPDATE_OF_0_1_0}')",
        "csrc/cpu/ops.cpp": "STABLE_TORCH_LIBRARY_IMPL(dstee, CPU, m) {}",
    }  # fmt: skip
    root = tmp_path / "tree"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "--quiet")
    commit(root)
    monkeypatch.setattr(before, "ROOT", root)
    monkeypatch.setattr(before, "CACHE", tmp_path / "cache")
    return root


def commit(root: Path) -> None:
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "x")


def test_a_commit_is_built_once(tree: Path) -> None:
    told: list[str] = []
    first = before.build("HEAD", told.append)
    assert before.build("HEAD", told.append) == first and len(told) == 1
    assert first["name"] == f"native {first['commit'][:7]}" and first["schemas"]["drop_grow_"] == UPDATE_OF_0_1_0
    assert Path(first["library"]).name == "_C.so" and [p.name for p in before.CACHE.iterdir()] == [
        Path(first["library"]).parent.name
    ]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("setup.py", "import sys; sys.exit('dstee: DSTEE_BUILD=cpu: no C++ compiler')", "cannot be built: .*no C.. compiler"),
        ("setup.py", "", "0 libraries"),
        ("csrc/cpu/ops.cpp", "", "no compiled kernels"),
        ("dstee/ops.py", "", "no schema of masked_sgd_"),
        ("dstee/ops.py", f"a = '{STEP_OF_0_1_0}'; b = 'masked_sgd_(int k) -> ()'", "two schemas of masked_sgd_"),
    ],
)
def test_a_commit_that_cannot_be_built_is_told(tree: Path, name: str, text: str, told: str) -> None:
    (tree / name).write_text(text)
    commit(tree)
    with pytest.raises(UsageError, match=f"--before HEAD: .*{told}"):
        before.build("HEAD", lambda text: None)


def test_what_git_does_not_know_is_told(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for revision in ("nothing", "--help", "HEAD~1", ""):
        with pytest.raises(UsageError, match="git knows no such commit"):
            before.build(revision, lambda text: None)
    assert cli.main(["--shapes", "mlp", "--before", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("dstee: error: --before nothing: git knows no such commit")
    monkeypatch.setattr(before, "ROOT", tmp_path)
    with pytest.raises(UsageError, match="not a git repository"):
        before.build("HEAD", lambda text: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="git cannot be run"):
        before.build("HEAD", lambda text: None)


def test_schemas_are_found_where_they_stand_now() -> None:
    for name, schema in before.schemas("x", PACKAGE).items():
        assert str(getattr(torch.ops.dstee, name).default._schema) == f"dstee::{schema}"


# --- arguments -------------------------------------------------------------------------------------------------------------


def parse(schema: str) -> torch.FunctionSchema:
    return torch._C.parse_schema(schema)


def values(schema: torch.FunctionSchema, **given: object) -> list[object]:
    """A value for each argument: what is given, its default, or its name."""
    return [given.get(a.name, a.default_value if a.has_default_value() else a.name) for a in schema.arguments]


def test_arguments_of_0_1_0_come_from_those_of_today() -> None:
    step, update = (getattr(torch.ops.dstee, name).default._schema for name in before.OPS)
    numbers, _ = pack(SGDRule(0.1, 0.9, 0.0, 5e-4, True, False, True))
    lr = torch.tensor(0.2)
    take = _before.adapter(step, parse(STEP_OF_0_1_0))
    rest = [0.9, 0.0, 5e-4, True, False, True]
    head = ["params", "grads", "momenta", "mask_bits"]
    assert take(values(step, sgd=numbers, lr=None)) == [*head, 0.1, None, *rest, "grad_scale", "found_inf"]
    assert take(values(step, sgd=numbers, lr=lr))[5] is lr

    new: dict[str, object] = {"k_grow": [], "k_grow_tensor": None, "bonus_scale": None, "where": []}
    take = _before.adapter(update, parse(UPDATE_OF_0_1_0))
    names = [a.name for a in parse(UPDATE_OF_0_1_0).arguments]
    found = dict(zip(names, take(values(update, **new, sgd=[], lr=None)), strict=True))
    assert (found["sgd"], found["lr"], found["nesterov"], found["k"]) == (False, 0.0, False, "k")
    found = dict(zip(names, take(values(update, **new, sgd=numbers, lr=None)), strict=True))
    assert (found["sgd"], found["lr"], found["nesterov"], found["first_step"]) == (True, 0.1, True, True)
    for name in new:
        with pytest.raises(RuntimeError, match=f"has no argument {name}$"):
            take(values(update, **{**new, name: [1]}, sgd=[], lr=None))


def test_arguments_that_a_commit_has_not_got_must_be_neutral() -> None:
    ours = parse("f(Tensor x, bool regrow) -> ()")
    take = _before.adapter(ours, parse("f(Tensor x) -> ()"))
    assert take([1, True]) == [1]
    with pytest.raises(RuntimeError, match="has no argument regrow"):
        take([1, False])
    with pytest.raises(RuntimeError, match="wants y"):
        _before.adapter(ours, parse("f(Tensor x, int y) -> ()"))
    assert _before.adapter(ours, parse("f(Tensor x, int y=3, bool regrow=True) -> ()"))([1, False]) == [1, 3, False]
    take = _before.adapter(parse("f(Tensor x, bool packed=False) -> ()"), parse("f(Tensor x) -> ()"))
    assert take([1]) == take([1, False]) == [1]
    with pytest.raises(RuntimeError, match="has no argument packed"):
        take([1, True])
    assert _before.adapter(ours, ours)(args := [1, True]) is args


# --- rows ------------------------------------------------------------------------------------------------------------------


def test_it_takes_part_whoever_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    built = {"name": "native abc", "commit": "abc", "space": "s", "library": "l", "schemas": {}}
    monkeypatch.setattr(before, "build", lambda revision, say: built)
    words = ["--op", "drop_grow", "scaling", "--before", "a", "b", "--against", "--largest", "1e4", "--shapes", "mlp"]
    for one in plan.tasks(cli.make_parser().parse_args(words)):
        assert one["contenders"].count("native abc") == 1 and one["before"][0] == built


@pytest.mark.slow
def test_this_commit_beside_itself() -> None:
    try:
        built = before.build("HEAD", lambda text: None)
    except UsageError as error:
        if "git" not in str(error) and "no C++ compiler" not in str(error):
            raise
        pytest.skip(str(error))
    for op in ("drop_grow", "masked_sgd"):
        row = sweep.run_row(task(op, ["native", built["name"]], before=[built]), limit=60)
        one = row["contenders"][built["name"]]
        assert one["status"] == "ok" and not one["ours"], one
        assert one["digest"] == row["contenders"]["native"]["digest"]
