"""Proposition 1 of the DST-EE paper: in which rounds inequality (4) is violated, in the form as printed and in others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dstee.experiments.theory.problems import Problem
from dstee.experiments.theory.rounds import Round

__all__ = ["FORMS", "Form", "Terms", "Violations", "measure", "violations"]


class Form(NamedTuple):
    """A form of inequality (4), E F(W^[q+1]) <= E F(W^[q]) - a E|g|^2 + noise + error, with a = alpha dT / 12."""

    text: str
    gradient: str
    error: str


FORMS = {
    "printed": Form("as printed", "full", "tau_each"),
    "one_tau": Form("as printed, tau^2 the largest of all rounds", "full", "tau_all"),
    "masked_gradient": Form("the gradient masked", "masked", "tau_each"),
    "corrected": Form("the gradient masked, the drop loss instead of the tau term", "kept", "drop_loss"),
}
"""``full``: g = grad F(W^[q]). ``masked``: the same times M^[q]. ``kept``: grad F(W^[q] * M^[q]) * M^[q]. ``tau_each`` takes as
tau^2 what the update of the round incurred, the least that Assumption 3 allows; ``tau_all`` the largest of all rounds, the
one constant of the assumption. ``drop_loss``: max(F(W^[q] * M^[q]) - F(W^[q]), 0)."""


@dataclass(frozen=True)
class Terms:
    """What the inequality is made of, in each round: float64 [Q, S, R], for each seed S and draw R of the noise."""

    change: Tensor
    """F(W^[q+1]) - F(W^[q])."""
    full: Tensor
    masked: Tensor
    kept: Tensor
    """alpha dT / 12 times the squared norm of the three gradients of :data:`FORMS`."""
    noise: Tensor
    """alpha^2 L sigma^2 dT^2 / 2."""
    tau2: Tensor
    """|W * M - W|^2 / |W|^2: the mask-incurred error of Assumption 3."""
    tau_factor: Tensor
    """2 alpha L^2 dT^2 / 3 |W|^2, by which tau^2 is multiplied."""
    drop_loss: Tensor
    rounding: Tensor
    """How much the float32 weights of the engine can add to F by rounding, in the first order and the second."""

    def error(self, kind: str) -> Tensor:
        if kind == "drop_loss":
            return self.drop_loss
        # Assumption 3 holds for every draw, so tau^2 is the largest of them.
        tau2 = self.tau2.amax(2, keepdim=True) if kind == "tau_each" else self.tau2.amax((0, 2), keepdim=True)
        return tau2 * self.tau_factor

    def excess(self, form: Form) -> Tensor:
        """By how much the left side exceeds the right one in each draw: [Q, S, R]."""
        gradient: Tensor = getattr(self, form.gradient)
        return self.change + gradient - self.noise - self.error(form.error)


def measure(problem: Problem, rounds: Iterable[Round], lr: Tensor, every: int, sigma: float) -> Terms:
    """The terms of all rounds; ``lr`` [S] is alpha, ``every`` dT."""
    rows = [_measure_one(problem, one, lr[:, None], every, sigma) for one in rounds]
    return Terms(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _measure_one(problem: Problem, one: Round, lr: Tensor, every: int, sigma: float) -> tuple[Tensor, ...]:
    w, kept = one.before, one.masked
    smooth = problem.smoothness[:, None]
    loss = problem.loss(w)
    gradient, kept_gradient = problem.gradient(w), problem.gradient(kept) * one.mask
    size = w.square().sum(-1)
    dropped = (kept - w).square().sum(-1)
    kept_norm = kept_gradient.norm(dim=-1)
    moved = 2.0**-23 * every * (kept.norm(dim=-1) + one.after.norm(dim=-1) + lr * kept_norm)
    factor = lr * every / 12
    return (
        problem.loss(one.after) - loss,
        factor * gradient.square().sum(-1),
        factor * (gradient * one.mask).square().sum(-1),
        factor * kept_norm.square(),
        (lr**2 * smooth * sigma**2 * every**2 / 2).expand_as(loss),
        torch.where(size > 0, dropped / size, 0.0),
        2 * lr * smooth**2 * every**2 / 3 * size,
        (problem.loss(kept) - loss).clamp_min(0),
        kept_norm * moved + smooth * moved**2 / 2,
    )


class Violations(NamedTuple):
    """By round and seed: bool [Q, S]."""

    shown: Tensor
    """The expectation of the left side exceeds the right one by more than rounding; of several draws, the whole 95 % interval
    of the mean does."""
    unclear: Tensor
    """The interval holds 0, so that neither is shown. Never without noise."""


def violations(terms: Terms, form: Form) -> Violations:
    excess, rounding = terms.excess(form), terms.rounding.mean(2)
    mean = excess.mean(2)
    half = _half_width(excess) if excess.shape[2] > 1 else torch.zeros_like(mean)
    shown = mean - half > rounding
    return Violations(shown, ~shown & (mean + half > rounding) & (half > 0))


def _half_width(values: Tensor) -> Tensor:
    """Of the 95 % t-interval of the mean over the last dimension."""
    from scipy import stats

    draws = values.shape[-1]
    return float(stats.t.ppf(0.975, draws - 1)) * values.std(-1) / draws**0.5
