"""STR's rule (Kusupati et al., Soft Threshold Weight Reparameterization for Learnable Sparsity, 2020): a weight that is
computed through a threshold which is learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["LearnedThreshold", "soft_threshold"]


class _SoftThreshold(torch.autograd.Function):
    """Saves the thresholded weight, which the layer keeps for its own backward anyway: its signs are all that is needed."""

    @staticmethod
    def forward(weight: Tensor, logit: Tensor) -> Tensor:
        threshold = torch.sigmoid(logit).to(weight.dtype)
        return weight - torch.clamp(weight, -threshold, threshold)  # exact 0 (no -0) within, NaN stays NaN

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        output, logit = ctx.saved_tensors
        wanted_weight, wanted_logit = ctx.needs_input_grad
        for_weight = torch.where(output != 0, grad, 0) if wanted_weight else None
        if not wanted_logit:
            return for_weight, None
        threshold = torch.sigmoid(logit)
        slope = threshold * (1 - threshold)
        return for_weight, -slope * (grad * output.sign()).sum(dtype=logit.dtype)


def soft_threshold(weight: Tensor, logit: Tensor) -> Tensor:
    """``sign(weight) * relu(abs(weight) - sigmoid(logit))``, differentiable once in both.

    A weight within the threshold has no gradient; the threshold has that of all weights beyond it,
    ``-sigmoid'(logit) * sum(grad * sign(weight))``.

    Args:
        weight: any floating-point tensor.
        logit: one element, shape []; the threshold is its sigmoid, rounded to the weight's dtype.

    Returns:
        A tensor like ``weight``.
    """
    return _SoftThreshold.apply(weight, logit)


class LearnedThreshold(nn.Module):
    """For :func:`torch.nn.utils.parametrize.register_parametrization`: :func:`soft_threshold` by the parameter ``logit``.

    Args:
        init: what ``logit`` starts at.
        device: where; its dtype is float32.
    """

    def __init__(self, init: float, device: torch.device | None = None) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(float(init), dtype=torch.float32, device=device))

    def forward(self, weight: Tensor) -> Tensor:
        return soft_threshold(weight, self.logit)
