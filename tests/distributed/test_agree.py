"""Parts of an update that simulated ranks agree on: what one process does alone, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from support import cut_cases


def check(seed: int) -> None:
    case, shapes = cut_cases.adversarial(seed)
    rng = np.random.default_rng([seed, 1])
    ranks, replicas = int(rng.choice([1, 2, 3, 4, 8])), int(rng.choice([1, 1, 1, 2]))
    where = cut_cases.cut_layers(shapes, ranks, rng) * replicas
    got = cut_cases.update(case, where, replicas)
    case.drop_grow_()
    cut_cases.assert_same_parts(got, case, where)


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_ranks_update_as_one(first: int) -> None:
    for seed in range(first, first + 50):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 3000, 200))
def test_two_thousand_more(first: int) -> None:
    for seed in range(first, first + 200):
        check(seed)
