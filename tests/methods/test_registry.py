"""Methods from outside: they register, are found by name, and their state loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

import dstee
from dstee import methods
from dstee.methods import METHODS, Method, RigL, method_from_dict, register


@dataclass(frozen=True)
class HalfGradient(Method):
    scale: float = 0.5

    name = "half gradient"
    key = "half-gradient"
    needs_gradients = True


@pytest.fixture
def registered() -> Iterator[type[Method]]:
    yield register(HalfGradient)
    del METHODS[HalfGradient.key]


def test_a_registered_method_is_found_by_its_key(registered: type[Method]) -> None:
    method = HalfGradient(scale=0.25)
    assert METHODS["half-gradient"] is registered and method_from_dict(method.to_dict()) == method
    assert register(HalfGradient) is HalfGradient, "a second time changes nothing"


def test_the_state_of_a_registered_method_loads(registered: type[Method]) -> None:
    def make(method: Method) -> dstee.SparseModel:
        return dstee.sparsify(torch.nn.Linear(20, 10), 0.5, method=method)

    saved = make(HalfGradient(scale=0.25)).state_dict()
    other = make(RigL())
    other.load_state_dict(saved)
    assert other.method == HalfGradient(scale=0.25)


def test_a_state_of_an_unknown_method_says_what_there_is() -> None:
    with pytest.raises(ValueError, match="unknown method"):
        method_from_dict(HalfGradient().to_dict())


def test_what_cannot_be_registered() -> None:
    with pytest.raises(TypeError, match="a method is a subclass of dstee"):
        register(int)  # type: ignore[type-var]
    nameless = dataclass(frozen=True)(type("Nameless", (Method,), {"key": "nameless"}))
    with pytest.raises(TypeError, match="Nameless has no name"):
        register(nameless)
    twin = dataclass(frozen=True)(type("Twin", (Method,), {"key": "rigl", "name": "twin"}))
    with pytest.raises(ValueError, match="the key 'rigl' of Twin is taken by RigL"):
        register(twin)
    assert METHODS["rigl"] is methods.RigL and "nameless" not in METHODS
