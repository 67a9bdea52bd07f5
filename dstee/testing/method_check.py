"""Whether a method keeps what every method must: for authors of own ones."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dstee.methods import METHODS, Method, method_from_dict
from dstee.schedule import CosineDrop, UpdateSchedule
from dstee.testing.compare import assert_same_bits
from dstee.testing.configurations import Configuration, configurations
from dstee.testing.host_reads import HostReads
from dstee.testing.method_trainings import (
    CLASSES,
    FEATURES,
    NETWORKS,
    Batches,
    Network,
    Snapshot,
    Training,
    chain,
    random_batches,
)

__all__ = ["check_method"]

_SCHEDULE = UpdateSchedule(every=2, stop=20, drop=CosineDrop(0.3))
_RESUME = 3  # steps from one resume to the next
_LAYERS = 3


def check_method(
    method: Method | type[Method],
    *,
    batches: Sequence[tuple[Tensor, Tensor]] | None = None,
    schedule: UpdateSchedule | None = None,
    layer_by_layer: bool = False,
) -> None:
    """Trains tiny float32 networks on the CPU with ``method``, with SparseSGD and with torch.optim.Adam, some layers frozen.

    It holds the method to what checkpoints, backends and other people's trainings rely on:

    * registered, its settings come back from :meth:`Method.to_dict`;
    * the active weights of every layer stay as many, or with ``moves_budgets`` add up to what ``total`` says, and where the
      method ``needs_stop`` or ``starts_denser`` the last update leaves the target;
    * weights and the optimizer's state are 0 outside the masks after every step;
    * a training that is saved and resumed in a fresh model after every third step gives the same bits, beside another training
      of the same method: nothing is remembered outside the model, nothing drawn from a global random generator;
    * every backend of this machine gives the same bits;
    * an update reads no more numbers from tensors with more layers, each of which would wait for a GPU.

    Args:
        method: with its settings, or the class for the defaults.
        batches: float32 inputs [N, 48] with int64 targets [N] in 0..3: what is trained on, and what a method with
            ``needs_batches`` looks at. None: random ones.
        schedule: one in which everything that the method does happens within its ``stop`` steps. None: an update at every
            second of 20 steps, nine in all.
        layer_by_layer: the method may read numbers for each layer, because it solves something on the host at a rare update
            (:class:`dstee.SIS`): the last point is left out.

    Raises:
        AssertionError: it does not; the text says where, and what to change.
        ValueError, TypeError: ``batches`` or ``schedule`` do not fit.
    """
    schedule = _SCHEDULE if schedule is None else schedule
    if schedule.stop is None:
        raise ValueError(f"the schedule must have a stop, so that the check sees all phases of the method, got {schedule}")
    batches = random_batches() if batches is None else batches
    for inputs, targets in batches:
        if inputs.dim() != 2 or inputs.shape[1] != FEATURES or not 0 <= int(targets.min()) <= int(targets.max()) < CLASSES:
            raise ValueError(
                f"batches must be pairs of float32 inputs [N, {FEATURES}] and int64 targets [N] in 0..{CLASSES - 1}, got "
                f"{list(inputs.shape)} and {list(targets.shape)}"
            )
    method = _check_declaration(method)
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_num_threads(1)  # the same sums in the networks' own matrix products, whatever the backend
            for network in NETWORKS:
                with _said(f"{method.name} on {network.name}"):
                    _check_network(network, method, schedule, batches)
            if not layer_by_layer:
                with _said(method.name):
                    _check_reads(method, schedule, batches)
        finally:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def _said(where: str) -> Iterator[None]:
    """Whatever goes wrong inside is an AssertionError that says where."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        raise AssertionError(f"{where}: {kind}{error}") from error


def _check_declaration(method: Method | type[Method]) -> Method:
    """The method; AssertionError where it could not be found, saved or compared."""
    kind = method if isinstance(method, type) else type(method)
    if not issubclass(kind, Method):
        raise TypeError(f"check_method takes a dstee.methods.Method or a subclass of it, got {method!r}")
    assert METHODS.get(getattr(kind, "key", "")) is kind, (
        f"{kind.__name__} is not registered, so its states cannot be loaded: write @dstee.register above the class, with a key "
        "of its own"
    )
    fields = {field.name for field in dataclasses.fields(kind)}
    for cls in kind.__mro__[: kind.__mro__.index(Method)]:
        for name, hint in vars(cls).get("__annotations__", {}).items():
            assert name in fields or "ClassVar" in str(hint) or typing.get_origin(hint) is typing.ClassVar, (
                f"{name} of {cls.__name__} is no setting yet: write @dataclass(frozen=True) above the class, below "
                "@dstee.register"
            )
    if isinstance(method, type):
        try:
            method = method()
        except TypeError as error:
            raise AssertionError(
                f"{kind.__name__} has settings without defaults ({error}): pass check_method one of it"
            ) from error
    with _said(f"the settings of {method.name} do not come back from to_dict()"):
        values = method.to_dict()
        odd = [name for name, value in values.items() if type(value) not in (str, int, float, bool)]
        assert not odd, f"{odd[0]} is {values[odd[0]]!r}, expected a text, a number, True or False, which states hold"
        assert method_from_dict(values) == method, f"{method_from_dict(values)} comes back, expected {method}"
    return method


def _check_network(network: Network, method: Method, schedule: UpdateSchedule, batches: Batches) -> None:
    assert schedule.stop is not None
    steps = schedule.stop + 1
    backends = {one.backend: Configuration(one.backend, one.isa, threads=1) for one in configurations()}
    usual = list(backends)[-1]
    with backends[usual].active():
        expected = _run(Training(network, method, schedule, batches), steps)
        _check_resumed(network, method, schedule, batches, expected)
    for backend, configuration in backends.items():
        if backend != usual:
            with configuration.active():
                found = _run(Training(network, method, schedule, batches), steps)
            for t, (a, b) in enumerate(zip(found, expected, strict=True), 1):
                what = _difference(a, b)
                assert not what, (
                    f"step {t} gives other bits on the backend {backend} than on {usual}: {what}. The ops give the same bits "
                    "on all, so the method itself looks at which backend there is"
                )


def _run(training: Training, steps: int) -> list[Snapshot]:
    found = []
    for _ in range(steps):
        training.step()
        training.check()
        found.append(training.snapshot())
    return found


def _check_resumed(
    network: Network, method: Method, schedule: UpdateSchedule, batches: Batches, expected: list[Snapshot]
) -> None:
    training = Training(network, method, schedule, batches)
    other = Training(network, method, schedule, random_batches(1), seed=1)  # what the method keeps elsewhere becomes that one's
    since = 0
    for t, snapshot in enumerate(expected, 1):
        training.step()
        other.step()
        if what := _difference(training.snapshot(), snapshot):
            again = Training(network, method, schedule, batches)
            same = all(not _difference(a, b) for a, b in zip(_run(again, t), expected, strict=False))
            how = f"resumed from its state after step {since}" if same and since else "started anew in the same way"
            raise AssertionError(
                f"a training that is {how} differs after step {t}: {what}. What {method.name} remembers must lie in the model, "
                "numbers in initial_numbers() and tensors in keeps, not in attributes, globals or generators of its own"
            )
        if t % _RESUME == 0:
            training, since = training.resumed(), t
            if what := _difference(training.snapshot(), snapshot):
                raise AssertionError(f"the state after step {t} does not come back: {what}")


def _difference(found: Snapshot, expected: Snapshot) -> str:
    """What differs first, in words; empty where all bits are equal."""
    if odd := sorted(found.keys() ^ expected.keys()):
        return f"{odd[0]} is only in one of them"
    for name, value in found.items():
        try:
            assert_same_bits(value, expected[name], name)
        except AssertionError as error:
            return str(error)
    return ""


def _check_reads(method: Method, schedule: UpdateSchedule, batches: Batches) -> None:
    few, many = (_reads(layers, method, schedule, batches) for layers in (_LAYERS, 2 * _LAYERS))
    for t, (a, b) in enumerate(zip(few, many, strict=True), 1):
        more = b.places - a.places
        assert b.number <= a.number, (
            f"step {t} reads numbers from tensors {a.number} times with {_LAYERS} layers, {b.number} times with {2 * _LAYERS}, "
            f"and on a GPU waits each time ({', '.join(f'{n} at {place}' for place, n in more.most_common(2))}): keep numbers "
            "of layers in tensors [L] (u.nnz, u.k, u.count_below), give these to the actions, or read all of them at once with "
            "torch.stack(...).tolist(); choose by torch.where instead of indexing by masks"
        )


def _reads(layers: int, method: Method, schedule: UpdateSchedule, batches: Batches) -> list[HostReads]:
    training = Training(Network(f"{layers} layers", lambda: chain(layers)), method, schedule, batches)
    assert schedule.stop is not None
    found = []
    for _ in range(schedule.stop):
        inputs, targets = batches[training.sparse.t % len(batches)]
        training.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(training.model(inputs), targets).backward()
        with HostReads() as reads:
            training.sparse.step(training.optimizer)
        found.append(reads)
    return found
