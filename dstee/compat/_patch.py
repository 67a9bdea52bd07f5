"""``patch``: a live object of an original library computes on our kernels, without even a changed import."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor

from dstee.compat._masking_rules import DEATH_MODES, GROWTH_MODES, Rule, check_gradients, update_arguments
from dstee.compat._rigl_update import rigl_update
from dstee.compat._state import count_active, swap_
from dstee.sparsity_distribution import seed64

_MARK = "_dstee_patched"


def patch(obj: Any) -> Any:
    """Gives a live ``rigl_torch`` scheduler or ``sparselearning`` (ITOP, GraNet, SNFS) ``Masking`` our update, in place.

    Methods are replaced on this one object; its masks, weights, optimizer and counters stay its own tensors, so its
    checkpoints do not change, and :func:`unpatch` puts its own methods back at any time. Numbers of active weights are exact
    from then on, and ties go to the lowest index (``exact="fixed"`` of the faces).

    Returns:
        ``obj`` itself.

    Raises:
        TypeError: it is none of these, or one of ours, which computes on our kernels already.
        ValueError: it is patched already, has no masks yet, or is set to a mode that is not supported (named).
    """
    if type(obj).__module__.startswith("dstee."):
        raise TypeError(f"{type(obj).__name__} is dstee's own and computes on its kernels already")
    if getattr(obj, _MARK, None):
        raise ValueError(f"this {type(obj).__name__} is patched already")
    if all(hasattr(obj, name) for name in ("_rigl_step", "backward_masks", "backward_hook_objects", "W", "S")):
        methods = _rigl_methods(obj)
    elif all(hasattr(obj, name) for name in ("truncate_weights", "apply_mask", "masks", "modules", "optimizer")):
        methods = _masking_methods(obj)
    else:
        raise TypeError(
            f"cannot patch a {type(obj).__name__}: expected a rigl_torch RigLScheduler or a sparselearning Masking; "
            "for sparsimony use dstee.compat.sparsimony.accelerate"
        )
    for name, function in methods.items():
        setattr(obj, name, MethodType(function, obj))
    setattr(obj, _MARK, tuple(methods))
    return obj


def unpatch(obj: Any) -> Any:
    """Undoes :func:`patch`; the state stays. Returns ``obj``.

    Raises:
        ValueError: it is not patched.
    """
    names = getattr(obj, _MARK, None)
    if not names:
        raise ValueError(f"this {type(obj).__name__} is not patched")
    for name in (*names, _MARK):
        delattr(obj, name)
    return obj


# --- rigl_torch ----------------------------------------------------------------------------------------------------------


def _rigl_methods(scheduler: Any) -> dict[str, Any]:
    if not any(mask is not None for mask in scheduler.backward_masks or ()):
        raise ValueError("the scheduler has no sparse layer")

    def _rigl_step(self: Any) -> None:
        rigl_update(self, float(self.cosine_annealing()))

    return {"_rigl_step": _rigl_step}


# --- sparselearning ------------------------------------------------------------------------------------------------------


def _first(obj: Any, *names: str) -> Any:
    for name in names:
        if hasattr(obj, name):
            return getattr(obj, name)
    raise ValueError(f"{type(obj).__name__} has none of the attributes {', '.join(names)}: this fork is not supported")


def _rule(masking: Any) -> Rule:
    """The modes of any fork. GraNet has neither: magnitude and gradient."""
    granet = hasattr(getattr(masking, "args", None), "final_density")
    death = "magnitude" if granet else _first(masking, "death_mode", "prune_mode")
    growth = "gradient" if granet else _first(masking, "growth_mode")
    if death not in DEATH_MODES:
        raise ValueError(f"death mode {death!r} is not supported by patch, only {', '.join(DEATH_MODES)}")
    if growth not in GROWTH_MODES or growth == "dst_ee":
        raise ValueError(f"growth mode {growth!r} is not supported by patch, only {', '.join(GROWTH_MODES[:-1])}")
    redistribution = getattr(masking, "redistribution_mode", "none")
    if hasattr(masking, "redistribution_func") and redistribution != "none":
        raise ValueError(f"redistribution {redistribution!r} between layers is not supported by patch")
    return Rule(death, growth, float(_first(masking, "death_rate", "prune_rate")), float(getattr(masking, "threshold", 0.001)))


def _masked(masking: Any) -> dict[str, Tensor]:
    return {name: p for m in masking.modules for name, p in m.named_parameters() if name in masking.masks}


def _masking_methods(masking: Any) -> dict[str, Any]:
    if not masking.masks:
        raise ValueError("the Masking has no masks yet: call its add_module first")
    _rule(masking)
    round, seed = 0, int(torch.randint(0, 2**62, (1,)))

    @torch.no_grad()
    def apply_mask(self: Any) -> None:
        momenta = _rule(self).growth != "momentum"
        for name, p in _masked(self).items():
            p.mul_(self.masks[name])
            buffer = self.optimizer.state.get(p, {}).get("momentum_buffer")
            if buffer is not None and momenta:
                buffer.mul_(self.masks[name])

    @torch.no_grad()
    def truncate_weights(self: Any, *args: Any) -> None:
        nonlocal round
        rule, params = _rule(self), _masked(self)
        check_gradients(rule, params)
        masks = [self.masks[name] for name in params]
        nnz = count_active(masks)
        fired = getattr(self, "fired_masks", self.masks)
        seeds = [seed64("grow", seed, name, round) for name in params]
        arguments = update_arguments(
            rule,
            params,
            nnz,
            lambda name: torch.empty_like(params[name], dtype=torch.bool).copy_(self.masks[name]),
            lambda name: torch.empty_like(params[name], dtype=torch.bool).copy_(fired[name]),
            self.optimizer,
            seeds,
            1,
            0,
        )
        k = arguments["k"]
        buffers = [self.optimizer.state.get(p, {}).get("momentum_buffer") for p in params.values()]
        swap_(list(params.values()), masks, k, momenta=None if rule.growth == "momentum" else buffers, **_without_k(arguments))
        removed = k.tolist() if isinstance(k, Tensor) else k
        for i, (name, p) in enumerate(params.items()):
            self.name2nonzeros[name], self.name2zeros[name] = nnz[i], p.numel() - nnz[i]
            for counts in (getattr(self, "num_remove", None), getattr(self, "pruning_rate", None)):
                if isinstance(counts, dict):
                    counts[name] = removed[i]
        round += 1

    def fired_masks_update(self: Any) -> tuple[dict[str, float], float]:
        for name in self.masks:
            self.fired_masks[name] = (self.fired_masks[name] != 0).logical_or_(self.masks[name]).to(torch.uint8)
        names = list(self.masks)
        fired, sizes = count_active([self.fired_masks[name] for name in names]), [self.masks[name].numel() for name in names]
        return {name: f / n for name, f, n in zip(names, fired, sizes, strict=True)}, sum(fired) / sum(sizes)

    methods: dict[str, Any] = {"apply_mask": apply_mask, "truncate_weights": truncate_weights}
    if hasattr(masking, "fired_masks"):
        methods["fired_masks_update"] = fired_masks_update
    return methods


def _without_k(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key != "k"}
