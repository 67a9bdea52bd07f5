"""The hooks of a method that run around a step, with what they are told."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

import torch
from torch import Tensor

from dstee.mask_update import as_fusing
from dstee.methods import Method, Step
from dstee.schedule import UpdateSchedule
from dstee.sparse_layer import SparseLayer

__all__ = ["fresh_numbers", "left_by_hooks", "overrides", "refuse_after_step", "refuse_without_stop", "run_before_step"]


def overrides(method: Method, hook: str) -> bool:
    """Whether ``method`` has a hook of its own."""
    return getattr(type(method), hook) is not getattr(Method, hook)


def refuse_without_stop(method: Method, schedule: UpdateSchedule) -> None:
    """Raises ValueError where ``method`` must reach something by the last update and ``schedule`` has none."""
    if method.needs_stop and not schedule.last_update:
        raise ValueError(
            f"{method.name} must reach its sparsity by the last mask update, but with {schedule} there is "
            f"{'no last one' if schedule.stop is None else 'none'}: give the schedule stop= > every="
        )


def refuse_after_step(method: Method, foreign: bool) -> None:
    """Raises RuntimeError for methods that must be asked before a step, which somebody has made already; ``foreign``: with an
    optimizer that knows nothing of masks."""
    if method.updates and method.order == "replace":
        raise RuntimeError(
            f"{method.name} with order='replace' updates instead of stepping: call sparse.step(optimizer), "
            "or choose order='after'"
        )
    if foreign and overrides(method, "before_step"):
        raise RuntimeError(
            f"{method.name} adds to the gradients before the step: call sparse.step(optimizer) instead of "
            "optimizer.step() and sparse.update(), or use dstee.SparseSGD"
        )


def fresh_numbers(method: Method, layers: Iterable[SparseLayer]) -> dict[str, Tensor]:
    """What a method's numbers are at the start."""
    device = next((layer.mask_bits.device for layer in layers), None)
    return {key: torch.tensor(x, dtype=torch.float64, device=device) for key, x in method.initial_numbers().items()}


def left_by_hooks(method: Method, context: Step) -> dict[str, Tensor]:
    """The method's numbers as its hooks have left them in ``context``.

    Raises:
        ValueError: they are not those of ``initial_numbers`` as they are stored, or a layer has other tensors than ``keeps``
            names: a state with them could not be loaded.
    """
    numbers, expected = context.numbers, method.initial_numbers().keys()
    if numbers.keys() != expected or not all(
        isinstance(x, Tensor) and x.dtype is torch.float64 and not x.dim() and not x.requires_grad for x in numbers.values()
    ):
        got = {key: f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for key, x in numbers.items()}
        raise ValueError(
            f"a hook of {method.name} left the numbers {got}, expected {sorted(expected)}, each a torch.float64 tensor []: "
            "name them in initial_numbers, and replace them by tensors of the same kind"
        )
    for layer in context.layers:
        if layer.state and (unknown := layer.state.keys() - set(method.keeps)):
            raise ValueError(
                f"a hook of {method.name} keeps {', '.join(sorted(unknown))} of {layer.name}, but keeps = {method.keeps!r}: "
                "name there what the method keeps"
            )
    return dict(numbers)


@torch.no_grad()
def run_before_step(method: Method, context: Step, optimizer: torch.optim.Optimizer) -> None:
    """``method.before_step`` on those of the context's layers that ``optimizer`` holds and that have a gradient.

    Raises:
        RuntimeError: their gradients are scaled, because the optimizer itself unscales them.
    """
    unscaled = as_fusing(optimizer) is not None  # asks for this when they are
    if not unscaled and getattr(optimizer, "grad_scale", None) is not None:
        raise RuntimeError(
            f"{method.name} adds to the gradients, but {type(optimizer).__name__} gets them scaled and unscales them itself: "
            "make it with fused=False, or use dstee.SparseSGD"
        )
    context.numbers = MappingProxyType(context.numbers)  # type: ignore[assignment]  # the step may not come to pass
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    context.layers = [layer for layer in context.layers if id(layer.param) in held and layer.param.grad is not None]
    for layer in context.layers:
        layer.fit_grad()
    method.before_step(context)
