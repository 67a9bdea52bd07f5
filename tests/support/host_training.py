"""What the tests of hosts share: a small network, its optimizers and schedule, the training by hand, and what is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from support.digits_batches import loss, mlp
from torch import Tensor, nn

import dstee
from dstee.experiments.checkpoint import digest

Batch = tuple[Tensor, Tensor]
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2),
}


def sparse_sgd(model: nn.Module, sparse: dstee.SparseModel) -> torch.optim.Optimizer:
    return dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9, weight_decay=1e-3)


METHODS = {
    "DST-EE replacing": dstee.DSTEE(c=1e-2, order="replace"),
    "RigL": dstee.RigL(),
    "SNFS": dstee.SNFS(),
    "SET": dstee.SET(),
}
"""RigL's updates take the place of steps, SNFS looks at every gradient before the step, SET needs none."""


class Network(nn.Module):
    """Called as models of transformers are. ``model`` is the network: initial masks depend on the names of weights, so hosts'
    modules have it under that name, too."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.half = mlp(), False

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.float16, enabled=self.half):
            scores = self.model(x)
            return {"loss": nn.functional.cross_entropy(scores, labels), "scores": scores}


def settings(every: int = 3, **more: Any) -> dict[str, Any]:
    """Of ``dstee.sparsify``: DST-EE, whose counters and bonus depend on all that happened before."""
    schedule = dstee.UpdateSchedule(every=every, stop=100)
    method = dstee.DSTEE(c=1e-2)
    return {"sparsity": 0.8, "method": method, "schedule": schedule, "seed": 1, "track_exploration": True, **more}


def by_hand(
    batches: Iterable[Batch],
    optimizer: str = "AdamW",
    accumulate: int = 1,
    clip: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    half: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Plain PyTorch: what every host must come to, bit for bit. ``half``: forward in float16; ``more``: :func:`settings`."""
    network = Network()
    sparse = dstee.sparsify(network, **settings(**more))
    opt = OPTIMIZERS[optimizer](network) if optimizer in OPTIMIZERS else sparse_sgd(network, sparse)
    opt.zero_grad()
    for i, batch in enumerate(batches, 1):
        with torch.autocast("cpu", torch.float16, enabled=half):
            value = loss(network.model, batch) / accumulate
        (value if scaler is None else scaler.scale(value)).backward()
        if i % accumulate:
            continue
        if scaler is not None:
            scaler.unscale_(opt)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        sparse.step(opt, scaler=scaler)
        if scaler is not None:
            scaler.update()
        opt.zero_grad()
    return outcome(sparse, opt)


def outcome(sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that a training leaves: digests of masks and counters, of weights, of the optimizer's state; steps and updates."""
    counters = {name: sparse.counter(name) for name in sparse.layers}
    params = list(sparse.model.parameters())
    return {
        "masks": digest({"masks": sparse.masks(), "counters": counters}),
        "weights": digest([p.detach() for p in params]),
        "optimizer": digest([dict(sorted(optimizer.state[p].items())) for p in params]),
        "progress": (sparse.t, sparse.round),
    }


def assert_masked(sparse: dstee.SparseModel) -> None:
    """Weights outside the masks are 0, and as many are active as at the start."""
    for name, layer in sparse.layers.items():
        mask = sparse.mask(name)
        assert int(mask.sum()) == sparse.budget[name]
        assert not bool(layer.param.detach()[~mask].any())
