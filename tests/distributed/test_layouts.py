"""Masks, counters, weights and momenta of every layout are those of one process, bit for bit."""

from __future__ import annotations

import pytest
from support.layouts import LAYOUTS
from support.processes import Launcher
from support.rank_training import METHODS, Held, Run, alone, assert_equal, assert_invariant, on_ranks

pytestmark = pytest.mark.ranks


def on(*names: str) -> list:
    return [pytest.param(name, n, marks=[pytest.mark.slow] * (n > 4)) for name in names for n in LAYOUTS[name].ranks]


def slow_but(few: set, every: list) -> list:
    """All cases, of which make test-ranks runs ``few``."""
    return [case if case in few else pytest.param(*case, marks=pytest.mark.slow) for case in every]


EVERY = [(name, n) for name, layout in LAYOUTS.items() for n in layout.ranks]
ROW = ("tp-columns",)  # one row that is cut by rows
FEW = {("ddp", 2), ("fsdp", 3)}


def compare(launcher: Launcher, name: str, n: int, optimizer: str) -> None:
    runs = [Run(optimizer=optimizer, before=before, forward=not before) for before in (False, True)]
    for run, got in zip(runs, on_ranks(launcher, name, n, *runs), strict=True):
        assert_equal(got, alone(run))


@pytest.mark.parametrize(("name", "n"), on(*LAYOUTS))
def test_layout(launcher: Launcher, name: str, n: int) -> None:
    compare(launcher, name, n, "sparse-sgd")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(("name", "n"), slow_but(FEW, EVERY))
def test_other_optimizers(launcher: Launcher, name: str, n: int, optimizer: str) -> None:
    compare(launcher, name, n, optimizer)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "n"), slow_but({("fsdp", 3)}, [*sorted(FEW), ("fsdp-tp", 4), ("tp-rows", 2)]))
def test_method(launcher: Launcher, name: str, n: int, method: str) -> None:
    run = Run(method)
    assert_equal(on_ranks(launcher, name, n, run)[0], alone(run))


@pytest.mark.parametrize("optimizer", ["sparse-sgd", "adamw"])
@pytest.mark.parametrize(
    ("name", "n"), slow_but({("fsdp-nested", 2), ("fsdp-bf16", 2), ("hsdp", 4)}, [c for c in EVERY if c[0] not in ROW])
)
def test_real_gradients(launcher: Launcher, name: str, n: int, optimizer: str) -> None:
    """Their last bits depend on the number of ranks; what must hold for any masks holds. Of one row that is cut by rows, torch
    gives a gradient to all ranks, which its own optimizers refuse for the bias."""
    run = Run(optimizer=optimizer, forward=True, replayed=False)
    got = on_ranks(launcher, name, n, run)[0]
    assert_invariant(got, run.steps)
    assert got.facts["round after 16"] == 8


@pytest.mark.parametrize(("name", "n"), sorted(FEW))
def test_bfloat16_weights(launcher: Launcher, name: str, n: int) -> None:
    """Ties are the rule there."""
    run = Run(half=True, forward=True)
    assert_equal(on_ranks(launcher, name, n, run)[0], alone(run))


def test_the_comparison_itself() -> None:
    want = alone(Run())
    for other in (Run("set"), Run(seed=4), Run(optimizer="adamw"), Run(steps=14)):
        with pytest.raises(AssertionError):
            assert_equal(alone(other), want)
    changed = Held(dict(want.facts), {key: value.clone() for key, value in want.values.items()}, {})
    assert_equal(changed, want)
    changed.values["weight third.weight"][7] *= -1  # 0 becomes -0 where it is inactive
    with pytest.raises(AssertionError, match=r"weight third\.weight"):
        assert_equal(changed, want)
