"""States of the libraries' objects in which anything may stand: refused before anything changes, or it changes nothing else."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from compat.test_compat_files_of_0_1_0 import LIBRARIES, Training, assert_same, copied

from dstee import CheckpointError
from dstee.compat import checkpoints

JUNK: list[Any] = [
    None, True, -1, 1.5, math.nan, math.inf, 2**70, 10**400, "x", [], {}, [[]], {"a": 1}, torch.zeros(2), torch.tensor(2.0),
]  # fmt: skip


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all nodes below ``node``."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def replaced(state: Any, path: tuple[Any, ...], value: Any) -> Any:
    state = copied(state)
    node = state
    for key in path[:-1]:
        node = node[key]
    if value is KeyError:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return state


def fits(old: Any, new: Any) -> bool:
    """Whether another number or nothing may stand in the place of one."""
    numbers = (int, float, type(None))
    return isinstance(old, numbers) and isinstance(new, numbers) and not (isinstance(new, float) and not math.isfinite(new))


@pytest.fixture(scope="module", params=LIBRARIES)
def trained(request: pytest.FixtureRequest) -> Training:
    training = Training(request.param)
    training.go(0, 7)
    return training


def test_nothing_whatever_is_believed(trained: Training) -> None:
    """Every node of a state replaced by junk, or left out."""
    good = trained.states()["object"]
    refusals = 0
    for path in leaves(good):
        old = good
        for key in path:
            old = old[key]
        for value in (*JUNK, KeyError):
            bad = replaced(good, path, value)
            try:
                trained.object.load_state_dict(bad)
            except (ValueError, KeyError, RuntimeError) as error:
                refusals += 1
                assert not isinstance(error, (OverflowError, NotImplementedError)), (path, value)
                assert_same(trained.states()["object"], good, f"after {path} = {value!r}")
            else:
                default = value is KeyError and path[0] in ("method", "schedule", "groups")
                assert default or path[0] == "groups" or fits(old, value), (path, value)
                trained.object.load_state_dict(good)
                assert_same(trained.states()["object"], good, f"after {path} = {value!r}, which was taken")
    assert refusals > 100


@pytest.mark.parametrize("state", [None, [], "x", 3, {}, torch.zeros(3)])
def test_what_is_no_state_at_all(trained: Training, state: Any) -> None:
    good = trained.states()["object"]
    with pytest.raises((ValueError, KeyError, RuntimeError)):
        trained.object.load_state_dict(state)
    assert_same(trained.states()["object"], good, "after it")


@pytest.mark.parametrize("edit", [lambda N: N - 1, lambda N: N + 9, lambda N: N.float(), lambda N: N.flatten()[:-1]])
@pytest.mark.parametrize("library", ["masking", "scheduler_dst_ee", "sparsifier"])
def test_counters_that_no_training_has(library: str, edit: Any) -> None:
    training = Training(library)
    training.go(0, 7)
    state = training.states()["object"]
    bad = copied(state)
    if library == "masking":
        bad["counters"]["0.weight"] = edit(bad["counters"]["0.weight"])
    elif library == "sparsifier":
        bad["state"]["0.weight"]["counts"] = edit(bad["state"]["0.weight"]["counts"])
    else:
        bad["dstee"]["counters"][0] = edit(bad["dstee"]["counters"][0])
    with pytest.raises((ValueError, RuntimeError), match="count"):
        training.object.load_state_dict(bad)
    assert_same(training.states()["object"], state, "after it")


@pytest.mark.parametrize("value", [0.5, math.nan, 2.0, -1.0])
@pytest.mark.parametrize("library", LIBRARIES)
def test_masks_of_other_values(library: str, value: float) -> None:
    training = Training(library)
    training.go(0, 7)
    state = training.states()["object"]
    bad = copied(state)
    masks = bad["backward_masks"] if library.startswith("scheduler") else bad["masks" if "masking" in library else "state"]
    key: Any = 1 if library.startswith("scheduler") else "0.weight"
    holder, key = (masks[key], "mask") if library == "sparsifier" else (masks, key)
    holder[key] = holder[key].float().masked_fill(holder[key] != 0, value)
    with pytest.raises((ValueError, RuntimeError), match="holds other values than 0 and 1"):
        training.object.load_state_dict(bad)
    assert_same(training.states()["object"], state, "after it")


def test_a_sparse_model_believes_nothing_either(trained: Training) -> None:
    """The same states, for a SparseModel that is to go on."""
    good = trained.states()["object"]
    good = good.get("masks", good)
    taken = 0
    for path in leaves(good):
        for value in (*JUNK, KeyError):
            model = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.ReLU(), torch.nn.Linear(20, 5))
            before = copied(model.state_dict())
            try:
                sparse = checkpoints.load(model, replaced(good, path, value))
            except ValueError:
                assert_same(copied(model.state_dict()), before, f"after {path} = {value!r}")
            else:
                taken += 1
                assert all(type(n) is int for n in (sparse.t, sparse.round, sparse.seed)), (path, value)
                assert -(2**63) <= sparse.seed < 2**64 and 0 <= sparse.round <= sparse.t < 2**63, (path, value)
    assert taken


def test_a_parametrized_state_is_not_believed_either() -> None:
    def linear() -> torch.nn.Linear:
        torch.manual_seed(0)
        return torch.nn.Linear(4, 3)

    prefix = "parametrizations.weight"
    mask = (torch.arange(12) % 2 == 0).view(3, 4)
    good = {f"{prefix}.original": torch.ones(3, 4), f"{prefix}.0.mask": mask.float(), "bias": torch.zeros(3)}
    assert torch.equal(checkpoints.load(linear(), good).mask("weight"), mask)
    for path in leaves(good):
        for value in (*JUNK, torch.full((3, 4), math.nan), torch.full((3, 4), 0.5), torch.ones(4, 3), KeyError):
            if path == (f"{prefix}.original",) and isinstance(value, torch.Tensor) and value.shape == (3, 4):
                continue
            model = linear()
            before = copied(model.state_dict())
            with pytest.raises(ValueError):
                checkpoints.load(model, replaced(good, path, value))
            assert_same(copied(model.state_dict()), before, f"after {path} = {value!r}")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "good")
    assert list(checkpoints.read(tmp_path / "good")) == ["a.weight"]
    whole = (tmp_path / "good").read_bytes()
    (tmp_path / "torn").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "call").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for name in ("torn", "empty", "text", "pipe", "folder", "call", "missing"):
        with pytest.raises(CheckpointError) as caught:
            checkpoints.read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read: ")
