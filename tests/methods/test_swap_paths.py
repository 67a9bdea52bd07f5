"""A swap gives the same bits in the optimizer's step, after it, and as an action among others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.small_models import EVERY_STEP, differing, mlp, set_gradients, snapshot

import dstee
from dstee.methods import DSTEE, SET, Action, Method, RigL, SetDensity, Step, Update

OPTIMIZERS = {
    "fused": lambda params, sparse: dstee.SparseSGD(params, sparse, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "fused, no momentum": lambda params, sparse: dstee.SparseSGD(params, sparse, lr=0.1),
    "SGD": lambda params, sparse: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "AdamW": lambda params, sparse: torch.optim.AdamW(params, lr=0.01, amsgrad=True),
    "Adagrad": lambda params, sparse: torch.optim.Adagrad(params, lr=0.01, initial_accumulator_value=0.5),
}


def watching(kind: type[Method], **settings: Any) -> Method:
    """The method with a hook that does nothing, between the step and the swap."""

    class Watching(kind):  # type: ignore[misc, valid-type]
        def after_step(self, c: Step) -> None: ...

    return Watching(**settings)


def among_others(kind: type[Method], **settings: Any) -> Method:
    """The method with a second action that changes nothing."""

    class AmongOthers(kind):  # type: ignore[misc, valid-type]
        def plan(self, u: Update) -> Sequence[Action]:
            return [*super().plan(u), SetDensity({})]

    return AmongOthers(**settings)


@pytest.mark.parametrize("other", [watching, among_others])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "kind, settings",
    [
        (DSTEE, {"c": 0.05}),
        (DSTEE, {"c_rel": 0.3, "reset_regrown": True}),
        (RigL, {}),
        (RigL, {"order": "after", "regrow": False}),
        (SET, {"reset_regrown": True}),
    ],
)
def test_same_bits(kind: type[Method], settings: dict[str, Any], optimizer: str, other: Any) -> None:
    found = []
    for method in (kind(**settings), other(kind, **settings)):
        model = mlp().to(torch.bfloat16 if "c_rel" in settings else torch.float32)
        sparse = dstee.sparsify(model, 0.4, method=method, schedule=EVERY_STEP, track_exploration=True)
        stepper = OPTIMIZERS[optimizer](model.parameters(), sparse)
        for t in range(5):
            set_gradients(model, t)
            assert sparse.step(stepper)
        found.append(snapshot(sparse, stepper))
    assert differing(*found) == []
