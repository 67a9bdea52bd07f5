"""Tiny trainings that :mod:`dstee.testing.method_check` runs a method through, and what is looked at after each step."""

from __future__ import annotations

import contextlib
import io
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dstee.methods import Method
from dstee.optim import SparseSGD
from dstee.schedule import UpdateSchedule
from dstee.sparsification import sparsify

__all__ = ["CLASSES", "FEATURES", "NETWORKS", "Batches", "Network", "Snapshot", "Training", "chain", "random_batches"]

FEATURES, CLASSES = 48, 4
SPARSITY = 0.7

Batches = Sequence[tuple[Tensor, Tensor]]
Snapshot = dict[str, Tensor]


def random_batches(seed: int = 0, number: int = 4, rows: int = 16) -> Batches:
    """Inputs [rows, FEATURES] with the sign of their first features as targets [rows]."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(rows, FEATURES, generator=generator) for _ in range(number)]
    return [(x, (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0)) for x in inputs]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, CLASSES))


def conv() -> nn.Module:
    first = nn.Sequential(nn.Unflatten(1, (3, 4, 4)), nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 2, stride=2))
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(20, CLASSES))


def chain(layers: int) -> nn.Module:
    """``layers`` linear ones."""
    widths = [FEATURES, *[12] * (layers - 1)]
    between = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*between, nn.Linear(widths[-1], CLASSES))


@dataclass(frozen=True)
class Network:
    """A model, who steps it, and the layer that is frozen once it is sparse."""

    name: str
    make: Callable[[], nn.Module]
    adam: bool = False
    frozen: str | None = None


NETWORKS = (
    Network("an MLP with SparseSGD", mlp),
    Network("an MLP with torch.optim.Adam and its layer 2 frozen", mlp, adam=True, frozen="2.weight"),
    Network("a convolutional network with SparseSGD and its first layer frozen", conv, frozen="0.1.weight"),
    Network("a convolutional network with torch.optim.Adam", conv, adam=True),
)


class Training:
    """``method`` on ``network``: model, masks and optimizer, at a step."""

    def __init__(self, network: Network, method: Method, schedule: UpdateSchedule, batches: Batches, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.network, self.batches = network, batches
        self.model = network.make()
        first = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        with same_global_generators("start"):
            self.sparse = sparsify(
                self.model, SPARSITY, method=method, schedule=schedule, seed=seed,
                batches=batches if method.needs_batches else None,
            )  # fmt: skip
        for name, p in self.model.named_parameters():
            expected = first[name] * self.sparse.mask(name) if name in self.sparse.layers else first[name]
            if not torch.equal(p.detach(), expected):
                raise AssertionError(f"start() changed {name}: it chooses masks, weights stay what they were")
        for name, p in self.model.named_parameters():
            p.requires_grad_(name != network.frozen)
        every = list(self.model.parameters())  # the frozen layer, too: an optimizer may hold one
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(every, lr=0.01) if network.adam else SparseSGD(every, self.sparse, lr=0.1, momentum=0.9)
        )
        self.first_nnz = {name: layer.nnz for name, layer in self.sparse.layers.items()}
        self.free = {name for name, layer in self.sparse.layers.items() if layer.param.requires_grad}

    def step(self) -> None:
        """One step, with the update that is due."""
        inputs, targets = self.batches[self.sparse.t % len(self.batches)]
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(inputs), targets).backward()
        with same_global_generators("a hook or plan"):
            self.sparse.step(self.optimizer)

    def snapshot(self) -> Snapshot:
        """Everything that decides how the training goes on, copied."""
        found: Snapshot = {f"mask of {name}": self.sparse.mask(name).clone() for name in self.sparse.layers}
        for name, layer in self.sparse.layers.items():
            if layer.counts is not None:
                found[f"counter of {name}"] = self.sparse.counter(name).clone()
            found |= {f"kept {key!r} of {name}": x.clone() for key, x in layer.state.items()}
        numbers = self.sparse.state_dict(full=True).get("numbers", {})
        found |= {f"number {key!r}": torch.tensor(x, dtype=torch.float64) for key, x in numbers.items()}
        for name, p in self.model.named_parameters():
            found[f"parameter {name}"] = p.detach().clone()
            state = self.optimizer.state.get(p, {})
            found |= {f"{key} of {name}": x.clone() for key, x in state.items() if isinstance(x, Tensor)}
        return found | {"round": torch.tensor(self.sparse.round)}

    def resumed(self) -> Training:
        """Another training that starts from this one's state, by way of a file, in a model that held something else."""
        file = io.BytesIO()
        torch.save([self.model.state_dict(), self.sparse.state_dict(), self.optimizer.state_dict()], file)
        file.seek(0)
        model, sparse, optimizer = torch.load(file, weights_only=True)
        other = Training(self.network, self.sparse.method, self.sparse.schedule, self.batches, seed=7)
        other.model.load_state_dict(model)
        other.sparse.load_state_dict(sparse, strict=False)  # budgets may have moved
        other.optimizer.load_state_dict(optimizer)
        other.first_nnz = self.first_nnz
        return other

    def check(self) -> None:
        """Raises AssertionError where masks, numbers, weights or the optimizer's state are not as they must be."""
        method, t = self.sparse.method, self.sparse.t
        for name, layer in self.sparse.layers.items():
            mask = self.sparse.mask(name)
            active = int(mask.sum())
            assert active == layer.nnz, f"{name} has {active} active weights, but counts {layer.nnz}"
            if not method.moves_budgets or name not in self.free:
                first = self.first_nnz[name]
                assert active == first, f"{name} has {active} active weights after step {t}, {first} at the start"
            assert not layer.param.detach()[~mask].any(), (
                f"weights of {name} outside the mask are not 0 after step {t}: {method.name} has written there, in before_step "
                "or in a function inside an action. Write to active weights alone, w.add_(torch.where(mask, x, 0)) with the "
                "masks of c.masks()"
            )
            for key, value in self.optimizer.state.get(layer.param, {}).items():
                if isinstance(value, Tensor) and value.shape == layer.param.shape:
                    assert not value[~mask].any(), f"{key} of {name} outside the mask is not 0 after step {t}"
        last = self.sparse.schedule.last_update
        if (method.needs_stop or method.starts_denser) and last and t >= last:
            total = sum(self.sparse.layers[name].nnz for name in self.free)
            target = sum(self.sparse.budget[name] for name in self.free)
            assert total == target, (
                f"{total} weights are active after step {t}, and updates end with step {last}, but the sparsity asks for "
                f"{target}: the update at u.progress == 1 must leave u.target"
            )


def _global_generators() -> dict[str, object]:
    _, keys, *rest = np.random.get_state()
    return {
        "torch's": torch.get_rng_state().numpy().tobytes(),
        "numpy's": (np.asarray(keys).tobytes(), rest),
        "Python's": random.getstate(),
    }


@contextlib.contextmanager
def same_global_generators(who: str) -> Iterator[None]:
    """Raises AssertionError where the random state of torch, numpy or Python has moved inside."""
    before = _global_generators()
    yield
    for name, state in _global_generators().items():
        if state != before[name]:
            raise AssertionError(
                f"{who} draws from {name} global generator, so masks depend on whatever else does: grow with Random(), or hash "
                "with dstee.ops.hashed_noise and the seeds of c.seeds(tag)"
            )
