"""Problems on which every term of the propositions can be computed: a quadratic and a logistic regression, in float64."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["PROBLEMS", "RIDGE", "Logistic", "Problem", "Quadratic", "minimum"]

_NEWTON_STEPS = 100
RIDGE = 0.01


class Problem(ABC):
    """One instance for each seed, S in all, computed together. F is smooth and strictly convex.

    Weights are float64 [S, R, d]: R draws of the gradient noise for each seed.
    """

    name: ClassVar[str]
    smoothness: Tensor
    """L [S]: the largest eigenvalue that the Hessian has anywhere."""
    start: Tensor
    """The dense weights at the start, float32 [S, d]."""

    @property
    def dim(self) -> int:
        return self.start.shape[1]

    @abstractmethod
    def loss(self, weights: Tensor) -> Tensor:
        """F: [S, R]."""

    @abstractmethod
    def gradient(self, weights: Tensor) -> Tensor:
        """The gradient of F: [S, R, d]."""

    @abstractmethod
    def hessian(self, i: int, weights: Tensor) -> Tensor:
        """Of instance ``i`` at weights [d]: [d, d]."""


class Quadratic(Problem):
    """F(w) = (w - w*)' H (w - w*) / 2 for H [S, d, d] and w* [S, d]."""

    name = "quadratic"

    def __init__(self, hessians: Tensor, optima: Tensor, start: Tensor):
        self._hessians, self.optima, self.start = hessians, optima, start
        self.smoothness = torch.linalg.eigvalsh(hessians)[:, -1]

    @classmethod
    def random(cls, seeds: Sequence[int], dim: int, condition: float) -> Quadratic:
        """Eigenvalues uniform on [1/condition, 1] along random directions, scaled to L = 1; w* normal, and a start of a tenth
        of its size."""
        found = []
        for seed in seeds:
            g = torch.Generator().manual_seed(seed)
            root = _covariance_root(dim, condition, g)
            hessian = root @ root.T
            found.append((hessian / torch.linalg.eigvalsh(hessian)[-1], _normal(g, dim), (0.1 * _normal(g, dim)).float()))
        return cls(*(torch.stack(part) for part in zip(*found, strict=True)))

    def loss(self, weights: Tensor) -> Tensor:
        return (self.gradient(weights) * (weights - self.optima[:, None])).sum(-1) / 2

    def gradient(self, weights: Tensor) -> Tensor:
        return (weights - self.optima[:, None]) @ self._hessians  # symmetric

    def hessian(self, i: int, weights: Tensor) -> Tensor:
        return self._hessians[i]


class Logistic(Problem):
    """F(w) = mean of ln(1 + exp(-y x'w)) + ridge |w|^2 / 2 for samples x [S, n, d] and labels y of -1 and 1 [S, n]."""

    name = "logistic"

    def __init__(self, samples: Tensor, labels: Tensor, start: Tensor):
        self._samples, self._labels, self.start = samples, labels, start
        second = samples.mT @ samples / samples.shape[1]
        self.smoothness = torch.linalg.eigvalsh(second)[:, -1] / 4 + RIDGE  # p (1 - p) <= 1/4, with equality at w = 0

    @classmethod
    def random(cls, seeds: Sequence[int], dim: int, condition: float) -> Logistic:
        """4 d normal samples whose covariance has eigenvalues uniform on [1/condition, 1], scaled to L = 1; labels drawn by a
        logistic model whose logits have standard deviation 2; a start of normal weights of deviation 0.1."""
        found = []
        for seed in seeds:
            g = torch.Generator().manual_seed(seed)
            samples = _normal(g, 4 * dim, dim) @ _covariance_root(dim, condition, g).T
            samples *= (4 * (1 - RIDGE) / torch.linalg.eigvalsh(samples.T @ samples / len(samples))[-1]).sqrt()
            logits = samples @ _normal(g, dim)
            logits *= 2 / logits.std()
            uniform = torch.rand(4 * dim, generator=g, dtype=torch.float64)
            labels = torch.where(uniform < torch.sigmoid(logits), 1.0, -1.0).double()
            found.append((samples, labels, (0.1 * _normal(g, dim)).float()))
        return cls(*(torch.stack(part) for part in zip(*found, strict=True)))

    def loss(self, weights: Tensor) -> Tensor:
        return -logsigmoid(self._margins(weights)).mean(-1) + RIDGE / 2 * weights.square().sum(-1)

    def gradient(self, weights: Tensor) -> Tensor:
        pull = torch.sigmoid(-self._margins(weights)) * self._labels[:, None]
        return RIDGE * weights - pull @ self._samples / self._samples.shape[1]

    def hessian(self, i: int, weights: Tensor) -> Tensor:
        x = self._samples[i]
        p = torch.sigmoid(x @ weights)
        return (x.T * (p * (1 - p))) @ x / len(x) + RIDGE * torch.eye(self.dim, dtype=torch.float64)

    def _margins(self, weights: Tensor) -> Tensor:
        return (weights @ self._samples.mT) * self._labels[:, None]


PROBLEMS: dict[str, type[Quadratic] | type[Logistic]] = {"quadratic": Quadratic, "logistic": Logistic}


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _covariance_root(dim: int, condition: float, g: torch.Generator) -> Tensor:
    """A [d, d] such that A A' has eigenvalues uniform on [1/condition, 1] along random directions."""
    directions, _ = torch.linalg.qr(_normal(g, dim, dim))
    eigenvalues = 1 / condition + (1 - 1 / condition) * torch.rand(dim, generator=g, dtype=torch.float64)
    return directions * eigenvalues.sqrt()


def minimum(problem: Problem, masks: Tensor) -> Tensor:
    """The weights [S, d] of the least F that are 0 outside masks, bool [S, d]; there is one for each seed, F being strictly
    convex. Newton's method with halved steps."""
    found = torch.zeros(masks.shape, dtype=torch.float64)
    for _ in range(_NEWTON_STEPS):
        gradient = problem.gradient(found[:, None])[:, 0] * masks
        if bool((gradient.norm(dim=1) <= 1e-12 * problem.smoothness * math.sqrt(problem.dim)).all()):
            return found
        direction = torch.zeros_like(found)
        for i, active in enumerate(masks):
            part = problem.hessian(i, found[i])[active][:, active]
            direction[i, active] = torch.linalg.solve(part, gradient[i, active])
        size = torch.ones(len(masks), 1, dtype=torch.float64)
        before = problem.loss(found[:, None])[:, 0]
        for _ in range(40):  # below that the difference is rounding
            worse = problem.loss((found - size * direction)[:, None])[:, 0] > before + 1e-14 * before.abs()
            if not bool(worse.any()):
                break
            size[worse] /= 2
        found = found - size * direction
    raise RuntimeError(f"Newton's method did not find the minimum of the {problem.name} in {_NEWTON_STEPS} steps")
