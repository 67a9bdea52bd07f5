"""The hooks of a method that run around a step, with what they are told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from dstee._optimizer_step import Owner
from dstee.methods import Method, Step
from dstee.methods.context import LayerView
from dstee.sparse_layer import SparseLayer

__all__ = ["fresh_numbers", "learning_rates", "overrides", "run_before_step"]


def overrides(method: Method, hook: str) -> bool:
    """Whether ``method`` has a hook of its own."""
    return getattr(type(method), hook) is not getattr(Method, hook)


def fresh_numbers(method: Method, layers: Iterable[SparseLayer]) -> dict[str, Tensor]:
    """What a method's numbers are at the start."""
    device = next((layer.mask_bits.device for layer in layers), None)
    return {key: torch.tensor(x, dtype=torch.float64, device=device) for key, x in method.initial_numbers().items()}


def learning_rates(layers: Sequence[LayerView], owners: Mapping[str, Owner]) -> list[float]:
    """Of each layer's weight, as its optimizer has it now; 0 for what none holds."""
    rates: dict[int, float] = {}
    for one in {id(one): one for one in owners.values()}.values():
        for group in one.core.param_groups:
            rates |= {id(p): float(group["lr"]) for p in group["params"]}
    return [rates.get(id(layer.param), 0.0) for layer in layers]


@torch.no_grad()
def run_before_step(method: Method, context: Step, optimizer: torch.optim.Optimizer) -> None:
    """``method.before_step`` on those of the context's layers that ``optimizer`` holds and that have a gradient.

    Raises:
        RuntimeError: their gradients are scaled, because the optimizer itself unscales them.
    """
    if getattr(optimizer, "grad_scale", None) is not None:
        raise RuntimeError(
            f"{method.name} adds to the gradients, but {type(optimizer).__name__} gets them scaled and unscales them itself: "
            "make it with fused=False, or use dstee.SparseSGD"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    context.layers = [layer for layer in context.layers if id(layer.param) in held and layer.param.grad is not None]
    for layer in context.layers:
        assert layer.param.grad is not None
        layer.param.grad = layer.fit(layer.param.grad)  # what is written to a copy in another memory order would be lost
    method.before_step(context)
