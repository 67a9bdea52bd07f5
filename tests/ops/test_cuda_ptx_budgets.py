"""The ops that move budgets, as nvcc compiled them, against the oracle: the cases of test_budgets.py and test_shards.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import test_budgets
import test_shards
from cuda_ptx import backend
from cuda_ptx.backend import PtxConfiguration

pytestmark = [
    pytest.mark.cuda_ptx,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(bool(backend.why_not()), reason=backend.why_not() or "there is nvcc"),
]


@pytest.mark.parametrize("start", range(0, 126, 42))
def test_uneven_updates(start: int) -> None:
    for seed in range(start, start + 42, 2):
        with PtxConfiguration(seed=seed, processors=seed % 4, list_share=(1.0, 0.05)[seed % 3 == 0]).active():
            test_budgets.check_update(seed)


@pytest.mark.parametrize(
    "check",
    [
        test_budgets.test_global_keep_matches_the_oracle,
        test_budgets.test_growth_scale_matches_the_oracle,
        test_budgets.test_key_histograms_match_the_oracle,
        test_shards.test_parts_update_as_the_whole,
    ],
    ids=lambda check: check.__name__.removeprefix("test_"),
)
def test_other_ops(check: Callable[[PtxConfiguration, int], None]) -> None:
    configuration = PtxConfiguration(seed=1)
    with configuration.active():
        check(configuration, 20)


@pytest.mark.parametrize("check", [test_budgets.test_count_below_matches_counting, test_budgets.test_noise_is_a_hash])
def test_simple_ops(check: Callable[[PtxConfiguration], None]) -> None:
    configuration = PtxConfiguration(seed=2)
    with configuration.active():
        check(configuration)
