"""drop_grow_ where many blocks share a layer's lists, selection and commit: layers of so many chunks that a block reports them
in several turns, and layers that one block completes together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_host import build
from cuda_host.backend import HostConfiguration, compare

from dstee import ops
from dstee.testing import make_case

pytestmark = pytest.mark.skipif(bool(build.why_not()), reason=build.why_not() or "there is a compiler")

RULE = ops.SGDRule(lr=0.05, momentum=0.9, weight_decay=5e-4)
SHARED: dict[str, dict[str, Any]] = {
    "one large": dict(sizes=[300_001], density=0.3),
    "one large, ties": dict(sizes=[300_001], density=0.3, family="few_valued", dtype=torch.bfloat16, sgd=RULE),
    "without regrowth": dict(sizes=[320_009], density=0.3, family="structured", regrow=False),
    "large after small": dict(sizes=[16_385, 300_001, 20_000], density=0.3, sgd=RULE),
    "small after large": dict(sizes=[300_001, 16_385, 16_400, 20_000], density=0.3, family="absorbed", reset_regrown=True),
    "many in a turn": dict(sizes=[16_385] * 24, density=0.3, family="equal"),
}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("processors", [1, 2, pytest.param(10, marks=pytest.mark.long)])
def test_blocks_that_share_layers_give_the_references_bits(name: str, processors: int) -> None:
    """With one processor a grid of select_drop and commit takes several turns over the chunks of 300,000 weights."""
    options = dict(SHARED[name])
    sizes = options.pop("sizes")
    for seed in range(2):
        case = make_case(70 + seed, sizes, round=9, **options)
        compare(case, HostConfiguration(seed=10 * processors + seed, processors=processors), explored=False)
