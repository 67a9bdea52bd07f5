"""Networks: one file each, entered in :data:`MODELS`; a new one is a file, and a line here."""

from dstee.experiments.models.mlp import mlp
from dstee.experiments.models.registry import MODELS, build

__all__ = ["MODELS", "build", "mlp"]

MODELS["mlp"] = mlp
