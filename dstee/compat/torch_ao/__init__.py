"""``torch.ao.pruning``: :class:`DSTEESparsifier`, with torch's own interface."""

from dstee.compat.torch_ao.arguments import Magnitude
from dstee.compat.torch_ao.parametrization import DenseGradFakeSparsity
from dstee.compat.torch_ao.sparsifier import DSTEESparsifier

__all__ = ["DSTEESparsifier", "DenseGradFakeSparsity", "Magnitude"]
