"""Networks: one file each, entered in :data:`MODELS`; a new one is a file, and a line here."""

from dstee.experiments.models.gcn import gcn
from dstee.experiments.models.mlp import mlp
from dstee.experiments.models.registry import MODELS, build, make
from dstee.experiments.models.strided_cnn import strided_cnn

__all__ = ["MODELS", "build", "gcn", "make", "mlp", "strided_cnn"]

MODELS["mlp"] = mlp
MODELS["strided-cnn"] = strided_cnn
MODELS["gcn"] = gcn
