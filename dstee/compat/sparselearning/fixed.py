"""``Masking(exact="fixed")``: exact numbers of active weights, defined ties, one fused update for all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dstee import sparsity_distribution as distributions
from dstee.compat.plain_masks import drop_grow, keep_largest, keep_largest_
from dstee.compat.sparselearning.masked_model import MaskedModel
from dstee.compat.sparselearning.modes import Rule, check_gradients, update_arguments
from dstee.distributed.ranks import shared_seed
from dstee.sparse_layer import SparseLayer
from dstee.sparsity_distribution import seed64

__all__ = ["Fixed"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Fixed:
    """What a Masking does where ``exact="legacy"`` differs, which overrides these methods."""

    skipped: tuple[type[nn.Module], ...] = (*_NORMS, nn.Embedding, nn.EmbeddingBag)
    fuses_step = True  # into one call of masked_sgd_, which rounds differently

    def check_growth(self, growth: str) -> None:
        """Raises ValueError where this growth mode exists only in the other variant."""
        if growth == "momentum_neuron":
            raise ValueError("growth_mode 'momentum_neuron' grows nothing in the original; exact='legacy' reproduces that")

    def is_masked(self, name: str, p: Tensor) -> bool:
        """Whether a parameter outside the ``skipped`` modules gets a mask."""
        return p.dim() > 1 and "bias" not in name.rpartition(".")[2]

    def seed(self, given: int | None, device: torch.device) -> int | None:
        """The seed of masks and growth."""
        return shared_seed(device) if given is None else given

    def random_masks(
        self, mode: str, shapes: Mapping[str, torch.Size], density: float, power: float, seed: int
    ) -> dict[str, Tensor]:
        """Masks for "ERK" and "uniform": exact numbers, by ``seed`` and the names alone."""
        erk = mode == "ERK"
        nnz = distributions.erk(shapes, 1 - density, power=power) if erk else distributions.uniform(shapes, 1 - density)
        return {name: distributions.random_mask(s.numel(), nnz[name], seed, name).view(s) for name, s in shapes.items()}

    def lottery_ticket(self, scores: Tensor, k: int) -> Tensor:
        """The ``k`` largest of 1-D ``scores``."""
        return keep_largest(scores, k)

    def prune(self, model: MaskedModel, k: int) -> None:
        """Leaves the ``k`` largest active weights of all layers."""
        layers = model.masks.layers()
        counts = [layer.counts for layer in layers if layer.counts is not None] or None
        total = min(k, sum(layer.nnz for layer in layers))
        keep_largest_(
            [layer.param for layer in layers], [layer.mask_bits for layer in layers], total, counts=counts, round=model.round
        )
        model.masks.replaced()
        model.masks.recount()

    def baseline_nonzero(self, mode: str, sizes: Sequence[int], density: float, nnz: int, before: float | None) -> float | None:
        """The attribute after drawing the masks, of ``nnz`` weights in all."""
        return nnz

    def check_before_step(self, rule: Rule, params: Mapping[str, Tensor]) -> None:
        """Before a step that carries an update; see :func:`dstee.compat.sparselearning.modes.check_gradients`."""
        check_gradients(rule, params)

    def masks_momentum(self, growth: str) -> bool:
        """Growth by momentum ranks what lies off the masks; the original masks that, and regrows only what it dropped."""
        return growth != "momentum"

    def clear(self, layer: SparseLayer, tensors: Sequence[Tensor]) -> None:
        """Zeroes a weight and its momentum outside the mask."""
        off = layer.inactive()
        for t in tensors:
            t.masked_fill_(off, 0)

    def update(self, model: MaskedModel, rule: Rule) -> None:
        """Drops and grows in all layers."""
        layers, params = model.masks.layers(), model.params()
        check_gradients(rule, params)
        k, arguments = update_arguments(
            rule,
            params,
            [layer.nnz for layer in layers],
            model.masks.bools,
            model.fired_masks.bools,
            model.optimizer,
            [seed64("grow", model.seed or 0, layer.name, model.round) for layer in layers],
            model.steps,
            model.round,
        )
        clean = [layer.name for layer in layers if model.clean_versions.get(layer.name) == layer.param._version]
        model.num_remove = dict(zip(params, k.tolist() if isinstance(k, Tensor) else k, strict=True))
        drop_grow(
            list(params.values()),
            [layer.mask_bits for layer in layers],
            k,
            momenta=[model.momentum_of(p) for p in params.values()] if self.masks_momentum(rule.growth) else None,
            counts=[layer.counts for layer in layers if layer.counts is not None] or None,
            **arguments,
        )
        model.round += 1
        model.masks.round = model.round
        model.masks.replaced()
        model.clean_versions = {name: params[name]._version for name in clean}  # zero outside the masks as before
