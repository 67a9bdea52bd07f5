"""``patch`` for the original ``Masking`` of any fork: ITOP, GraNet, SNFS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dstee.compat.libraries import Patch
from dstee.compat.plain_masks import swap_
from dstee.compat.sparselearning.modes import DEATH_MODES, GROWTH_MODES, Rule, check_gradients, update_arguments
from dstee.compat.sparselearning.redistribution import SNFSRule, check_modes, update
from dstee.layer_batch import count_active, count_nonzero
from dstee.memory_order import like, pack_like, unpack_like
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
    name2removed: dict[str, int]  # these five where layers trade weights
    name2variance: dict[str, float]
    name2prune_rate: dict[str, float]
    total_removed: int
    total_nonzero: int


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
    return Rule(death, growth, float(_first(masking, "death_rate", "prune_rate")), float(getattr(masking, "threshold", 0.001)))


def _redistributes(masking: object) -> bool:
    """Whether layers trade weights: in SNFS always ("none" goes by their sizes), in ITOP for ImageNet unless "none"."""
    if not hasattr(masking, "calc_growth_redistribution") or hasattr(getattr(masking, "args", None), "final_density"):
        return False
    itop = hasattr(masking, "fired_masks")
    mode = getattr(masking, "redistribution_mode", "none")
    if not hasattr(masking, "redistribution_func") and not itop:
        raise ValueError(
            "this version of SNFS decays a death rate for each layer (name2death_rate) and is not supported by patch: take its "
            "last version, which has prune_rate and redistribution_func, or dstee.compat.sparselearning.SNFSMasking"
        )
    return hasattr(masking, "redistribution_func") and (mode != "none" or not itop)


def _snfs_rule(masking: object) -> SNFSRule:
    prune, growth, redistribution = (_first(masking, name) for name in ("prune_mode", "growth_mode", "redistribution_mode"))
    check_modes(prune, growth, redistribution)
    if getattr(masking, "name_to_32bit", None):
        raise ValueError(
            "the optimizer keeps 32-bit copies of the weights (apex's FP16_Optimizer), which patch would not mask: "
            "use torch.autocast, or call unpatched"
        )
    threshold = _first(masking, "prune_threshold") if prune == "threshold" else 0.001
    return SNFSRule(prune, growth, redistribution, float(_first(masking, "prune_rate", "death_rate")), float(threshold))


def _trade(masking: _Original, params: Mapping[str, nn.Parameter], seed: Callable[[str], int]) -> None:
    """One update in which layers trade weights; the total that is active stays exactly as it is."""
    bits = [pack_like(masking.masks[name], p) for name, p in params.items()]
    nnz = count_active(bits)
    numbers = update(_snfs_rule(masking), params, bits, nnz, masking.optimizer, seed)
    for i, (name, p) in enumerate(params.items()):
        masking.masks[name].copy_(unpack_like(bits[i], p))
        masking.name2nonzeros[name], masking.name2zeros[name] = nnz[i], p.numel() - nnz[i]
        masking.name2removed[name], masking.name2variance[name] = numbers.drop[i], numbers.shares[i]
        masking.name2prune_rate[name] = numbers.rates[i]
    masking.total_removed, masking.total_nonzero = sum(numbers.drop), sum(nnz)


def _masked(masking: _Original) -> dict[str, nn.Parameter]:
    return {name: p for m in masking.modules for name, p in m.named_parameters() if name in masking.masks}


def _momentum(masking: _Original, p: Tensor) -> Tensor | None:
    return masking.optimizer.state.get(p, {}).get("momentum_buffer")


def _methods(masking: _Original) -> Mapping[str, Callable[..., Any]]:
    if not masking.masks:
        raise ValueError("the Masking has no masks yet: call its add_module first")
    _snfs_rule(masking) if _redistributes(masking) else _rule(masking)
    round, seed = 0, int(torch.randint(0, 2**62, (1,)))

    @torch.no_grad()
    def apply_mask(self: _Original) -> None:
        momenta = not _redistributes(self) and _rule(self).growth != "momentum"
        for name, p in _masked(self).items():
            p.mul_(self.masks[name])
            buffer = _momentum(self, p)
            if buffer is not None and momenta:
                buffer.mul_(self.masks[name])

    @torch.no_grad()
    def truncate_weights(self: _Original, *args: object) -> None:
        nonlocal round
        params = _masked(self)
        if _redistributes(self):
            _trade(self, params, lambda name: seed64("grow", seed, name, round))
            round += 1
            return
        rule = _rule(self)
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
