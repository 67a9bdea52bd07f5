"""A network for link prediction: graph convolutions over all nodes, then fully connected layers over pairs of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from dstee._console import UsageError, needs

__all__ = ["GCN", "Encoder", "gcn"]


class _Propagation(torch.autograd.Function):
    """A @ x for a symmetric sparse A, so that the gradient of x is A @ that of the output.

    Autograd's own product forms A.T at each step, which takes ten times as long as the product.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, _Propagation.apply(ctx.matrix, grad)


class Encoder(nn.Module):
    """GCN - ReLU - GCN - LayerNorm over all nodes of a fixed graph with fixed features.

    A graph convolution (Kipf and Welling, 2017) is ``A x W + b`` with the adjacency A normalised by degrees, loops added. The
    first layer's A x never changes and is computed once. torch-geometric computes A (``gcn_norm``); its ``GCNConv`` would take
    10 to 30 times as long on a CPU, and the FLOPs of its weights would not be counted, as it is no ``nn.Linear``.

    Args:
        features: float32 [nodes, inputs]. message: int64 [edges, 2], each edge once. widths: of the two convolutions.

    Raises:
        UsageError: torch-geometric is missing.
    """

    indptr: Tensor
    indices: Tensor
    weights: Tensor
    smoothed: Tensor

    def __init__(self, features: Tensor, message: Tensor, widths: Sequence[int]) -> None:
        super().__init__()
        nodes, inputs = features.shape
        matrix = _normalised(message, nodes)
        parts = {"indptr": matrix.crow_indices(), "indices": matrix.col_indices(), "weights": matrix.values()}
        for name, part in {**parts, "smoothed": matrix @ features}.items():
            self.register_buffer(name, part, persistent=False)  # of the data, not of the training
        self.conv1 = nn.Linear(inputs, widths[0])
        self.conv2 = nn.Linear(widths[0], widths[1])
        self.norm = nn.LayerNorm(widths[1])
        for conv in (self.conv1, self.conv2):  # as torch-geometric starts them
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self) -> Tensor:
        """float32 [nodes, width]."""
        n = len(self.smoothed)
        matrix = torch.sparse_csr_tensor(self.indptr, self.indices, self.weights, (n, n), check_invariants=False)
        hidden = self.conv1(self.smoothed).relu()
        smoothed: Tensor = _Propagation.apply(matrix, hidden)
        return self.norm(self.conv2(smoothed))


class GCN(nn.Module):
    """Scores of pairs of nodes: the encoder, then FC1 - ReLU - FC2 on [z_u * z_v, abs(z_u - z_v)].

    Args:
        features, message: as :class:`Encoder` takes them. widths: of the two convolutions and of FC1.

    Attributes:
        stays_dense: names of parts that get no masks.
    """

    stays_dense = ("encoder",)

    def __init__(self, features: Tensor, message: Tensor, widths: Sequence[int]) -> None:
        super().__init__()
        self.encoder = Encoder(features, message, widths[:2])
        self.fc1 = nn.Linear(2 * widths[1], widths[2])
        self.fc2 = nn.Linear(widths[2], 1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits float32 [n] of int64 [n, 2] pairs, the same for (u, v) and (v, u)."""
        u, v = embedding(pairs, self.encoder()).unbind(1)  # its gradient is deterministic on GPUs, too
        logits: Tensor = self.fc2(self.fc1(torch.cat([u * v, (u - v).abs()], 1)).relu())
        return logits.squeeze(1)


def gcn(features: Tensor, message: Tensor, hidden: Sequence[int]) -> GCN:
    """:class:`GCN` with the widths ``hidden``.

    Raises:
        UsageError: there are not three widths, or torch-geometric is missing.
    """
    if len(hidden) != 3:
        widths = ",".join(map(str, hidden))
        raise UsageError(f"hidden of model gcn is three widths, two of convolutions and that of FC1, got {widths}")
    return GCN(features, message, hidden)


def _normalised(message: Tensor, nodes: int) -> Tensor:
    """float32 CSR [nodes, nodes]: D^-1/2 (A + I) D^-1/2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-geometric as it is imported: torch.jit; torch: CSR is in beta
        try:
            from torch_geometric.nn.conv.gcn_conv import gcn_norm
        except ImportError as error:
            raise UsageError(needs("model gcn", "torch-geometric", "graphs")) from error
        both = torch.cat([message, message.flip(1)]).T
        index, weight = gcn_norm(both, None, nodes)
        return torch.sparse_coo_tensor(index, weight, (nodes, nodes), check_invariants=True).coalesce().to_sparse_csr()
