"""Layers in parts, by each backend: its histograms, added up, say how much each part drops and grows."""

from __future__ import annotations

import pytest
from support import cut_cases

from dstee.testing import Configuration


@pytest.mark.op("key_histogram")
@pytest.mark.parametrize("first", range(0, 120, 20))
def test_parts_update_as_the_whole(backend: Configuration, first: int) -> None:
    for seed in range(first, first + 20):
        cut_cases.check(seed, tiny=True)
