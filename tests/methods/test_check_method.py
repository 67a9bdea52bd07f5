"""``dstee.testing.check_method``: the package's own methods pass, and each way to be wrong is caught and named."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import dstee
from dstee import backends
from dstee.methods import METHODS, Action, KeepGlobal, Method, Random, SetDensity, Start, Step, Swap, Update
from dstee.testing import check_method
from dstee.testing.host_reads import HostReads

OWN = sorted(key for key, kind in METHODS.items() if kind.__module__.startswith("dstee."))


@pytest.mark.parametrize("key", OWN)
def test_the_methods_of_the_package_pass(key: str) -> None:
    check_method(METHODS[key], layer_by_layer=key == "sis")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What is registered in a test is gone after it."""
    kept = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(kept)


def own(**members: Any) -> Method:
    """A registered method "own" with these members over those of a plain one."""
    plain = {"name": "Own", "key": "own", "needs_gradients": True}
    return dstee.register(dataclass(frozen=True)(type("Own", (Method,), plain | members)))()


def caught(method: Method | type[Method], text: str, **arguments: Any) -> None:
    with pytest.raises(AssertionError, match=text):
        check_method(method, **arguments)


def test_a_plain_own_method_passes_and_leaves_no_trace() -> None:
    torch.manual_seed(3)
    generators = torch.get_rng_state(), torch.get_num_threads()
    check_method(own(plan=lambda self, u: [Swap(grow_by=lambda u: [w + 1 for w in u.weights])]))
    assert torch.equal(torch.get_rng_state(), generators[0]) and torch.get_num_threads() == generators[1]


# --- totals --------------------------------------------------------------------------------------------------------------


def test_totals_that_change() -> None:
    def fewer(self: Method, u: Update) -> Sequence[Action]:
        return [KeepGlobal(lambda u: u.total - 1)]

    caught(own(plan=fewer), r"Own on an MLP with SparseSGD: RuntimeError: .* must say so, moves_budgets = True")
    caught(own(plan=fewer, key="own-2", moves_budgets=True), r"left \d+ weights active at step 2, its total\(\) says")


def test_a_target_that_is_not_reached() -> None:
    def due(self: Method, t: int, schedule: dstee.UpdateSchedule) -> bool:
        return t == 4

    def total(self: Method, u: Update) -> int:
        return u.target + 5 * (u.t < 18)

    ends: dict[str, Any] = {"due": due, "total": total, "plan": lambda self, u: [KeepGlobal(self.total)]}
    method = own(needs_stop=True, starts_denser=True, moves_budgets=True, start=lambda self, s: s.dense_masks(), **ends)
    caught(method, r"active after step 18, and updates end with step 18.*must leave u.target")


# --- weights -------------------------------------------------------------------------------------------------------------


def test_inactive_weights_that_are_written_inside_an_action() -> None:
    def everywhere(u: Update) -> list[Tensor]:
        for w in u.weights:
            w.add_(1)
        return u.weights

    caught(
        own(plan=lambda self, u: [Swap(drop_by=everywhere)]), r"weights of 0\.weight outside the mask are not 0 after step 2"
    )


def test_inactive_weights_that_are_written_before_the_step() -> None:
    def before_step(self: Method, c: Step) -> None:
        for w in c.weights:
            w.sub_(0.5)

    caught(own(before_step=before_step), r"weights of 0\.weight outside the mask are not 0 after step 1: .*c\.masks\(\)")


def test_weights_that_start_changes() -> None:
    def start(self: Method, s: Start) -> Mapping[str, Tensor]:
        for w in s.weights.values():
            w.detach().mul_(2)
        return s.random_masks()

    caught(own(start=start), r"start\(\) changed 0\.weight")


# --- what is remembered --------------------------------------------------------------------------------------------------


def grown_by(count: Any) -> Any:
    """A plan that ranks by gradients shifted by ``count``: other counts grow other weights."""

    def plan(self: Method, u: Update) -> Sequence[Action]:
        number = count(self, u)
        return [Swap(grow_by=lambda u: [g.abs().roll(int(number)) for g in u.grads])]

    return plan


def test_a_number_in_a_global() -> None:
    seen: list[int] = []

    def count(self: Method, u: Update) -> int:
        seen.append(u.t)
        return len(seen)

    caught(own(plan=grown_by(count)), r"started anew in the same way differs after step 2: mask of .*keeps, not in attributes")


def test_a_number_in_an_attribute_of_the_method() -> None:
    def count(self: Method, u: Update) -> int:
        object.__setattr__(self, "seen", 0 if u.t == 2 else self.seen + 1)  # type: ignore[attr-defined]
        return self.seen  # type: ignore[attr-defined,no-any-return]

    caught(own(plan=grown_by(count)), r"resumed|'Own' object has no attribute 'seen'")


def test_numbers_by_step_in_a_global() -> None:
    """What was kept for a step is there again in the resumed training, unless another one has come between."""
    seen: dict[int, float] = {}

    def count(self: Method, u: Update) -> float:
        seen[u.t] = float(u.grads[0].abs().sum() * 100) % 50
        return seen.get(u.t - 2, 0)

    caught(own(plan=grown_by(count)), "differs after step 4")


def test_tensors_beside_the_model() -> None:
    means: weakref.WeakKeyDictionary[Any, list[Tensor]] = weakref.WeakKeyDictionary()

    def before_step(self: Method, c: Step) -> None:
        for layer, g in zip(c.layers, c.grads, strict=True):
            means.setdefault(layer, [torch.zeros_like(g)])[0].add_(g)

    method = own(
        before_step=before_step,
        plan=lambda self, u: [Swap(grow_by=lambda u: [means[layer][0] for layer in u.layers])],
    )
    caught(method, r"resumed from its state after step 3 differs after step 4: mask of .*tensors in keeps")


def test_what_is_kept_as_it_should_passes() -> None:
    def before_step(self: Method, c: Step) -> None:
        for mean, g in zip(c.state("mean"), c.grads, strict=True):
            mean.mul_(0.5).add_(g)

    def plan(self: Method, u: Update) -> Sequence[Action]:
        u.numbers["updates"] = u.numbers["updates"] + 1
        return [Swap(grow_by=lambda u: u.state("mean"))]

    check_method(own(before_step=before_step, plan=plan, keeps=("mean",), initial_numbers=lambda self: {"updates": 0.0}))


@pytest.mark.parametrize(
    ("draw", "whose"),
    [
        (lambda w: torch.rand_like(w), "torch's"),
        (lambda w: torch.from_numpy(np.random.rand(*w.shape)), "numpy's"),
        (lambda w: w + random.random(), "Python's"),
    ],
)
def test_global_random_generators(draw: Any, whose: str) -> None:
    method = own(plan=lambda self, u: [Swap(grow_by=lambda u: [draw(w) for w in u.weights])])
    caught(method, f"a hook or plan draws from {whose} global generator.*Random\\(\\), or hash")


def test_the_global_generator_at_the_start() -> None:
    def start(self: Method, s: Start) -> Mapping[str, Tensor]:
        return dstee.masks_from_scores({name: torch.rand_like(w) for name, w in s.weights.items()}, total=s.total)

    caught(own(start=start), "start draws from torch's global generator")


def test_a_generator_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda u: [torch.rand(w.shape, generator=generator) for w in u.weights]  # noqa: E731
    caught(own(plan=lambda self, u: [Swap(grow_by=draw)]), "started anew in the same way differs after step 2: mask of")


def test_bits_that_depend_on_the_backend() -> None:
    def count(self: Method, u: Update) -> int:
        return int(backends.forced() == "reference")

    caught(own(plan=grown_by(count)), "gives other bits on the backend reference than on native: mask of")


# --- waiting for the device ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read",
    [
        lambda u: [int(m.sum()) // 5 for m in u.masks()],
        lambda u: [len(w[m]) // 5 for w, m in zip(u.weights, u.masks(), strict=True)],
        lambda u: [len(m.nonzero()) // 5 for m in u.masks()],
        lambda u: [m.flatten().cumsum(0).tolist()[-1] // 5 for m in u.masks()],
    ],
)
def test_numbers_that_are_read_for_each_layer(read: Any) -> None:
    method = own(plan=lambda self, u: [Swap(drop=read)])
    caught(method, r"Own: step 2 reads numbers .*test_check_method.py:\d+.*u\.nnz, u\.k")


def test_numbers_that_are_read_at_once_pass_and_those_of_each_layer_where_that_is_meant() -> None:
    check_method(own(plan=lambda self, u: [Swap(drop=lambda u: [n // 5 for n in u.nnz.tolist()])]))
    each = own(plan=lambda self, u: [Swap(drop=lambda u: [int(n) // 5 for n in u.nnz])], key="own-2")
    check_method(each, layer_by_layer=True)


def test_reads_are_counted_by_the_line_that_asks() -> None:
    x = torch.arange(4)
    with HostReads() as reads:
        x.tolist(), x[0].item(), bool(x[1] > 0), x[x > 1], torch.equal(x, x)
        x.add_(1), torch.where(x > 1, x, 0), x[1:], x.sum()
    assert reads.number == 5 and len(reads.places) == 1
    x.tolist()
    assert reads.number == 5, "outside of the block nothing is counted"


# --- settings ------------------------------------------------------------------------------------------------------------


def test_a_class_that_is_not_registered() -> None:
    @dataclass(frozen=True)
    class Unknown(Method):
        name = key = "unknown"

    caught(Unknown(), "Unknown is not registered.*write @dstee.register")
    dstee.register(Unknown)

    @dataclass(frozen=True)
    class Heir(Unknown):
        pass

    caught(Heir, "Heir is not registered")
    with pytest.raises(TypeError, match=r"check_method takes a dstee.methods.Method"):
        check_method(int)  # type: ignore[arg-type]


def test_a_class_without_dataclass() -> None:
    @dstee.register
    class Bare(Method):
        beta: float = 0.5
        seen: ClassVar[int] = 0
        name = key = "bare"

    caught(Bare, "beta of Bare is no setting yet: write @dataclass")


def test_settings_that_states_do_not_hold() -> None:
    @dstee.register
    @dataclass(frozen=True)
    class Listed(Method):
        shares: tuple[float, ...] = (0.5, 0.25)
        name = key = "listed"

    caught(Listed, r"do not come back from to_dict\(\): shares is \(0\.5, 0\.25\), expected a text")


def test_settings_that_come_back_changed() -> None:
    @dstee.register
    @dataclass(frozen=True)
    class Growing(Method):
        beta: float = 0.5
        name = key = "growing"

        def __post_init__(self) -> None:
            object.__setattr__(self, "beta", self.beta * 2)

    caught(Growing, r"beta=2\.0\) comes back, expected .*beta=1\.0\)")


def test_settings_without_defaults_are_asked_for() -> None:
    @dstee.register
    @dataclass(frozen=True, kw_only=True)
    class Asking(Method):
        beta: float
        name = key = "asking"

        def plan(self, u: Update) -> Sequence[Action]:
            return [Swap(grow_by=Random())]

    caught(Asking, "Asking has settings without defaults .*beta.*pass check_method one of it")
    check_method(Asking(beta=0.5))


# --- arguments -----------------------------------------------------------------------------------------------------------


def test_batches_are_trained_on_and_shown() -> None:
    seen: list[Any] = []

    def start(self: Method, s: Start) -> None:
        seen.append(s.batches)

    batches = [(torch.randn(9, 48, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4)]
    check_method(own(needs_batches=True, start=start), batches=batches)
    assert any(one is batches for one in seen)
    for x, y in ((torch.ones(3, 47), [0, 1, 2]), (torch.ones(3, 48), [0, 1, 4]), (torch.ones(3, 3, 4, 4), [0, 1, 2])):
        with pytest.raises(ValueError, match=r"batches must be pairs of float32 inputs \[N, 48\]"):
            check_method(dstee.SET, batches=[(x, torch.tensor(y))])


def test_phases_come_with_the_schedule() -> None:
    method = own(plan=lambda self, u: [SetDensity({"0.weight": 1})] if u.t == 24 else [Swap()])
    check_method(method)
    schedule = dstee.UpdateSchedule(every=12, stop=25, drop=dstee.ConstantDrop(0.3))
    caught(method, r"changed the active weights of 0\.weight from \d+ to 1 at step 24", schedule=schedule)
    with pytest.raises(ValueError, match="the schedule must have a stop"):
        check_method(method, schedule=dstee.UpdateSchedule())
