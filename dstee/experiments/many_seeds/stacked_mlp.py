"""MLPs of one shape in one: weights [S, out, in] of which each model holds its row, with batched forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dstee._console import UsageError

__all__ = ["StackedMLP", "StackedParameter"]


@dataclass(frozen=True)
class StackedParameter:
    """One parameter of S models: ``values`` and ``grads`` [S, *shape]; what the models hold are their rows."""

    name: str
    values: Tensor
    grads: Tensor


class StackedMLP:
    """S models of linear layers and ReLUs on flat inputs. From now on their parameters are views into stacks.

    The models stay what they are: whatever is written to their parameters in place is written to the stacks.

    Raises:
        UsageError: a model has other modules, or another shape than the first.
    """

    def __init__(self, models: Sequence[nn.Module]):
        self._kinds = _kinds(models[0])
        if any(_kinds(model) != self._kinds for model in models[1:]):
            raise UsageError("models that train together must be of one shape")
        self.parameters: list[StackedParameter] = []
        rows = [dict(model.named_parameters()) for model in models]
        for name in rows[0]:
            values = torch.stack([row[name].detach() for row in rows])
            stacked = StackedParameter(name, values, torch.zeros_like(values))
            for row, value in zip(rows, values, strict=True):
                row[name].data = value
            self.parameters.append(stacked)
        self._named = {stacked.name: stacked for stacked in self.parameters}

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [S, B, classes] of ``x`` [S, B, features], and the input of every module."""
        inputs = []
        for name, is_linear in self._steps():
            inputs.append(x)
            if is_linear:
                weight, bias = self._named[f"{name}.weight"], self._named.get(f"{name}.bias")
                across = weight.values.mT
                x = torch.bmm(x, across) if bias is None else torch.baddbmm(bias.values.unsqueeze(1), x, across)
            else:
                x = x.relu()
        return x, inputs

    @torch.no_grad()
    def backward(self, delta: Tensor, inputs: Sequence[Tensor]) -> None:
        """Writes the gradients of all parameters, from those of the logits, ``delta`` [S, B, classes]."""
        steps = list(zip(self._steps(), inputs, strict=True))
        for i, ((name, is_linear), x) in reversed(list(enumerate(steps))):
            if not is_linear:
                torch.ops.aten.threshold_backward.grad_input(delta, x, 0, grad_input=delta)
                continue
            weight, bias = self._named[f"{name}.weight"], self._named.get(f"{name}.bias")
            torch.bmm(delta.mT, x, out=weight.grads)
            if bias is not None:
                torch.sum(delta, 1, out=bias.grads)
            if i > 0:
                delta = torch.bmm(delta, weight.values)

    def gradients(self, x: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The mean cross entropy [S] of each model on its batch, ``x`` [S, B, features] and ``y`` int64 [S, B]; its gradients
        are written to the stacks."""
        logits, inputs = self.forward(x)
        logits.requires_grad_()
        each = cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none", label_smoothing=label_smoothing)
        losses = each.view(y.shape).mean(1)
        (delta,) = torch.autograd.grad(losses.sum(), logits)
        self.backward(delta, inputs)
        return losses.detach()

    def _steps(self) -> list[tuple[str, bool]]:
        return [(name, shape is not None) for name, shape in self._kinds]


def _kinds(model: nn.Module) -> list[tuple[str, tuple[int, ...] | None]]:
    """Name of each linear layer and ReLU in order, with (out, in, has bias) of the former."""
    parts = list(model.named_children()) if type(model) is nn.Sequential else [("", model)]
    found: list[tuple[str, tuple[int, ...] | None]] = []
    for i, (name, module) in enumerate(parts):
        if type(module) is nn.Linear:
            found.append((name, (*module.weight.shape, int(module.bias is not None))))
        elif type(module) is nn.ReLU:
            found.append((name, None))
        elif not (type(module) is nn.Flatten and i == 0):
            what = f"{name or 'the model'} is a {type(module).__name__}"
            raise UsageError(f"many seeds train at once as MLPs of linear layers and ReLUs alone, but {what}")
    return found
