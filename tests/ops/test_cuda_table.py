"""When the table of the layers is uploaded and waited for: what CUDA ops ask of the runtime, in order, on the host harness."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
from cuda_host import build
from cuda_host.backend import HostConfiguration

from dstee import backends, ops
from dstee.testing import Case, assert_same_bits, make_case

pytestmark = pytest.mark.skipif(bool(build.why_not()), reason=build.why_not() or "there is a compiler")

RULE = ops.SGDRule(0.1, 0.9)
both_calls = pytest.mark.parametrize("call", [Case.masked_sgd_, Case.drop_grow_], ids=["masked_sgd_", "drop_grow_"])


@pytest.fixture
def runtime() -> Iterator[ModuleType]:
    module, configuration = build.load(build.PLAIN), HostConfiguration()
    with configuration.active(), backends.use_backend(configuration.backend):
        module.note_calls(True)
        module.take_calls()
        yield module
        module.note_calls(False)
        module.set_capturing(False)


def case() -> Case:
    """Of layers that no table was uploaded for: their addresses are new."""
    return make_case(7, [257, 33], round=3, sgd=RULE)


def calls_of(runtime: ModuleType, call: Callable[[Case], None], case: Case) -> list[str]:
    """Without the launches, which come last."""
    call(case)
    found = runtime.take_calls()
    others = [text for text in found if not text.startswith("launch of ")]
    assert len(others) < len(found) and found[: len(others)] == others
    return others


@both_calls
def test_a_table_is_uploaded_once(runtime: ModuleType, call: Callable[[Case], None]) -> None:
    layers = case()
    assert calls_of(runtime, call, layers) == ["copy to the device", "record event"]
    assert calls_of(runtime, call, layers) == []
    assert calls_of(runtime, call, copy.deepcopy(layers)) == ["copy to the device", "record event"]


@both_calls
def test_the_host_waits_for_the_upload_at_the_first_capture(runtime: ModuleType, call: Callable[[Case], None]) -> None:
    """A replay's stream may never have waited for the upload's. A capture may wait in relaxed mode only."""
    layers = case()
    call(layers)
    runtime.take_calls()
    runtime.set_capturing(True)
    assert calls_of(runtime, call, layers) == ["relaxed mode", "wait for event", "global mode"]
    assert calls_of(runtime, call, layers) == []
    runtime.set_capturing(False)
    assert calls_of(runtime, call, layers) == []


@both_calls
def test_a_capture_needs_an_earlier_call(runtime: ModuleType, call: Callable[[Case], None]) -> None:
    layers = case()
    before = layers.clone()
    runtime.set_capturing(True)
    with pytest.raises(RuntimeError, match="call the op once before capturing"):
        call(layers)
    assert runtime.take_calls() == []
    for name, tensors in before.lists().items():
        assert_same_bits(layers.lists()[name], tensors, name)
