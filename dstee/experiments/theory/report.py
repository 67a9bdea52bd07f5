"""The tables of ``dstee verify-theory``, 80 columns wide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dstee.experiments.fitting_table import FittingTable
from dstee.experiments.theory.inequality import FORMS
from dstee.experiments.theory.results import MethodResult, ProblemResult, count_text
from dstee.experiments.theory.settings import Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["tables"]


def tables(settings: Settings, results: Sequence[ProblemResult]) -> Iterator[RenderableType]:
    """Headings and tables, in order."""
    yield (
        f"d = {settings.dim}, density {settings.density:g}, {settings.every} steps a round, {settings.rounds} rounds, "
        f"{settings.seeds} seeds\n"
        + (f"noise sigma {settings.noise:g}, {settings.draws} draws\n" if settings.noise else "no gradient noise\n")
        + "\nProposition 1: share of rounds that violate inequality (4), %\nwith alpha = 1/(16 L dT)"
        + ("\nin brackets: further rounds that the 95 % interval leaves open" if settings.noise else "")
    )
    yield _inequality(results)
    yield "\nAssumption 3: |W * M - W|^2 <= tau^2 |W|^2 with tau < 1, measured at the updates"
    yield _bounds(results)
    for result in results:
        exact = "; exact: in closed form, not stepped" if result.closed_form else ""
        yield (
            f"\nProposition 2, {result.name}: mean of |grad F(W * M)|^2 over Q rounds\nwith alpha = 1/(16 L dT sqrt(Q)){exact}"
        )
        yield _convergence(result)


def _rows(results: Sequence[ProblemResult]) -> Iterator[tuple[str, MethodResult]]:
    for result in results:
        for i, one in enumerate(result.methods):
            yield result.name if i == 0 else "", one


def _inequality(results: Sequence[ProblemResult]) -> FittingTable:
    columns = ("as\nprinted", "printed,\none tau", "gradient\nmasked", "corrected:\n+ drop loss")
    table = FittingTable("\nproblem", "\nmethod", *columns, keys=2)
    for name, one in _rows(results):
        table.add_row(name, one.method.name, *(_share(one, form) for form in FORMS))
    return table


def _share(one: MethodResult, form: str) -> str:
    found = one.violations(form)
    shown = f"{100 * found.shown.double().mean().item():.1f}"
    unclear = 100 * found.unclear.double().mean().item()
    return f"{shown} ({unclear:.1f})" if unclear else shown


def _bounds(results: Sequence[ProblemResult]) -> FittingTable:
    columns = ("largest\ntau", "mean\ntau term", "mean\ndrop loss", "drop loss\n> tau term")
    table = FittingTable("\nproblem", "\nmethod", *columns, keys=2)
    for name, one in _rows(results):
        bound = one.bound()
        table.add_row(
            name, one.method.name, f"{bound.tau.max().item():.3f}", _figure(bound.tau_term.mean().item()),
            _figure(bound.drop_loss.mean().item()), f"{bound.uncovered.mean().item():.1%}",
        )  # fmt: skip
    return table


def _convergence(result: ProblemResult) -> FittingTable:
    stepped = list(result.methods[0].means)
    lengths = [*stepped, *result.closed_form]
    titles = [f"Q =\n{count_text(q)}" for q in stepped] + [f"exact\n{count_text(q)}" for q in result.closed_form]
    table = FittingTable("\nmethod", "\ngradient", *titles, "\nlimit", keys=2)
    constant = result.constant.mean().item()
    table.add_row("tau = 0", "bound", *(_figure(constant / q**0.5) for q in lengths), "0")
    for one in result.methods:
        for kind in ("full", "masked"):
            cells = [_figure(getattr(means, kind).mean().item()) for means in one.means.values()]
            exact, limit = ["-"] * len(result.closed_form), "-"
            if not one.method.updates:
                exact = [_figure(pair[kind == "masked"].mean().item()) for pair in result.closed_form.values()]
                limit = _figure(result.limit.mean().item()) if kind == "full" else "0"
            table.add_row(one.method.name if kind == "full" else "", kind, *cells, *exact, limit)
    return table


def _figure(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e5 else f"{value:.1e}"
