"""An optimizer's step as its owner would make it: through wrappers, a GradScaler, a closure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch.amp.grad_scaler import OptState

from dstee._optimizer_state import state_keepers
from dstee.mask_update import FusingOptimizer, as_fusing
from dstee.sparse_layer import SparseLayer

Closure: TypeAlias = Callable[[], Any]
"""As torch's: computes the gradients; what it returns is the loss."""


class Stepper(Protocol):
    """A torch optimizer, or what wraps one and keeps it as ``.optimizer`` (accelerate, Lightning)."""

    def step(self, *args: Any, **kwargs: Any) -> Any: ...


def core_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """The optimizer inside wrappers that keep it as ``.optimizer`` (accelerate, Lightning)."""
    core = optimizer
    while isinstance(inner := getattr(core, "optimizer", None), torch.optim.Optimizer) and inner is not core:
        core = inner
    if not isinstance(core, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return core


@dataclass(frozen=True)
class Owner:
    """An optimizer as it was given, the one inside its wrappers, and the same once more if it masks its own step."""

    optimizer: Stepper
    core: torch.optim.Optimizer
    fusing: FusingOptimizer | None


def owner(optimizer: Stepper | FusingOptimizer) -> Owner:
    """Raises TypeError for what is no optimizer and wraps none, or has one inside that would mask its step unasked."""
    core = core_optimizer(optimizer)
    if type(core).__name__ == "ZeroRedundancyOptimizer" and as_fusing(getattr(core, "optim", None)):
        raise TypeError(
            "ZeroRedundancyOptimizer steps a part of the weights on each rank, which SparseSGD inside it cannot: use "
            "torch.optim.SGD inside"
        )
    fusing = as_fusing(core)
    inside = [] if fusing is not None else [one for one in state_keepers(core)[1:] if as_fusing(one) is not None]
    if inside:
        name = type(inside[0]).__name__
        raise TypeError(
            f"{type(core).__name__} has {name} inside, which must carry the mask update in its own step: pass the optimizers "
            f"that it holds, as in sparse.step(*container.optimizers), or use torch.optim.SGD inside instead of {name}"
        )
    return Owner(optimizer, core, fusing)  # type: ignore[arg-type]  # a FusingOptimizer steps, too


def owners_of(layers: Iterable[SparseLayer], owners: Sequence[Owner]) -> dict[str, Owner]:
    """Who holds each layer's weight, by name; the first of all for a weight that none holds (frozen ones need not be)."""
    first = owners[0]
    if len(owners) == 1:
        return {layer.name: first for layer in layers}
    holder = {id(p): one for one in reversed(owners) for group in one.core.param_groups for p in group["params"]}
    return {layer.name: holder.get(id(layer.param), first) for layer in layers}


def before_step(closure: Closure | None, check: Callable[[], None]) -> Closure | None:
    """Runs ``check`` once the gradients exist and before anything moves: now, or inside the closure that is returned."""
    if closure is None:
        check()
        return None

    def checked() -> Any:
        loss = closure()
        check()
        return loss

    return checked


def call_step(optimizer: Stepper, closure: Closure | None, scaler: torch.amp.GradScaler | None) -> None:
    """The optimizer's step as its owner would call it."""
    if scaler is not None:
        scaler.step(optimizer)  # type: ignore[arg-type]  # a wrapper will do
    elif closure is not None:
        optimizer.step(closure)
    else:
        optimizer.step()


def was_performed(stepped: torch.optim.Optimizer) -> bool:
    """For a hook after an optimizer's step: False where the optimizer skipped it by itself, as those do that unscale gradients
    themselves (fused ones): a GradScaler leaves its verdict there."""
    found_inf = getattr(stepped, "found_inf", None)
    return found_inf is None or not found_inf.item()


def run_step(
    optimizer: Stepper, core: torch.optim.Optimizer, closure: Closure | None, scaler: torch.amp.GradScaler | None
) -> bool:
    """:func:`call_step`. False when the step was skipped: overflow, accumulation in a wrapper."""
    performed = False

    def note(stepped: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        nonlocal performed
        performed = was_performed(stepped)

    handle = core.register_step_post_hook(note)
    try:
        call_step(optimizer, closure, scaler)
    finally:
        handle.remove()
    return performed


def unscale(scaler: torch.amp.GradScaler, optimizer: Stepper) -> bool:
    """Unscales the gradients unless that was done; True when they are finite. GradScaler has no public way to ask."""
    owner: Any = optimizer  # a wrapper has the parameter groups that the scaler looks at
    if scaler._per_optimizer_states[id(owner)]["stage"] is OptState.READY:
        scaler.unscale_(owner)
    return not any(found_inf.item() for found_inf in scaler._found_inf_per_device(owner).values())


def accumulates(optimizer: object) -> bool:
    """True when accelerate's wrapper would skip this step because gradients are still being accumulated.

    Raises:
        RuntimeError: the wrapper owns a GradScaler, which only its own step can unscale.
    """
    if getattr(optimizer, "scaler", None) is not None:
        raise RuntimeError(
            "order='replace' cannot unscale the gradients of a wrapper with its own GradScaler: use order='after'"
        )
    return not getattr(getattr(optimizer, "gradient_state", None), "sync_gradients", True)
