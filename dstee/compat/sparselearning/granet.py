"""GraNet's ``Masking``: gradual pruning, and an exchange of weights after it."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sized

import torch
from torch import Tensor, nn

from dstee.compat.sparselearning.decay import Decay
from dstee.compat.sparselearning.masking import Masking

__all__ = ["GraNetMasking"]

METHODS = ("GraNet", "GraNet_uniform", "DST", "GMP", "GMP_uniform")


class GraNetMasking(Masking):
    """GraNet's constructor and schedule: density falls from ``args.init_density`` to ``args.final_density``, cubically.

    Every ``args.update_frequency`` steps between ``args.init_prune_epoch`` and ``args.final_prune_epoch`` (times
    ``args.multiplier``, default 1; epochs of ``len(train_loader)`` steps) ``args.method`` prunes by magnitude, over all layers
    or (``*_uniform``) in each, and then swaps ``prune_rate`` of the weights by magnitude and gradient. "DST" only swaps,
    "GMP" only prunes. The original keeps one weight fewer than the target (strictly above a threshold that is itself a
    weight); exact="legacy" does, too.

    Args:
        growth_mode: the original always grows by gradient, whatever it says; here also "dst_ee".
        device: masks are where their weights are; accepted and not needed.
        others: as in :class:`Masking`.

    Raises:
        AttributeError: ``args`` lacks an attribute (named). ValueError: the method is unknown.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        prune_rate: float = 0.3,
        growth_death_ratio: float = 1.0,
        prune_rate_decay: Decay | None = None,
        death_mode: str = "magnitude",
        growth_mode: str = "momentum",
        redistribution_mode: str = "momentum",
        threshold: float = 0.001,
        args: argparse.Namespace | None = None,
        train_loader: Sized | None = None,
        device: object = None,
        *,
        exact: str = "fixed",
        c: float | None = None,
        eps: float | None = None,
        seed: int | None = None,
    ) -> None:
        read = ("sparse_init", "method", "init_density", "final_density", "init_prune_epoch", "final_prune_epoch")
        lacking = [name for name in read if not hasattr(args, name)]
        if args is None or lacking:
            raise AttributeError(f"args has no attribute {lacking[0]!r}, which GraNet's Masking reads")
        if args.method not in METHODS:
            raise ValueError(f"args.method {args.method!r} is not supported, choose from {', '.join(METHODS)}")
        if args.method != "DST" and train_loader is None:
            raise ValueError("train_loader is None: the epochs of the pruning schedule are counted by its length")
        if growth_mode not in ("momentum", "gradient", "dst_ee") or death_mode != "magnitude":
            warnings.warn(
                f"GraNet drops by magnitude and grows by gradient: death_mode={death_mode!r} and growth_mode={growth_mode!r} "
                "have no effect, as in the original",
                stacklevel=2,
            )
        growth = "dst_ee" if growth_mode == "dst_ee" else "gradient"
        super().__init__(
            optimizer, prune_rate, growth_death_ratio, prune_rate_decay, "magnitude", growth, redistribution_mode, threshold,
            args, exact=exact, c=c, eps=eps, seed=seed,
        )  # fmt: skip
        self.train_loader = self.loader = train_loader

    @property
    def prune_rate(self) -> float:
        """GraNet's name for ``death_rate``."""
        return self.death_rate

    @prune_rate.setter
    def prune_rate(self, rate: float) -> None:
        self.death_rate = rate

    @property
    def prune_rate_decay(self) -> Decay | None:
        """GraNet's name for ``death_rate_decay``."""
        return self.death_rate_decay

    @property
    def pruning_rate(self) -> dict[str, int]:
        """GraNet's name for ``num_remove``."""
        return self.num_remove

    def add_module(self, module: nn.Module, sparse_init: str | None = None, grad_dic: object = None) -> None:  # type: ignore[override]
        """Masks the 2-D and 4-D weights of ``module`` at ``args.init_density``; without the first layer if ``args.rm_first``.

        ``args.sparse_init`` decides, as in the original; ``sparse_init`` may only repeat it.
        """
        if sparse_init not in (None, self.args.sparse_init):
            raise ValueError(
                f"sparse_init={sparse_init!r} contradicts args.sparse_init={self.args.sparse_init!r}, which decides"
            )
        if grad_dic is not None:
            raise ValueError("grad_dic is not supported: only the prune_and_grow initialisations, which are not here, read it")
        first = ("conv.weight", "feature.0.weight") if getattr(self.args, "rm_first", False) else ()
        self._register(module, lambda name, p: p.dim() in (2, 4) and not any(part in name for part in first))
        self.init(mode=self.args.sparse_init, density=self.args.init_density)

    def _steps_per_epoch(self) -> int:
        assert self.train_loader is not None  # which "DST" alone allows
        return len(self.train_loader) * getattr(self.args, "multiplier", 1)

    def _progress(self) -> tuple[int, int, int]:
        """Number of this update, and of the first and the last of the schedule."""
        assert self.prune_every_k_steps is not None
        steps = self._steps_per_epoch()
        first, last = (
            int(e * steps / self.prune_every_k_steps) for e in (self.args.init_prune_epoch, self.args.final_prune_epoch)
        )
        return self.steps // self.prune_every_k_steps, first, last

    def _update(self) -> None:
        method = self.args.method
        if method == "DST":
            super()._update()
            return
        if self.steps < self.args.init_prune_epoch * self._steps_per_epoch():
            return
        (self.pruning_uniform if method.endswith("_uniform") else self.pruning)(self.steps)
        if method.startswith("GraNet"):
            super()._update()

    def target_density(self, step: int) -> float | None:
        """What a pruning at ``step`` leaves over all layers; None outside the schedule."""
        now, first, last = self._progress()
        if not first <= now < last:
            return None
        ramp = 1 - (1 - (now - first) / (last - first)) ** 3
        return 1 - ((1 - self.args.init_density) + (self.args.init_density - self.args.final_density) * ramp)

    @torch.no_grad()
    def pruning(self, step: int) -> None:
        """Keeps the largest weights of all layers together, as many as the schedule leaves."""
        density = self.target_density(step)
        if density is None:
            return
        params = self.params()
        device = next(iter(params.values())).device
        scores = torch.cat([p.detach().abs().float().flatten().to(device) for p in params.values()])
        k = max(int(scores.numel() * density), 1)
        active = torch.cat([self._masks.bools(name).flatten().to(device) for name in params])
        kept = self._variant.keep(scores, active, k)
        for (name, p), part in zip(params.items(), kept.split([p.numel() for p in params.values()]), strict=True):
            self._masks.set_bits(name, part.view(p.shape))
        self._masks.recount()
        self.apply_mask()

    @torch.no_grad()
    def pruning_uniform(self, step: int) -> None:
        """Keeps the largest weights of each layer; a layer named "classifier" never falls below density 0.2."""
        density = self.target_density(step)
        if density is None:
            return

        def keep(name: str, p: Tensor) -> int:
            return max(int(p.numel() * (max(density, 0.2) if "classifier" in name else density)), 1)

        self._prune({name: keep(name, p) for name, p in self.params().items()})
