"""Rows of results made by hand."""

from __future__ import annotations

from typing import Any

from dstee.experiments.config import method_name
from dstee.experiments.results.row import Outcome, Row

MADE_BY = {"dstee": "0.1.0", "torch": "2.13.0", "data_digest": "d1"}


def training(
    method: str, seed: int, accuracy: float | None, *, label: str = "", scores: dict[str, float] | None = None,
    made_by: dict[str, str] = MADE_BY, **settings: Any,
) -> Row:  # fmt: skip
    """One training; ``accuracy`` None: it diverged at step 7."""
    density = 1 - settings.get("sparsity", 0.0)
    outcome = Outcome(
        accuracy, density, round(1000 * density), 1000, density, 1.5 * density, f"{method}{seed}", min(1.0, 2 * density), 0.25,
        density,
        scores=scores or {}, diverged_at=7 if accuracy is None else None,
    )  # fmt: skip
    settings = {"data": "digits", "epochs": 2, **settings}
    return Row(label or method_name(method), method, seed, settings, outcome, made_by=made_by, source=f"runs/{method}")


def trainings(method: str, *accuracies: float | None, **more: Any) -> list[Row]:
    """One for each seed from 0."""
    return [training(method, seed, accuracy, **more) for seed, accuracy in enumerate(accuracies)]


def small_set() -> list[Row]:
    """Five methods, three seeds, two sparsities; one training diverged, one method is there at one sparsity."""
    return [
        *trainings("rigl", 0.94, 0.93, 0.95, sparsity=0.9),
        *trainings("set", 0.93, 0.91, 0.94, sparsity=0.9),
        *trainings("dst-ee", 0.95, 0.94, 0.9601, sparsity=0.9, c=0.001),
        *trainings("gmp", 0.945, 0.93, 0.96, sparsity=0.9),
        *trainings("dense", 0.96, 0.95, 0.97),
        *trainings("rigl", 0.90, 0.89, 0.91, sparsity=0.98),
        *trainings("set", 0.80, 0.82, 0.78, sparsity=0.98),
        *trainings("dst-ee", 0.91, 0.92, None, sparsity=0.98, c=0.001),
    ]
