"""Rounds of training as the propositions speak of them, made by the engine: a mask update, then ``every`` masked SGD steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dstee
from dstee.experiments.theory.problems import Problem
from dstee.methods import Method

__all__ = ["METHODS", "Gradient", "Round", "first_masks", "learning_rates", "rounds"]

METHODS: tuple[Method, ...] = (dstee.Static(), dstee.SET(), dstee.RigL(order="after"), dstee.DSTEE())
"""All with order="after", so that each round has as many SGD steps as the inequalities count."""

_DROP = 0.3


@dataclass(frozen=True)
class Gradient:
    """The stochastic gradient: that of F and normal noise with E|noise|^2 = sigma^2, of which each seed has ``draws``."""

    sigma: float
    draws: int
    seeds: Sequence[int]

    def generators(self) -> list[torch.Generator]:
        """The same for each method, so that they see the same noise."""
        return [torch.Generator().manual_seed(2**32 + seed) for seed in self.seeds]

    def __call__(self, problem: Problem, weights: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        gradient = problem.gradient(weights)
        if self.sigma == 0:
            return gradient
        shape = weights.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in generators])
        return gradient + self.sigma / shape[-1] ** 0.5 * noise


@dataclass(frozen=True)
class Round:
    """Round q: weights float64 [S, R, d], masks bool [S, R, d]."""

    before: Tensor
    """W^[q], as the round before has left them: 0 outside the mask of that round."""
    mask: Tensor
    """M^[q], which the update at the start of the round has chosen."""
    after: Tensor
    """W^[q+1]."""

    @property
    def masked(self) -> Tensor:
        """W^[q] * M^[q], from which the steps start."""
        return self.before * self.mask


def first_masks(dim: int, density: float, seeds: Sequence[int]) -> Tensor:
    """The random masks with which all methods start: bool [S, d]."""
    masks = []
    for seed in seeds:
        sparse = dstee.sparsify(nn.Linear(dim, 1, bias=False), 1 - density, seed=seed, distribution="uniform")
        masks.append(sparse.mask("weight")[0])
    return torch.stack(masks)


def learning_rates(problem: Problem, every: int, rounds: int = 1) -> Tensor:
    """alpha = 1/(16 L every sqrt(rounds)) for each seed, float64 [S], of values that float32 can hold."""
    return (1 / (16 * problem.smoothness * every * rounds**0.5)).float().double()


def rounds(
    problem: Problem, method: Method, masks: Tensor, lr: Tensor, every: int, count: int, gradient: Gradient
) -> Iterator[Round]:
    """Trains one sparse layer for each seed and draw by ``dstee.SparseSGD`` and the updates of ``method``.

    Weights are float32, as the engine has them; the gradient is computed in float64 from them and rounded once.
    """
    seeds, draws, dim = len(masks), gradient.draws, problem.dim
    layers = [nn.Linear(dim, 1, bias=False) for _ in range(seeds * draws)]
    params = [layer.weight for layer in layers]
    with torch.no_grad():
        for i, p in enumerate(params):
            p.copy_(problem.start[i // draws][None])
    schedule = dstee.UpdateSchedule(every, every * count, dstee.ConstantDrop(_DROP))
    given = {f"{i}.weight": masks[i // draws][None] for i in range(len(params))}
    sparse = dstee.sparsify(nn.ModuleList(layers), masks=given, method=method, schedule=schedule)
    groups: dict[float, list[Tensor]] = {}
    for i, p in enumerate(params):
        groups.setdefault(float(lr[i // draws]), []).append(p)
    optimizer = dstee.SparseSGD([{"params": part, "lr": rate} for rate, part in groups.items()], sparse)
    generators = gradient.generators()

    def weights() -> Tensor:
        return torch.stack([p.detach()[0] for p in params]).double().view(seeds, draws, dim)

    before = weights()
    for _ in range(count):
        mask = torch.stack([m[0] for m in sparse.masks().values()]).view(seeds, draws, dim)
        now = weights()
        after = now
        for _ in range(every):
            rows = gradient(problem, now, generators).float().view(-1, 1, dim)
            for p, row in zip(params, rows, strict=True):
                p.grad = row
            optimizer.step()
            after = weights()
            now = weights() if sparse.update() else after  # an update ends the round: what it drops is the next one's loss
        yield Round(before, mask, after)
        before = after
