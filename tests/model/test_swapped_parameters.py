"""Training goes on when torch swaps what parameters hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.small_models import EVERY_STEP, convnet, differing, set_gradients, snapshot

import dstee


@pytest.fixture
def swapped_parameters() -> Iterator[None]:
    """``Module.to`` swaps all parameters and gradients, as it does with those of tensor subclasses anyway."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


def test_moving_a_model_whose_parameters_are_swapped(swapped_parameters: None) -> None:
    results = []
    for moved in (False, True):
        model = convnet()
        sparse = dstee.sparsify(model, 0.6, schedule=EVERY_STEP)
        optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.25, momentum=0.5)
        for t in range(4):
            set_gradients(model, t)
            sparse.step(optimizer)
            if moved:
                model.to("cpu", memory_format=torch.channels_last)
        results.append(snapshot(sparse, optimizer))
    assert not differing(*results)
    with pytest.raises(ValueError, match=r"0\.weight is sparse already"):
        dstee.sparsify(model, 0.6)
