"""The output units of a sparse layer: rows of a linear layer, channels of a convolution."""

from __future__ import annotations

from torch import Tensor
from torch.nn.modules.conv import _ConvTransposeNd

from dstee import weight_kinds
from dstee.sparse_layer import SparseLayer

__all__ = ["alive_units"]


def alive_units(layer: SparseLayer) -> Tensor:
    """bool [units]: which output units have an active weight.

    The first dimension of a weight are its units (also in the packed projections of attention: query, key, value), but for

    - transposed convolutions, [in, out / groups, ...]: each group of inputs has its own outputs;
    - the ``Conv1D`` of transformers, [in, out];
    - stacked experts, [experts, in, out], or [experts, out, in] where the module says ``is_transposed = False``: each expert
      has its own outputs.

    Of a weight that is cut among ranks, this rank's part makes units of the whole alive.
    """
    mask = layer.active()
    if layer.sharding is not None:
        mask = layer.where.spread(mask).view(layer.shape)
    if isinstance(layer.module, _ConvTransposeNd):
        groups = layer.module.groups
        return mask.reshape(groups, mask.shape[0] // groups, mask.shape[1], -1).any(3).any(1).flatten()
    if weight_kinds.is_conv1d(layer.module):
        return mask.any(0)
    if weight_kinds.is_stack(layer.module, layer.param):
        outputs = weight_kinds.outputs_of_stack(layer.module)
        return mask.any(3 - outputs).flatten()
    return mask.reshape(mask.shape[0], -1).any(1)
