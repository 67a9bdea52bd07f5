"""Proposition 2 of the DST-EE paper: the mean squared gradient over Q rounds, beside the rate 1/sqrt(Q) of (5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dstee.experiments.theory.problems import Problem, Quadratic, minimum
from dstee.experiments.theory.rounds import Round, learning_rates

__all__ = ["Means", "bound_constant", "limit_of_static", "mean_of_static", "mean_squares"]


@dataclass(frozen=True)
class Means:
    """Over Q rounds and the draws of the noise, for each seed: float64 [S]."""

    full: Tensor
    """Of |grad F(W^[q] * M^[q])|^2, the left side of (5)."""
    masked: Tensor
    """Of |grad F(W^[q] * M^[q]) * M^[q]|^2."""
    tau_term: Tensor
    """tau^2 times the mean of |W^[q]|^2, with tau^2 the largest of all rounds and draws: the second term of (5)."""


def mean_squares(problem: Problem, rounds: Iterable[Round]) -> Means:
    count = 0
    full = masked = weights = tau2 = torch.zeros(len(problem.start), dtype=torch.float64)
    for one in rounds:
        gradient = problem.gradient(one.masked)
        full = full + gradient.square().sum(-1).mean(1)
        masked = masked + (gradient * one.mask).square().sum(-1).mean(1)
        size, dropped = one.before.square().sum(-1), (one.masked - one.before).square().sum(-1)
        weights = weights + size.mean(1)
        tau2 = torch.maximum(tau2, torch.where(size > 0, dropped / size, 0.0).amax(1))
        count += 1
    return Means(full / count, masked / count, tau2 * weights / count)


def bound_constant(problem: Problem, masks: Tensor, sigma: float) -> Tensor:
    """G [S] of (5): what (4), summed over Q rounds with alpha = 1/(16 L dT sqrt(Q)), gives where tau is 0.

    mean |grad F|^2 <= 12 (F(W^[1]) - min F) / (alpha dT Q) + 6 alpha L sigma^2 dT = G / sqrt(Q).
    """
    start = problem.loss((problem.start.double() * masks)[:, None])[:, 0]
    least = problem.loss(minimum(problem, torch.ones_like(masks))[:, None])[:, 0]
    return 192 * problem.smoothness * (start - least) + 6 / 16 * sigma**2


def limit_of_static(problem: Problem, masks: Tensor) -> Tensor:
    """|grad F|^2 [S] at the least F within the masks, where masked descent along the gradient of F ends: the mean over Q
    rounds tends to it as Q alpha grows, and the masked gradient to 0."""
    return problem.gradient(minimum(problem, masks)[:, None])[:, 0].square().sum(-1)


def mean_of_static(problem: Quadratic, masks: Tensor, every: int, count: int) -> tuple[Tensor, Tensor]:
    """``full`` and ``masked`` of :class:`Means` for a static mask and the gradient of F, in closed form: more rounds than
    anybody can step.

    Within the mask the distance to the minimum shrinks by r = (1 - alpha lambda)^dT a round along each eigenvector of the
    Hessian there, so all means are geometric sums.
    """
    full, masked = torch.empty_like(problem.smoothness), torch.empty_like(problem.smoothness)
    end = minimum(problem, masks)
    end_gradient = problem.gradient(end[:, None])[:, 0]
    lr = learning_rates(problem, every, count)
    for i, active in enumerate(masks):
        hessian = problem.hessian(i, end[i])
        values, vectors = torch.linalg.eigh(hessian[active][:, active])
        away = vectors.T @ (problem.start[i].double() - end[i])[active]
        moves = hessian[:, active] @ vectors * away  # the gradient is end_gradient + moves @ r^q
        log = every * torch.log1p(-lr[i] * values)
        linear, square = _mean_power(log, count), _mean_power(log[:, None] + log, count)
        full[i] = end_gradient[i].square().sum() + 2 * (end_gradient[i] @ moves * linear).sum()
        full[i] += (moves.T @ moves * square).sum()
        masked[i] = ((values * away).square() * square.diagonal()).sum()
    return full, masked


def _mean_power(log: Tensor, count: int) -> Tensor:
    """The mean of r^q over q = 0 ... count - 1 for r = exp(log) < 1."""
    return torch.expm1(count * log) / torch.expm1(log) / count
