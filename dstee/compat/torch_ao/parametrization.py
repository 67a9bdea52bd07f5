"""The mask that ``DSTEESparsifier`` puts on a weight."""

from __future__ import annotations

from torch import Tensor, nn
from torch.ao.pruning import FakeSparsity

__all__ = ["DenseGradFakeSparsity"]


class DenseGradFakeSparsity(FakeSparsity):
    """``mask * weight``; while ``recording``, the gradient of the product is summed up in ``dense_grad``.

    The mask is no part of the model's ``state_dict`` (FakeSparsity leaves it out too, and then misses it when loading).
    """

    mask: Tensor

    def __init__(self, mask: Tensor):
        nn.Module.__init__(self)
        self.register_buffer("mask", mask, persistent=False)
        self.recording = False
        self.dense_grad: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if self.recording and out.requires_grad:
            out.register_hook(self._record)
        return out

    def _record(self, grad: Tensor) -> None:
        grad = grad.detach()
        self.dense_grad = grad if self.dense_grad is None else self.dense_grad + grad
