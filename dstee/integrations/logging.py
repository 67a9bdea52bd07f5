"""What to log of a sparse training: a flat dict of floats, for whichever logger the host has."""

from __future__ import annotations

from dstee import metrics
from dstee.sparse_model import SparseModel

__all__ = ["scalars"]


def scalars(sparse: SparseModel, prefix: str = "masks/") -> dict[str, float]:
    """The state of the masks in a few numbers, by the names that ``dstee train`` logs them under.

    ``density`` (share of the sparse weights that are active), ``updates`` (so far), ``churn`` (share of the active weights that
    the last update brought in), ``dead_units`` (share of output units without an active weight); with counters
    ``exploration`` (R, the share of weights that were ever active) and ``exploration_limit`` (the most that R can be by now).

    They change in updates alone. One call reads masks and counters once, as long as a step takes or less: call it every some
    dozen steps, on all ranks where weights are cut among them. ``accelerator.log(scalars(sparse), step=sparse.t)``, Lightning's
    ``self.log_dict(scalars(sparse))``, ``wandb.log(scalars(sparse))``, ``mlflow.log_metrics(scalars(sparse), step=sparse.t)``.
    """
    found = {
        "density": metrics.density(sparse),
        "updates": float(sparse.round),
        "churn": metrics.churn(sparse),
        "dead_units": metrics.dead_units(sparse).total,
    }
    if all(layer.counts is not None for layer in sparse.layers.values()):
        found["exploration"] = metrics.exploration(sparse).total
        found["exploration_limit"] = metrics.exploration_limit(sparse).total
    return {f"{prefix}{name}": value for name, value in found.items()}
