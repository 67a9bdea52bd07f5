"""SNFS's ``Masking``: sparse momentum, which moves weights between layers."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from dstee.allocation import allocate
from dstee.compat.sparselearning.decay import Decay
from dstee.compat.sparselearning.fixed import Fixed
from dstee.compat.sparselearning.masking import PruneNames
from dstee.compat.sparselearning.redistribution import SNFSRule, check_modes, update
from dstee.sparsity_distribution import random_mask, seed64

__all__ = ["SNFSMasking"]

INITIAL = ("constant", "linear", "resume")


class _SNFS(Fixed):
    """Momenta are never masked: off the masks they are what growth ranks."""

    fuses_step = False

    def masks_momentum(self, growth: str) -> bool:
        return False


class SNFSMasking(PruneNames):
    """SNFS's ``Masking`` (TimDettmers/sparse_learning): the total of active weights stays exact while layers trade them.

    An update drops ``prune_rate`` of the weights and grows as many: each layer in proportion to its mean abs(momentum)
    (``redistribution_mode="momentum"``), mean abs(weight) ("magnitude"), weights that are not 0 ("nonzero") or size ("none"),
    over its active weights before the drop. :mod:`dstee.compat.sparselearning.redistribution` has the details, and where the
    original's totals drift. It comes with :meth:`at_end_of_epoch`, and every ``prune_every_k_steps`` where that is set.

    Args:
        prune_mode: magnitude; SET (closest to 0 on either side; the original's drops the *largest* negative weights);
            threshold (abs(w) <= ``prune_threshold``); global_magnitude (over all layers, exactly; the original searches a
            threshold to within 2 %).
        growth_mode: momentum (SGD's, or Adam's ``m / (sqrt(v) + 1e-8)``), random (exact numbers, seeded),
            gradient (ITOP's, for ImageNet), or global_momentum_growth (the largest of all layers; no redistribution then).
        prune_rate_decay: may be None. verbose: prints the layers after each update. seed: of initial masks and random growth.

    Attributes as in the original: besides ``Masking``'s ``name2variance`` (the shares), ``name2prune_rate``, ``name2removed``,
    ``total_removed``, ``total_nonzero``; ``adjusted_growth`` is always 0, as nothing has to be corrected.

    Raises:
        ValueError: a mode is not supported; the text says why.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        prune_rate_decay: Decay | None,
        prune_rate: float = 0.5,
        prune_mode: str = "magnitude",
        growth_mode: str = "momentum",
        redistribution_mode: str = "momentum",
        verbose: bool = False,
        fp16: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        if fp16:
            raise ValueError(
                "fp16=True is apex's FP16_Optimizer with 32-bit copies, which is not supported: use torch.autocast, which "
                "keeps the weights in float32, or weights in bfloat16"
            )
        if not 0 <= prune_rate <= 1:
            raise ValueError(f"prune_rate must be in [0, 1], got {prune_rate}")
        self.prune_mode = prune_mode
        super().__init__(
            optimizer, prune_rate, 1.0, prune_rate_decay, "magnitude", growth_mode, redistribution_mode,
            args=argparse.Namespace(fix=True, update_frequency=None), seed=seed,
        )  # fmt: skip
        self._variant = _SNFS()
        self.verbose = verbose
        self.prune_threshold = self.threshold
        self.name2variance: dict[str, float] = {}
        self.name2prune_rate: dict[str, float] = {}
        self.name2removed: dict[str, int] = {}
        self.total_removed = self.total_nonzero = 0
        self.adjusted_growth = 0

    def _check_modes(self, death: str, growth: str, redistribution: str, ratio: float) -> None:
        check_modes(self.prune_mode, growth, redistribution)

    def add_module(self, module: nn.Module, density: float, sparse_init: str = "constant") -> None:
        """Masks the weights of ``module`` of two or more dimensions except embeddings, as :meth:`init` says."""
        super().add_module(module, density, sparse_init)

    def init(self, mode: str = "constant", density: float = 0.05, erk_power_scale: float = 1.0) -> None:
        """Draws the masks, in exact numbers.

        "constant": the same density in all layers. "linear": numbers in proportion to ``sum(shape)``, capped at dense layers
        with the rest to the others, where the original loses it. "resume": the weights that are not 0.
        """
        super().init(mode, density, erk_power_scale)

    def _draw(self, mode: str, density: float, power: float) -> dict[str, Tensor]:
        if mode not in INITIAL:
            raise ValueError(f"sparse_init {mode!r} is not supported, choose from {', '.join(INITIAL)}")
        if mode == "constant":
            return super()._draw("uniform", density, power)
        params = self.params()
        if mode == "resume":
            return {name: p.detach() != 0 for name, p in params.items()}
        if not 0 < density <= 1:
            raise ValueError(f"density must be in (0, 1], the share of active weights, got {density}")
        shares, sizes = ([f(p) for p in params.values()] for f in (lambda p: sum(p.shape), Tensor.numel))
        nnz = allocate(round(density * sum(sizes)), torch.tensor(shares), torch.tensor(sizes)).tolist()
        return {
            name: random_mask(p.numel(), n, self.seed or 0, name).view(p.shape)
            for (name, p), n in zip(params.items(), nnz, strict=True)
        }

    def snfs_rule(self) -> SNFSRule:
        """What an update does now."""
        return SNFSRule(self.prune_mode, self.growth_mode, str(self.redistribution_mode), self.prune_rate, self.prune_threshold)

    def at_end_of_epoch(self) -> None:
        """A mask update: call it once an epoch, between steps."""
        self._update()

    def _update(self) -> None:
        super()._update()
        if self.verbose:
            self.print_nonzero_counts()

    @torch.no_grad()
    def truncate_weights(self) -> None:
        """One mask update of all layers at the present rate: drop, share out, grow.

        Raises:
            RuntimeError: a momentum or gradient that a mode ranks is missing. Nothing has changed then.
        """
        layers = self._masks.layers()
        nnz = [layer.nnz for layer in layers]
        numbers = update(
            self.snfs_rule(),
            self.params(),
            [layer.mask_bits for layer in layers],
            nnz,
            self.optimizer,
            lambda name: seed64("grow", self.seed or 0, name, self.round),
        )
        self.total_nonzero, self.total_removed = sum(nnz), sum(numbers.drop)
        for i, layer in enumerate(layers):
            self.name2nonzeros[layer.name], self.name2zeros[layer.name] = nnz[i], layer.numel - nnz[i]
            self.name2variance[layer.name], self.name2prune_rate[layer.name] = numbers.shares[i], numbers.rates[i]
            self.name2removed[layer.name] = self.num_remove[layer.name] = numbers.drop[i]
            layer.nnz = nnz[i] - numbers.drop[i] + numbers.grow[i]
        self.round += 1
        self._masks.round = self.round
        self._masks.replaced()
