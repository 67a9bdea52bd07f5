"""ITOP's ``sparselearning.core`` (GraNet's, SNFS's): change the import, keep the script.

``exact="fixed"`` (default) draws and keeps exact numbers of active weights, decides ties by the lowest index, lets norms,
biases and embeddings alone, and updates all layers in one call of :func:`dstee.ops.drop_grow_`. ``exact="legacy"`` reproduces
the original's masks, quirk by quirk (:mod:`dstee.compat.sparselearning.legacy`), at the original's speed. Neither rebinds
weights.
"""

from dstee.compat.sparselearning.decay import CosineDecay, LinearDecay, SNFSLinearDecay, add_sparse_args
from dstee.compat.sparselearning.granet import GraNetMasking
from dstee.compat.sparselearning.masking import Masking
from dstee.compat.sparselearning.snfs import SNFSMasking

__all__ = ["CosineDecay", "GraNetMasking", "LinearDecay", "Masking", "SNFSLinearDecay", "SNFSMasking", "add_sparse_args"]
