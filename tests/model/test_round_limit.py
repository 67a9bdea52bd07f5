"""How many mask updates there may be: counters hold 32,767 rounds, nothing else limits them."""

from __future__ import annotations

import pytest
import torch
from support.small_models import EVERY_STEP, differing, mlp, set_gradients, snapshot

import dstee


@pytest.mark.parametrize("method", [dstee.DSTEE(), dstee.RigL(order="after"), dstee.RigL(), dstee.SET()])
@pytest.mark.parametrize("kind", ["SparseSGD", "AdamW"])
def test_counters_full_is_an_error_before_the_step(method, kind):
    model = mlp()
    sparse = dstee.sparsify(model, 0.6, method=method, schedule=EVERY_STEP, track_exploration=True)
    params = model.parameters()
    optimizer = dstee.SparseSGD(params, sparse) if kind == "SparseSGD" else torch.optim.AdamW(params)
    sparse.set_progress(32_766, 32_766)
    set_gradients(model, 0)
    before = snapshot(sparse, optimizer)
    with pytest.raises(ValueError, match=r"round must be in 0\.\.32765.*update less often"):
        sparse.step(optimizer)
    assert not differing(before, snapshot(sparse, optimizer))


@pytest.mark.parametrize("method", [dstee.RigL(order="after"), dstee.RigL(), dstee.SET()])
def test_without_counters_rounds_have_no_limit(method):
    model = mlp()
    sparse = dstee.sparsify(model, 0.6, method=method, schedule=EVERY_STEP)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
    sparse.set_progress(100_000, 100_000)
    set_gradients(model, 0)
    assert sparse.step(optimizer)
    state = sparse.state_dict()
    again = dstee.sparsify(mlp(), 0.6, method=method, schedule=EVERY_STEP)
    again.load_state_dict(state)
    assert again.round == sparse.round == 100_001
    assert all(torch.equal(again.mask(name), sparse.mask(name)) for name in sparse.layers)


def test_random_growth_follows_the_true_round_beyond_32766():
    masks = []
    for round in (0, 40_000, 40_001):
        model = mlp()
        sparse = dstee.sparsify(model, 0.6, method=dstee.SET(), schedule=EVERY_STEP)
        sparse.set_progress(round, round)
        set_gradients(model, 0)
        sparse.step(dstee.SparseSGD(model.parameters(), sparse, lr=0.1))
        masks.append(sparse.mask("0.weight"))
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])
