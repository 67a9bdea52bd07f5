"""Dynamic methods on a few layers, by definition: lists of Python numbers are sorted, layers one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from support.allocation_oracle import by_fractions
from torch import Tensor

import dstee
from dstee import ops
from dstee.methods import growth_seeds
from dstee.rules import random_signal

Key = Callable[[int, int], float]  # (layer, index) -> what is ranked


class Plain:
    """A training with SGD and momentum, without weight decay, on given gradients; ``update`` is the method's."""

    def __init__(self, sparse: dstee.SparseModel, momentum: float) -> None:
        self.names, self.momentum, self.schedule, self.method = list(sparse.layers), momentum, sparse.schedule, sparse.method
        self.seed, self.t, self.round, self.lr = sparse.seed, 0, 0, 0.0
        self.budget = [layer.nnz for layer in sparse.layers.values()]
        self.w = [layer.param.detach().flatten().clone() for layer in sparse.layers.values()]
        self.active = [sparse.mask(name).flatten().tolist() for name in self.names]
        self.m = [torch.zeros_like(w) for w in self.w]
        self.g = self.m

    @property
    def nnz(self) -> list[int]:
        return [sum(active) for active in self.active]

    @property
    def sizes(self) -> list[int]:
        return [len(active) for active in self.active]

    def is_due(self) -> bool:
        return self.schedule.is_due(self.t)

    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        self.t, self.lr, self.g = self.t + 1, lr, [g.flatten().clone() for g in gradients]
        for i, g in enumerate(self.g):
            self.m[i] = self.m[i] * self.momentum + g
            self.w[i] = self.w[i] - self.m[i] * lr
            self.clear(i, [j for j, active in enumerate(self.active[i]) if not active])
        self.after()
        if self.is_due():
            self.update()
            self.round += 1

    def clear(self, i: int, indices: list[int]) -> None:
        self.w[i][indices] = 0.0
        self.m[i][indices] = 0.0

    def after(self) -> None:
        pass

    def update(self) -> None:
        raise NotImplementedError

    def random(self) -> Key:
        seeds = growth_seeds(self.seed, self.names, self.round)
        numbers = [random_signal(seed, n, torch.device("cpu")).tolist() for seed, n in zip(seeds, self.sizes, strict=True)]
        return lambda i, j: numbers[i][j]

    def swap(
        self,
        drop: list[int],
        grow: list[int],
        grow_by: Key,
        drop_by: Key | None = None,
        regrow: bool = True,
        reset: bool = False,
    ) -> None:
        rank: Key = drop_by or (lambda i, j: abs(float(self.w[i][j])))
        for i, active in enumerate(self.active):
            dropped = sorted((j for j in range(len(active)) if active[j]), key=lambda j: (rank(i, j), j))[: drop[i]]
            free = [j for j in range(len(active)) if not active[j]] + (dropped if regrow else [])
            grown = sorted(free, key=lambda j: (-grow_by(i, j), j))[: grow[i]]
            assert len(dropped) == drop[i] and len(grown) == grow[i]
            self.clear(i, [j for j in dropped if reset or j not in grown])
            for j in dropped:
                active[j] = False
            for j in grown:
                active[j] = True


class PlainSNFS(Plain):
    def __init__(self, sparse: dstee.SparseModel, momentum: float) -> None:
        super().__init__(sparse, momentum)
        self.average = [torch.zeros_like(w) for w in self.w]

    def after(self) -> None:
        self.average = [m * self.method.beta + g for m, g in zip(self.average, self.g, strict=True)]

    def update(self) -> None:
        sizes = [[abs(Fraction(x)) for x in m.tolist()] for m in self.average]
        shares = [
            sum(x for x, on in zip(*pair, strict=True) if on) / n for *pair, n in zip(sizes, self.active, self.nnz, strict=True)
        ]
        rate, mean, drop = self.schedule.fraction(self.t), sum(shares) / len(shares), []
        for share, nnz, n in zip(shares, self.nnz, self.sizes, strict=True):
            limited = nnz / n > 0.8 and share > mean
            drop.append(math.ceil(nnz * (min(rate, (n - nnz) / n) if limited else rate)))
        room = [n - nnz + k for n, nnz, k in zip(self.sizes, self.nnz, drop, strict=True)]
        self.swap(drop, by_fractions(sum(drop), shares, room), lambda i, j: float(sizes[i][j]))


class PlainDSR(Plain):
    def __init__(self, sparse: dstee.SparseModel, momentum: float) -> None:
        super().__init__(sparse, momentum)
        self.threshold = self.method.threshold

    def update(self) -> None:
        found = [int((w.abs() < self.threshold).sum()) - (len(w) - nnz) for w, nnz in zip(self.w, self.nnz, strict=True)]
        free = [n - nnz for n, nnz in zip(self.sizes, self.nnz, strict=True)]
        drop = found if sum(found) <= sum(free) else by_fractions(sum(free), found, found)
        kept = [nnz - k for nnz, k in zip(self.nnz, drop, strict=True)]
        self.swap(drop, by_fractions(sum(drop), kept, free), self.random(), regrow=False)
        wanted = self.method.share * sum(self.nnz)
        self.threshold *= 2 if sum(found) < 0.9 * wanted else 0.5 if sum(found) > 1.1 * wanted else 1


class PlainDeepR(Plain):
    """In the paper's terms: w = sign * theta."""

    def __init__(self, sparse: dstee.SparseModel, momentum: float) -> None:
        super().__init__(sparse, momentum)
        self.sign: list[Tensor] = []
        for i, seed in enumerate(growth_seeds(self.seed, self.names, 0, "sign")):
            random = ops.hashed_noise(len(self.w[i]), seed, 0)
            of = torch.where(torch.tensor(self.active[i]), self.w[i], random)  # after the first step
            self.sign.append(torch.where(of < 0, -1.0, 1.0))
        self.new: list[list[int]] = [[] for _ in self.w]

    def is_due(self) -> bool:
        return self.schedule.stop is None or self.t < self.schedule.stop

    def after(self) -> None:
        if not self.is_due():
            return
        for i, seed in enumerate(growth_seeds(self.seed, self.names, self.round, "noise")):
            if self.t == 1:  # the sign is looked at after the first step
                on = torch.tensor(self.active[i])
                self.sign[i] = torch.where(on, torch.where(self.w[i] < 0, -1.0, 1.0), self.sign[i])
            change = (ops.hashed_noise(len(self.w[i]), seed, self.t) * (self.method.noise * 3**0.5) - self.method.l1) * self.lr
            change[self.new[i]] += 1e-12
            theta = self.sign[i] * self.w[i] + change
            self.w[i] = torch.where(torch.tensor(self.active[i]), self.sign[i] * theta, 0.0)

    def update(self) -> None:
        connected = [(sign * w > 0).tolist() for sign, w in zip(self.sign, self.w, strict=True)]
        crossed = [nnz - sum(row) for nnz, row in zip(self.nnz, connected, strict=True)]
        self.swap(crossed, crossed, self.random(), lambda i, j: connected[i][j], reset=True)
        self.new = [[j for j, on in enumerate(self.active[i]) if on and not row[j]] for i, row in enumerate(connected)]


class PlainMEST(Plain):
    def update(self) -> None:
        last = (self.schedule.stop - 1) // self.schedule.every * self.schedule.every
        share = self.method.exchange * (0 if self.t == last else 0.5 if self.t / last >= self.method.halve_at else 1)
        moved = [0 if b == n else min(math.ceil(share * b), n) for b, n in zip(self.budget, self.sizes, strict=True)]
        low = [b - (0 if self.method.soft else k) for b, k in zip(self.budget, moved, strict=True)]
        high = [min(b + (k if self.method.soft else 0), n) for b, k, n in zip(self.budget, moved, self.sizes, strict=True)]
        worth = [w.abs() + g.abs() * self.method.lam for w, g in zip(self.w, self.g, strict=True)]
        self.swap(
            [nnz - k for nnz, k in zip(self.nnz, low, strict=True)], [a - b for a, b in zip(high, low, strict=True)],
            self.random(), lambda i, j: float(worth[i][j]), reset=True,
        )  # fmt: skip
