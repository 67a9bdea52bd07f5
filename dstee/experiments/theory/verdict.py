"""What the figures say, in words: no more than was measured."""

from __future__ import annotations

from collections.abc import Sequence

from dstee.experiments.theory.inequality import FORMS
from dstee.experiments.theory.results import ProblemResult, count_text

__all__ = ["verdict"]

_NAMES = {
    "printed": "(4) as printed",
    "one_tau": "(4) as printed, with the largest tau^2 of all rounds",
    "masked_gradient": "(4) with the gradient masked",
    "corrected": "(4) with the masked gradient and the drop loss in place of the tau term",
}


def verdict(results: Sequence[ProblemResult]) -> list[str]:
    """One line for each form of (4), for Assumption 3 and for (5) with each gradient, and what they are worth."""
    lines = [f"{_NAMES[form]} {_inequality(form, results)}" for form in FORMS]
    lines.append(f"Assumption 3 {_assumption(results)}")
    lines += [f"(5) {text}" for text in _convergence(results)]
    which = " and ".join({"quadratic": "these quadratics", "logistic": "these logistic regressions"}[r.name] for r in results)
    return [*lines, f"An observation on {which}, for updates that zero what they drop; not a proof."]


def _inequality(form: str, results: Sequence[ProblemResult]) -> str:
    """Whether it holds, for whom not, and how often."""
    kept: dict[str, list[str]] = {}
    broken: dict[str, list[str]] = {}
    rounds = violated = unclear = 0
    for result in results:
        for one in result.methods:
            found = one.violations(form)
            shown, open_ = int(found.shown.sum()), int(found.unclear.sum())
            rounds, violated, unclear = rounds + found.shown.numel(), violated + shown, unclear + open_
            of = broken if shown else kept
            of.setdefault(one.method.name, []).append(f"{shown / found.shown.numel():.1%} ({result.name})" if shown else "")
    left = f" In {unclear:,} of the rounds the interval leaves it open." if unclear else ""
    if not violated:
        return f"holds: none of {rounds:,} rounds violates it.{left}" if not unclear else f"is violated in no round.{left}"
    shares = "; ".join(f"{name} in {', '.join(by_problem)} of the rounds" for name, by_problem in broken.items())
    whole = [name for name in kept if name not in broken]
    others = f" It holds for {', '.join(whole)}." if whole and not unclear else ""
    return f"does not hold: it is violated by {shares}.{others}{left}"


def _assumption(results: Sequence[ProblemResult]) -> str:
    bounds = [one.bound() for result in results for one in result.methods]
    tau = max(bound.tau.max().item() for bound in bounds)
    more = max(bound.uncovered.mean().item() for bound in bounds)
    text = f"holds: tau is at most {tau:.3f}" if tau < 1 else f"does not hold: tau reaches {tau:.3f}"
    if more:
        text += (
            f". Its term in (4) is smaller than what dropping costs at once, F(W * M) - F(W), in up to {more:.1%} of a "
            "method's rounds"
        )
    return text + "."


def _convergence(results: Sequence[ProblemResult]) -> list[str]:
    static = [(result, one) for result in results for one in result.methods if not one.method.updates]
    floors: list[str] = []
    zeros: list[str] = []
    for result, one in static:
        limit, start = result.limit.mean().item(), next(iter(one.means.values())).full.mean().item()
        (floors if limit > 1e-9 * start else zeros).append(f"{limit:.3g} ({result.name})")
    lines = []
    if floors:
        text = (
            "with the full gradient does not hold for a static mask: the tau term is 0, but the mean has a floor, for it "
            f"tends to {', '.join(floors)}."
        )
        for result, _ in static:
            for q, (full, _) in list(result.closed_form.items())[-1:]:
                bound = result.constant / q**0.5
                over = int((full > bound).sum())
                text += (
                    f" Over {count_text(q)} rounds on the {result.name} it is {full.mean().item():.3g} where (4), summed, "
                    f"allows {bound.mean().item():.3g}: above it for {over} of {len(full)} seeds."
                )
        lines.append(text)
    if zeros:
        lines.append(f"with the full gradient: no floor was seen for a static mask, its limit is {', '.join(zeros)}.")
    lines.append(_masked(static))
    lines.append(_dynamic(results))
    return [line for line in lines if line]


def _masked(static: Sequence[tuple[ProblemResult, object]]) -> str:
    """The rate of the closed form, where there is one."""
    for result, _ in static:
        if len(result.closed_form) > 1:
            (q, (_, before)), (p, (_, after)) = list(result.closed_form.items())[-2:]
            fall = (before.mean() / after.mean()).item()
            return (
                f"with the gradient masked: a static mask's mean goes to 0. From {count_text(q)} to {count_text(p)} rounds on "
                f"the {result.name} it falls to 1/{fall:.3g} of itself; 1/sqrt(Q) falls to 1/{(p / q) ** 0.5:.3g}."
            )
    return ""


def _dynamic(results: Sequence[ProblemResult]) -> str:
    moving = [(result, one) for result in results for one in result.methods if one.method.updates]
    lengths = list(moving[0][1].means)
    if len(lengths) < 2:
        return ""
    falls = []
    for kind in ("full", "masked"):
        ratios = [
            (getattr(one.means[lengths[-1]], kind).mean() / getattr(one.means[lengths[0]], kind).mean()).item()
            for _, one in moving
        ]
        falls.append(f"the {kind} one at {min(ratios):.2f} to {max(ratios):.2f}")
    names = ", ".join(dict.fromkeys(one.method.name for _, one in moving))
    return (
        f"for {names}: the tau term is not 0, so a floor would be no violation. Of the mean over Q = {lengths[0]}, that over "
        f"Q = {lengths[-1]} leaves {' and '.join(falls)} times; the rate 1/sqrt(Q) would be "
        f"{(lengths[0] / lengths[-1]) ** 0.5:.2f}, but these Q are too few to show a limit."
    )
