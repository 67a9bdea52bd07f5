"""Methods and drop schedules of installed packages, own drop schedules, and the nearest name of what is unknown."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from support.small_models import mlp, set_gradients

import dstee
from dstee import _lookup
from dstee._console import UsageError
from dstee.experiments import data
from dstee.experiments.config import Config
from dstee.experiments.trial import Trial
from dstee.methods import METHODS, method_from_dict
from dstee.schedule import DROPS


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is registered in a test is gone after it."""
    kept = dict(METHODS), dict(DROPS)
    monkeypatch.setattr(_lookup, "_seen", set())
    yield
    for table, before in zip((METHODS, DROPS), kept, strict=True):
        table.clear()
        table.update(before)  # type: ignore[arg-type]


def install(folder: Path, module: str, code: str) -> None:
    """A distribution ``module`` 1.5 with one module, which its entry point names."""
    info = folder / f"{module}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[dstee.methods]\nmine = {module}\n")
    (folder / f"{module}.py").write_text(textwrap.dedent(code))


PLUGIN = """
    from dataclasses import dataclass
    import dstee

    @dstee.register
    @dataclass(frozen=True)
    class Far(dstee.methods.Method):
        reach: float = 0.5
        name, key = "far", "far-{0}"

    @dstee.register_drop
    @dataclass(frozen=True)
    class Half:
        initial: float
        key, needs_stop = "half-{0}", False
        def __call__(self, t, stop):
            return self.initial / 2
"""


@pytest.mark.parametrize(
    "ask",
    [
        lambda key: dstee.sparsify(mlp(), 0.5, method=f"far-{key}").method.key,
        lambda key: dstee.sparsify(mlp(), 0.5, method=f"FAR-{key}".upper()).method.key,
        lambda key: method_from_dict({"method": f"far-{key}", "reach": 0.25}).key,
        lambda key: dstee.methods.known_methods()[f"far-{key}"].key,
        lambda key: dstee.UpdateSchedule.from_dict({"every": 3, "drop": f"half-{key}", "initial": 0.5}).drop.key,
    ],
)
def test_an_installed_package_is_loaded_by_the_first_look_for_it(
    ask: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    key = f"p{request.node.callspec.indices['ask']}"
    install(tmp_path, f"dstee_far_{key}", PLUGIN.format(key))
    monkeypatch.syspath_prepend(tmp_path)
    dstee.sparsify(mlp(), 0.5, method="set")
    assert f"dstee_far_{key}" not in sys.modules, "what is known is found without it"
    assert ask(key).endswith(f"-{key}")


@pytest.mark.long
def test_the_command_line_lists_and_trains_what_packages_offer(tmp_path: Path) -> None:
    install(tmp_path, "dstee_far_away", PLUGIN.format("away"))
    code = "import sys; from dstee import cli; sys.exit(cli.main(sys.argv[1:]))"

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}", "train", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    shown = run("--help")
    assert shown.returncode == 0 and "far-away" in shown.stdout and "half-away" in shown.stdout
    small = ("--epochs", "1", "--hidden", "8", "--train-limit", "200", "--sparsity", "0.5")
    own = ("--method", "far-away", "--set", "reach=0.25", "--drop-schedule", "half-away")
    done = run(*own, *small, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert '"half-away"' in (tmp_path / "run" / "config.json").read_text()


BROKEN = {
    "does not import": ("raise ImportError('no libfar.so')", "ImportError: no libfar.so"),
    "takes a key": (PLUGIN.format("x").replace("far-x", "rigl"), "the key 'rigl' of Far is taken by RigL"),
    "is written wrongly": ("def f(:", "SyntaxError"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_package_is_named_once_and_breaks_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, reason = BROKEN[kind]
    module = f"dstee_{kind.replace(' ', '_')}"
    install(tmp_path, module, code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(RuntimeWarning, match=f"mine = {module} of {module} 1.5 could not be loaded.*{reason}"):
        assert METHODS.items() <= dstee.methods.known_methods().items()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="unknown method 'far-x'"):
            dstee.sparsify(mlp(), 0.5, method="far-x")
        assert dstee.sparsify(mlp(), 0.5, method="rigl").method == dstee.RigL()


# --- own drop schedules ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """``initial`` halved every ``length`` steps."""

    initial: float = 0.4
    length: int = 2
    upwards: bool = False
    key: ClassVar[str] = "steps"
    needs_stop: ClassVar[bool] = False

    def __call__(self, t: int, stop: int) -> float:
        return self.initial / 2 ** (t // self.length)


def test_an_own_drop_schedule_swaps_is_saved_and_loads() -> None:
    assert dstee.register_drop(Steps) is Steps
    schedule = dstee.UpdateSchedule(every=1, drop=Steps(0.5, length=1))
    assert [schedule.swap_count(100, t) for t in (1, 2, 3)] == [25, 13, 7]
    model = mlp()
    sparse = dstee.sparsify(model, 0.5, method="rigl", schedule=schedule)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
    for t in (1, 2):
        before = sparse.masks()
        set_gradients(model, t)
        sparse.step(optimizer)
        for name, layer in sparse.layers.items():
            assert int((before[name] & ~sparse.mask(name)).sum()) <= schedule.swap_count(layer.nnz, t)
    other = dstee.sparsify(mlp(), 0.5)
    other.load_state_dict(sparse.state_dict())
    assert other.schedule == schedule
    assert schedule.to_dict() == {"every": 1, "drop": "steps", "initial": 0.5, "length": 1, "upwards": False}


def test_its_fields_get_the_command_lines_numbers() -> None:
    dstee.register_drop(Steps)
    config = Config.resolve({"method": "set", "drop_schedule": "steps", "drop_fraction": 0.25, "every": 7})
    schedule = Trial(config, "set", 0, data.load("digits", None)).sparse.schedule
    assert (schedule.every, schedule.drop) == (7, Steps(0.25))
    with pytest.raises(UsageError, match=r"drop_schedule must be one of .*steps, got 'stepps' \(did you mean 'steps'\?\)"):
        Config.resolve({"drop_schedule": "stepps"})


def unfrozen() -> type:
    return dataclass(type("Unfrozen", (), {"__call__": Steps.__call__, "key": "unfrozen", "needs_stop": False}))


def shaped(**members: Any) -> type:
    plain = {"__call__": Steps.__call__, "key": "shaped", "needs_stop": False}
    return dataclass(frozen=True)(type("Shaped", (), {k: v for k, v in (plain | members).items() if v is not ...}))


@pytest.mark.parametrize(
    ("drop", "error", "text"),
    [
        (unfrozen(), TypeError, "Unfrozen is no frozen dataclass: write @register_drop above @dataclass"),
        (Steps(), TypeError, "is no frozen dataclass"),
        (type("Heir", (Steps,), {}), TypeError, "Heir is no frozen dataclass"),
        (shaped(key=...), TypeError, "Shaped must have key = 'a name of its own' and needs_stop"),
        (dataclass(frozen=True)(type("Heir", (Steps,), {})), TypeError, "Heir must have key = 'a name of its own'"),
        (shaped(needs_stop=1), TypeError, "needs_stop = True or False"),
        (shaped(__call__=...), TypeError, "must have __call__"),
        (shaped(key="cosine"), ValueError, "the key 'cosine' of Shaped is taken by CosineDrop"),
        (shaped(stop=1, __annotations__={"stop": int}), ValueError, "the field stop of Shaped is the schedule's own"),
    ],
)
def test_what_is_no_drop_schedule(drop: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        dstee.register_drop(drop)
    assert DROPS["cosine"] is dstee.CosineDrop and "shaped" not in DROPS


@pytest.mark.parametrize("share", [1.5, -0.1, float("nan"), True, None, torch.tensor(0.5)])
def test_a_share_that_is_none_is_refused_when_it_is_asked(share: Any) -> None:
    dstee.register_drop(Odd := shaped(__call__=lambda self, t, stop: share))
    with pytest.raises(ValueError, match=r"gave .* at step 3, expected a number in \[0, 1\]"):
        dstee.UpdateSchedule(drop=Odd()).swap_count(10, 3)


def test_schedules_take_registered_drops_with_plain_fields() -> None:
    with pytest.raises(ValueError, match=r"drop must be a ConstantDrop, .* or of a class under @dstee.register_drop"):
        dstee.UpdateSchedule(drop=Steps())
    dstee.register_drop(Steps)
    with pytest.raises(ValueError, match="length of Steps must be a number, a text, True or False"):
        dstee.UpdateSchedule(drop=Steps(length=(1, 2)))  # type: ignore[arg-type]


# --- names that are nearly right ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: dstee.sparsify(mlp(), 0.5, method="rigll"), "unknown method 'rigll' (did you mean 'rigl'?), expected one of"),
        (lambda: dstee.sparsify(mlp(), 0.5, method="DSTEE"), "unknown method 'DSTEE' (did you mean 'dst-ee'?)"),
        (lambda: method_from_dict({"method": "gmpp"}), "unknown method 'gmpp' (did you mean 'gmp'?)"),
        (lambda: method_from_dict({"method": 3}), "unknown method 3, expected one of"),
        (
            lambda: method_from_dict({"method": "snfs", "bta": 0.5}),
            "the method snfs has no setting 'bta' (did you mean 'beta'?), but order, regrow, reset_regrown, beta",
        ),
        (lambda: dstee.UpdateSchedule.from_dict({"every": 3, "drop": "cosin"}), "unknown drop 'cosin' (did you mean"),
        (
            lambda: dstee.UpdateSchedule.from_dict({"every": 3, "stop": 9, "drop": "cosine", "intial": 0.5}),
            "the drop cosine has no setting 'intial' (did you mean 'initial'?), but initial, floor",
        ),
        (lambda: dstee.preset("set-cifar"), "unknown preset 'set-cifar' (did you mean"),
    ],
)  # fmt: skip
def test_the_nearest_name_is_said(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert text in str(caught.value)
