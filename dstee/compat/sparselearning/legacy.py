"""``Masking(exact="legacy")``: ITOP's ``Masking`` as it is, layer by layer, each quirk described where it happens.

Masks are float tensors of the weight's shape. Random numbers come from torch's global CPU generator, in the original's order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dstee.compat.sparselearning.fixed import Fixed
from dstee.compat.sparselearning.masked_model import MaskedModel
from dstee.compat.sparselearning.modes import Rule, check_gradients, momentum_signal
from dstee.sparse_layer import SparseLayer

__all__ = ["Legacy"]


class Legacy(Fixed):
    """The original in all that ``exact="fixed"`` does otherwise."""

    skipped = (nn.BatchNorm1d, nn.BatchNorm2d)  # quirk: other norms and embeddings are masked
    fuses_step = False

    def check_growth(self, growth: str) -> None:
        if growth == "dst_ee":
            raise ValueError("growth_mode 'dst_ee' is not in the original: use exact='fixed'")

    def is_masked(self, name: str, p: Tensor) -> bool:
        return "bias" not in name

    def seed(self, given: int | None, device: torch.device) -> int | None:
        return given

    def random_masks(
        self, mode: str, shapes: Mapping[str, torch.Size], density: float, power: float, seed: int
    ) -> dict[str, Tensor]:
        densities = density_init(shapes, density, power) if mode == "ERK" else dict.fromkeys(shapes, density)
        return {name: bernoulli(shape, densities[name]) for name, shape in shapes.items()}

    def lottery_ticket(self, scores: Tensor, k: int) -> Tensor:
        """Quirk: ties with the smallest are all kept."""
        return scores >= torch.topk(scores, k).values[-1]

    def prune(self, model: MaskedModel, k: int) -> None:
        """Quirk: strictly above a threshold that is itself a weight, so one weight fewer; inactive weights compete."""
        params = model.params()
        device = next(iter(params.values())).device
        scores = {name: p.detach().abs().float().to(device) for name, p in params.items()}
        threshold = torch.topk(torch.cat([s.flatten() for s in scores.values()]), k).values[-1]
        for name, score in scores.items():
            model.masks.set_bits(name, score > threshold)
        model.masks.recount()

    def baseline_nonzero(self, mode: str, sizes: Sequence[int], density: float, nnz: int, before: float | None) -> float | None:
        if mode == "uniform":
            return sum(n * density for n in sizes)
        return before if mode == "ERK" else nnz

    def check_before_step(self, rule: Rule, params: Mapping[str, Tensor]) -> None:
        pass  # the original steps first

    def masks_momentum(self, growth: str) -> bool:
        return True

    def clear(self, layer: SparseLayer, tensors: Sequence[Tensor]) -> None:
        mask = layer.bools(layer.mask_bits)
        for t in tensors:
            t.mul_(mask)  # quirk: Inf and NaN outside the mask become NaN and stay

    def update(self, model: MaskedModel, rule: Rule) -> None:
        params, dropped = model.params(), {}
        for name, p in params.items():
            mask = model.masks[name].as_subclass(Tensor).clone()
            before = int(mask.sum())
            dropped[name] = death(rule.death, rule.rate, mask, p.detach(), p.grad)
            model.num_remove[name] = before - int(dropped[name].sum())
        for name, p in params.items():
            mask, regrow = dropped[name].byte(), model.num_remove[name]
            if rule.growth == "random":
                mask = random_growth(mask, regrow)
            elif rule.growth == "random_unfired":
                mask = random_unfired_growth(mask, model.fired_masks[name].as_subclass(Tensor), regrow)
            elif rule.growth == "momentum":
                mask = ranked_growth(mask, momentum_signal(model.optimizer, p, name), regrow)
            elif rule.growth == "gradient":
                check_gradients(rule, params)
                assert p.grad is not None
                mask = ranked_growth(mask, p.grad, regrow)
            model.masks.set_bits(name, mask)
        model.masks.recount()
        model.apply_mask()


def density_init(shapes: Mapping[str, torch.Size], density: float, power: float) -> dict[str, float]:
    """ERK densities in float64; layers that would exceed 1 become dense, all tied maxima at once."""
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    raw = {name: (sum(shape) / sizes[name]) ** power for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        budget = sum(-n * (1 - density) if name in dense else n * density for name, n in sizes.items())
        scale = budget / sum(raw[name] * n for name, n in sizes.items() if name not in dense)
        largest = max(score for name, score in raw.items() if name not in dense)
        if scale * largest <= 1:
            return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
        dense |= {name for name, score in raw.items() if score == largest}


def bernoulli(shape: torch.Size, density: float) -> Tensor:
    """Quirk: every weight is active with this probability, so the number of active weights is random."""
    return (torch.rand(shape) < density).float()


def death(mode: str, rate: float, mask: Tensor, w: Tensor, grad: Tensor | None) -> Tensor:
    """The mask after the drop: bool or float."""
    nonzeros = mask.sum().item()
    remove = math.ceil(rate * nonzeros)
    k = mask.numel() - int(nonzeros) + remove
    if mode == "Taylor_FO":
        # Quirk: inactive weights (score 0) take part; an active weight with score 0 may survive in the place of one of them.
        assert grad is not None
        order = torch.sort((w * grad).pow(2).flatten()).indices
        return mask.flatten().index_fill(0, order[:k], 0.0).view(mask.shape)
    if mode == "SET":
        # Quirk: the negative side's threshold is its half-th smallest value: all negative weights die except the half - 1
        # farthest from zero, instead of the half closest to it. Zeros die always.
        half = math.ceil(remove / 2.0)
        lowest = torch.sort(w[w > 0.0].flatten()).values
        positive = (w > lowest[min(half, lowest.numel()) - 1]) & (w > 0.0)
        lowest = torch.sort(w[w < 0.0].flatten()).values
        return positive | ((w < lowest[min(half, lowest.numel()) - 1]) & (w < 0.0))
    if mode == "threshold":
        raise AttributeError("'Masking' object has no attribute 'threshold': the original's threshold death fails like this")
    if remove == 0:
        return w != 0.0  # quirk: active weights that are exactly 0 die although none should
    # Quirk: whatever ties with the k-th smallest dies with it; where that is 0, all active zeros do.
    return w.abs() > torch.sort(w.abs().flatten()).values[k - 1]


def random_growth(mask: Tensor, regrow: int) -> Tensor:
    """Quirk: every inactive weight grows with the same probability, so the number grown is random."""
    n = int((mask == 0).sum())
    if n == 0:
        return mask
    grown = (mask != 0) | (torch.rand(mask.shape) < regrow / n).to(mask.device)
    return grown if bool(grown.any()) else mask


def random_unfired_growth(mask: Tensor, fired: Tensor, regrow: int) -> Tensor:
    """An exact sample of weights that were never active; when they are too few, all of them and Bernoulli growth."""
    if not bool((mask == 0).any()):
        return mask
    unfired = (fired.flatten() == 0).nonzero()
    if regrow <= unfired.shape[0]:
        chosen = unfired[torch.randperm(unfired.shape[0])[:regrow].to(mask.device)]
        return mask.flatten().index_fill(0, chosen.flatten(), 1).view(mask.shape)
    grown = (mask != 0) | (fired == 0)
    n = int((~grown).sum())
    # Quirk: with no inactive weight left the probability is a division by zero.
    return grown | (torch.rand(mask.shape) < (regrow - unfired.shape[0]) / n).to(mask.device)


def ranked_growth(mask: Tensor, signal: Tensor, regrow: int) -> Tensor:
    """Quirk: with fewer than ``regrow`` inactive weights of non-zero signal, the rest of the quota falls on weights that may
    be active already, and the density shrinks."""
    order = torch.sort((signal * (mask == 0)).abs().flatten(), descending=True).indices
    return mask.flatten().index_fill(0, order[:regrow], 1).view(mask.shape)
