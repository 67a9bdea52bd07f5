"""``patch`` for the original ``Masking`` of any fork: ITOP, GraNet, SNFS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dstee.compat.libraries import Patch
from dstee.compat.plain_masks import swap_
from dstee.compat.sparselearning.modes import DEATH_MODES, GROWTH_MODES, Rule, check_gradients, update_arguments
from dstee.layer_batch import count_nonzero
from dstee.sparse_layer import like
from dstee.sparsity_distribution import seed64

__all__ = ["ENTRY"]


class _Original(Protocol):
    """What all forks have. ITOP has ``fired_masks`` and ``num_remove``, GraNet ``pruning_rate`` and no modes."""

    optimizer: torch.optim.Optimizer
    modules: list[nn.Module]
    masks: dict[str, Tensor]
    fired_masks: dict[str, Tensor]
    name2nonzeros: dict[str, int]
    name2zeros: dict[str, int]


def _recognizes(obj: object) -> bool:
    return all(hasattr(obj, name) for name in ("truncate_weights", "apply_mask", "masks", "modules", "optimizer"))


def _first(obj: object, *names: str) -> Any:
    for name in names:
        if hasattr(obj, name):
            return getattr(obj, name)
    raise ValueError(f"{type(obj).__name__} has none of the attributes {', '.join(names)}: this fork is not supported")


def _rule(masking: object) -> Rule:
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


def _masked(masking: _Original) -> dict[str, nn.Parameter]:
    return {name: p for m in masking.modules for name, p in m.named_parameters() if name in masking.masks}


def _momentum(masking: _Original, p: Tensor) -> Tensor | None:
    return masking.optimizer.state.get(p, {}).get("momentum_buffer")


def _methods(masking: _Original) -> Mapping[str, Callable[..., Any]]:
    if not masking.masks:
        raise ValueError("the Masking has no masks yet: call its add_module first")
    _rule(masking)
    round, seed = 0, int(torch.randint(0, 2**62, (1,)))

    @torch.no_grad()
    def apply_mask(self: _Original) -> None:
        momenta = _rule(self).growth != "momentum"
        for name, p in _masked(self).items():
            p.mul_(self.masks[name])
            buffer = _momentum(self, p)
            if buffer is not None and momenta:
                buffer.mul_(self.masks[name])

    @torch.no_grad()
    def truncate_weights(self: _Original, *args: object) -> None:
        nonlocal round
        rule, params = _rule(self), _masked(self)
        check_gradients(rule, params)
        masks = [self.masks[name] for name in params]
        nnz = count_nonzero(masks)
        fired = getattr(self, "fired_masks", self.masks)
        k, arguments = update_arguments(
            rule,
            params,
            nnz,
            lambda name: like(self.masks[name] != 0, params[name], (torch.bool,)),
            lambda name: like(fired[name] != 0, params[name], (torch.bool,)),
            self.optimizer,
            [seed64("grow", seed, name, round) for name in params],
            1,
            0,
        )
        momenta = None if rule.growth == "momentum" else [_momentum(self, p) for p in params.values()]
        swap_(list(params.values()), masks, k, momenta=momenta, **arguments)
        removed = k.tolist() if isinstance(k, Tensor) else k
        for i, (name, p) in enumerate(params.items()):
            self.name2nonzeros[name], self.name2zeros[name] = nnz[i], p.numel() - nnz[i]
            for counts in (getattr(self, "num_remove", None), getattr(self, "pruning_rate", None)):
                if isinstance(counts, dict):
                    counts[name] = removed[i]
        round += 1

    def fired_masks_update(self: _Original) -> tuple[dict[str, float], float]:
        for name in self.masks:
            self.fired_masks[name] = (self.fired_masks[name] != 0).logical_or_(self.masks[name]).to(torch.uint8)
        names = list(self.masks)
        fired, sizes = count_nonzero([self.fired_masks[name] for name in names]), [self.masks[name].numel() for name in names]
        return {name: f / n for name, f, n in zip(names, fired, sizes, strict=True)}, sum(fired) / sum(sizes)

    methods: dict[str, Callable[..., Any]] = {"apply_mask": apply_mask, "truncate_weights": truncate_weights}
    if hasattr(masking, "fired_masks"):
        methods["fired_masks_update"] = fired_masks_update
    return methods


ENTRY = Patch("a sparselearning Masking", _recognizes, _methods)
