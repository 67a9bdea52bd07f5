"""drop_grow_ as nvcc compiled it against the reference: layers on both sides of the limit of a small one with all options,
missed bounds, short lists, and large layers that many blocks resolve together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_host.backend import compare
from cuda_ptx import backend
from cuda_ptx.backend import PtxConfiguration
from support import random_cases
from test_cuda_update import NUMBERS, spread

from dstee import ops
from dstee.testing import make_case

pytestmark = [
    pytest.mark.cuda_ptx,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(bool(backend.why_not()), reason=backend.why_not() or "there is nvcc"),
]

RULE = ops.SGDRule(lr=0.05, momentum=0.9, weight_decay=5e-4)
LIMITS: list[dict[str, Any]] = [{}, {}, {}, dict(tight_bounds=True), {}, {}, dict(list_share=0.02), dict(list_share=0.3)]
LARGE: list[dict[str, Any]] = [
    dict(sizes=[300_001], family="few_valued", dtype=torch.bfloat16, sgd=RULE),
    dict(sizes=[16_385, 300_001, 20_000], family="absorbed"),
    dict(sizes=[320_009], family="structured", regrow=False),
]


@pytest.mark.parametrize("number", range(64))
def test_compiled_updates_equal_the_reference(number: int) -> None:
    compare(spread(number), PtxConfiguration(seed=number, processors=number % 4, **LIMITS[number % len(LIMITS)]))


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("lockstep", [False, True])
@pytest.mark.parametrize("start", range(0, len(NUMBERS), 11))
def test_all_cases_of_the_host_tests(start: int, lockstep: bool, arch: int) -> None:
    """Those around the limit of small layers, and mixed ones of several tiles, for both architectures."""
    for number in NUMBERS[start : start + 11]:
        configuration = PtxConfiguration(seed=300 + number, lockstep=lockstep, arch=arch, processors=number % 5)
        compare(spread(number), configuration)
        compare(random_cases.update(31 * number), configuration)


@pytest.mark.parametrize("number", range(len(LARGE)))
def test_compiled_updates_of_shared_layers_equal_the_reference(number: int) -> None:
    options = dict(LARGE[number])
    case = make_case(70 + number, options.pop("sizes"), density=0.3, round=9, **options)
    compare(case, PtxConfiguration(seed=number, processors=10))
