"""A layer in parts: sums of histograms say how much each part drops and grows, and the parts' updates are that of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import shards

from dstee.encoding import bonus_table
from dstee.ops import growth_scale
from dstee.testing import FAMILIES, Case, Configuration, assert_same_bits, make_case, values

SIGNALS = ("gradient", "signal", "bonus", "scaled bonus", "seeds")
TYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)


def adversarial(seed: int) -> tuple[Case, list[int], int, bool]:
    """A tiny case of ties, special values and full or empty masks, the columns of its layers, and how it is cut."""
    rng = np.random.default_rng(seed)
    columns = [int(rng.integers(1, 12)) for _ in range(2)]
    sizes = [c * int(rng.integers(1, 12)) for c in columns]
    growth, round = str(rng.choice(SIGNALS)), int(rng.choice([0, 1, 5, 300]))
    case = make_case(
        seed, sizes, family=str(rng.choice(FAMILIES)), dtype=TYPES[int(rng.integers(0, 4))], round=round,
        density=float(rng.choice([0, 0.02, 0.1, 0.5, 0.9, 1])), swap=float(rng.choice([0, 0.1, 0.3, 0.5, 1])),
        counted="bonus" in growth, regrow=bool(rng.random() < 0.6), reset_regrown=bool(rng.random() < 0.3),
    )  # fmt: skip
    if growth == "seeds":
        case.options["grow_seeds"] = [int(x) for x in rng.integers(-(2**63), 2**63 - 1, 2)]
    if growth == "signal":
        case.options["grow_signal"] = [values("few_valued", n, rng) for n in sizes]
    if rng.random() < 0.2:
        case.options["drop_scores"] = [values("few_valued", n, rng) for n in sizes]
    if growth == "scaled bonus":
        assert case.grads is not None
        case.bonus = bonus_table(0.1, 1.0, 500, round, dtype=torch.float64)
        case.options["bonus_scale"] = growth_scale(case.grads, case.mask_bits, case.k, round)
    return case, columns, int(rng.choice([1, 2, 3, 8])), bool(rng.integers(0, 2))


def check(seed: int) -> None:
    case, columns, ranks, by_rows = adversarial(seed)
    got = shards.update(case, columns, ranks, by_rows)
    case.drop_grow_()
    for rank, (part, expected) in enumerate(zip(got, shards.cut(case, columns, ranks, by_rows), strict=True)):
        for name in ("params", "momenta", "mask_bits", "counts"):
            what = f"{name} of part {rank} of {ranks}, {case.description}"
            assert_same_bits(getattr(part.case, name), getattr(expected.case, name), what)


@pytest.mark.op("key_histogram")
@pytest.mark.parametrize("first", range(0, 120, 20))
def test_parts_update_as_the_whole(backend: Configuration, first: int) -> None:
    for seed in range(first, first + 20):
        check(seed)


@pytest.mark.slow
def test_a_thousand_more() -> None:
    for seed in range(1000, 2000):
        check(seed)
