"""sparsimony: its pruners and growers on these kernels, alone or put into a live sparsifier with :func:`accelerate`."""

from dstee.compat.sparsimony.masks import (
    UnstructuredDSTEEGrower,
    UnstructuredGradientGrower,
    UnstructuredMagnitudePruner,
    UnstructuredRandomGrower,
    UnstructuredRandomPruner,
)
from dstee.compat.sparsimony.patch import accelerate, undo

__all__ = [
    "UnstructuredDSTEEGrower",
    "UnstructuredGradientGrower",
    "UnstructuredMagnitudePruner",
    "UnstructuredRandomGrower",
    "UnstructuredRandomPruner",
    "accelerate",
    "undo",
]
