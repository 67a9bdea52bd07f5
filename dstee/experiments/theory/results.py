"""What was measured, and the JSON file that holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dstee.experiments.theory.convergence import Means
from dstee.experiments.theory.inequality import FORMS, Terms, Violations, violations
from dstee.experiments.theory.settings import Settings
from dstee.methods import Method

__all__ = ["Bound", "MethodResult", "ProblemResult", "count_text", "to_json"]


@dataclass(frozen=True)
class Bound:
    """What Assumption 3 gives each round: float64 [Q], over the seeds and draws."""

    tau: Tensor
    """The largest."""
    tau_term: Tensor
    """The mean of 2 alpha L^2 tau^2 dT^2 / 3 |W|^2."""
    drop_loss: Tensor
    """The mean of max(F(W * M) - F(W), 0)."""
    uncovered: Tensor
    """The share of cases in which dropping costs more than the tau term allows."""


@dataclass(frozen=True)
class MethodResult:
    method: Method
    terms: Terms
    means: Mapping[int, Means]
    """By the number of rounds Q."""

    def violations(self, form: str) -> Violations:
        return violations(self.terms, FORMS[form])

    def bound(self) -> Bound:
        tau_term, drop_loss = self.terms.error("tau_each"), self.terms.drop_loss
        uncovered = (drop_loss > tau_term + self.terms.rounding).double()
        return Bound(
            self.terms.tau2.amax((1, 2)).sqrt(), tau_term.mean((1, 2)), drop_loss.mean((1, 2)), uncovered.mean((1, 2))
        )  # fmt: skip


@dataclass(frozen=True)
class ProblemResult:
    name: str
    smoothness: Tensor
    """L [S]."""
    methods: Sequence[MethodResult]
    constant: Tensor
    """G [S] of (5), for tau = 0."""
    limit: Tensor
    """[S]: what the mean full gradient of the static mask tends to."""
    closed_form: Mapping[int, tuple[Tensor, Tensor]]
    """By Q: full and masked of a static mask [S], where there is a closed form."""


def count_text(q: int) -> str:
    """A number of rounds: powers of ten from 10^4 on as such."""
    return f"10^{len(str(q)) - 1}" if q >= 10_000 and str(q).strip("0") == "1" else str(q)


def to_json(
    settings: Settings, results: Sequence[ProblemResult], verdict: Sequence[str], versions: Mapping[str, str]
) -> dict[str, Any]:
    """Plain values; numbers of six digits, those of (4) by round or by seed."""
    return {
        "command": settings.command(),
        "versions": dict(versions),
        "settings": dataclasses.asdict(settings),
        "forms": {key: form._asdict() for key, form in FORMS.items()},
        "problems": {one.name: _problem(one) for one in results},
        "verdict": list(verdict),
    }


def _problem(one: ProblemResult) -> dict[str, Any]:
    return {
        "smoothness": _numbers(one.smoothness),
        "bound_constant": _numbers(one.constant),
        "limit_of_static": _numbers(one.limit),
        "closed_form_of_static": {
            str(count): {"full": _numbers(full), "masked": _numbers(masked)}
            for count, (full, masked) in one.closed_form.items()
        },
        "methods": {result.method.key: _method(result) for result in one.methods},
    }


def _method(result: MethodResult) -> dict[str, Any]:
    return {
        "settings": result.method.to_dict(),
        "inequality_4": {key: _form(result, key) for key in FORMS},
        "bound": {name: _numbers(value) for name, value in vars(result.bound()).items()},
        "convergence_5": {
            str(count): {name: _numbers(value) for name, value in vars(means).items()} for count, means in result.means.items()
        },
    }


def _form(result: MethodResult, key: str) -> dict[str, Any]:
    found = result.violations(key)
    return {
        "share_violated": _number(found.shown.double().mean().item()),
        "share_unclear": _number(found.unclear.double().mean().item()),
        "violated_rounds_by_seed": found.shown.sum(0).tolist(),
        "rounds": found.shown.shape[0],
        "largest_excess": _number(result.terms.excess(FORMS[key]).mean(2).max().item()),
    }


def _numbers(values: Tensor) -> list[float]:
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float:
    return float(f"{value:.6g}")
