"""The face of ITOP's ``sparselearning.core`` (and of GraNet's): change the import, keep the script.

``exact="fixed"`` (default) draws and keeps exact numbers of active weights, decides ties by the lowest index, lets norms,
biases and embeddings alone, and updates all layers in one call of :func:`dstee.ops.drop_grow_`. ``exact="legacy"`` reproduces
the original's masks, quirk by quirk (:mod:`dstee.compat._masking_legacy`), at the original's speed. Neither rebinds weights.
"""

from __future__ import annotations

from dstee.compat._decay import CosineDecay as CosineDecay
from dstee.compat._decay import LinearDecay as LinearDecay
from dstee.compat._decay import add_sparse_args as add_sparse_args
from dstee.compat._masking import Masking as Masking
from dstee.compat._masking_granet import GraNetMasking as GraNetMasking
