"""GraNet's ``Masking``: gradual pruning, and an exchange of weights after it."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sized

import torch
from torch import Tensor, nn

from dstee.compat.sparselearning.decay import Decay
from dstee.compat.sparselearning.initial_masks import MODES
from dstee.compat.sparselearning.masking import PruneNames
from dstee.compat.sparselearning.pruned_masks import PRUNING_MODES, check_gradients_given, prune_once

__all__ = ["GraNetMasking"]

UNITS = ("uniform_structured", "prune_structured", "prune_and_grow_structured")
METHODS = ("GraNet", "GraNet_uniform", "DST", "GMP", "GMP_uniform")


class GraNetMasking(PruneNames):
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
        self._gradients: Mapping[str, Tensor] | None = None

    @property
    def pruning_rate(self) -> dict[str, int]:
        """GraNet's name for ``num_remove``."""
        return self.num_remove

    def add_module(  # type: ignore[override]
        self, module: nn.Module, sparse_init: str | None = None, grad_dic: Mapping[str, Tensor] | None = None
    ) -> None:
        """Masks the 2-D and 4-D weights of ``module``; without the first layer if ``args.rm_first``.

        ``args.sparse_init`` decides, as in the original; ``sparse_init`` may only repeat it. "ERK" and "uniform" draw masks at
        ``args.init_density`` (method "GMP" starts dense whatever it says). The others take a trained network and prune
        ``args.pruning_rate`` of its weights by magnitude: "prune_uniform" in each layer, "prune_global" over all;
        "prune_and_grow_uniform" and "prune_and_grow_global" then grow as many in each layer, where the gradient is largest.

        Args:
            grad_dic: a gradient of the loss by parameter name, for "prune_and_grow_*".

        Raises:
            ValueError: an initialisation is not supported, or lacks what it reads.
        """
        mode = self.args.sparse_init
        if sparse_init not in (None, mode):
            raise ValueError(f"sparse_init={sparse_init!r} contradicts args.sparse_init={mode!r}, which decides")
        first = ("conv.weight", "feature.0.weight") if getattr(self.args, "rm_first", False) else ()

        def is_kept(name: str, p: Tensor) -> bool:
            return p.dim() in (2, 4) and not any(part in name for part in first)

        dense = self.args.method == "GMP"
        if not dense:
            self._check_init(mode)
            taken = {**self.params(), **{name: module.get_parameter(name) for name in self._names(module, is_kept)}}
            check_gradients_given(mode, taken, grad_dic)
        self._register(module, is_kept)
        self._gradients = grad_dic
        try:
            self.init(mode="GMP" if dense else mode, density=self.args.init_density)
        finally:
            self._gradients = None

    def _check_init(self, mode: str) -> None:
        if mode in UNITS:
            raise ValueError(
                f"sparse_init {mode!r} is not supported: it prunes whole units, and later updates would fill them with single "
                f"weights again; choose from {', '.join((*MODES, *PRUNING_MODES))}"
            )
        if mode not in (*MODES, *PRUNING_MODES):
            raise ValueError(
                f"sparse_init {mode!r} is not supported, choose from {', '.join((*MODES, *PRUNING_MODES))}; for masks of your "
                "own (SNIP's, say) assign mask.masks = dstee.masks_from_scores(scores, total=k) after add_module"
            )
        if mode in PRUNING_MODES and self.exact == "legacy":
            raise ValueError(
                f"sparse_init {mode!r} with exact='legacy' is not supported: the original's choice among equal weights depends "
                "on torch.sort; use exact='fixed', which prunes the same numbers and decides ties by the lowest index"
            )
        if mode in PRUNING_MODES and not hasattr(self.args, "pruning_rate"):
            raise AttributeError(f"args has no attribute 'pruning_rate', which sparse_init {mode!r} reads")

    def _draw(self, mode: str, density: float, power: float) -> dict[str, Tensor]:
        if mode not in PRUNING_MODES:
            return super()._draw(mode, density, power)
        params = self.params()
        self._check_init(mode)
        check_gradients_given(mode, params, self._gradients)
        momenta = [self.momentum_of(p) for p in params.values()]
        return prune_once(mode, params, float(self.args.pruning_rate), self._gradients, momenta)

    def _steps_per_epoch(self) -> int:
        assert self.train_loader is not None  # which "DST" alone allows
        return len(self.train_loader) * getattr(self.args, "multiplier", 1)

    def _progress(self, step: int) -> tuple[int, int, int]:
        """Number of the update at ``step``, and of the first and the last of the schedule."""
        assert self.prune_every_k_steps is not None
        steps = self._steps_per_epoch()
        first, last = (
            int(e * steps / self.prune_every_k_steps) for e in (self.args.init_prune_epoch, self.args.final_prune_epoch)
        )
        return step // self.prune_every_k_steps, first, last

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
        now, first, last = self._progress(step)
        if not first <= now <= last:
            return None
        ramp = 1 - (1 - (now - first) / (last - first)) ** 3 if first < last else 1
        return 1 - ((1 - self.args.init_density) + (self.args.init_density - self.args.final_density) * ramp)

    @torch.no_grad()
    def pruning(self, step: int) -> None:
        """Keeps the largest weights of all layers together, as many as the schedule leaves."""
        density = self.target_density(step)
        if density is None:
            return
        k = max(int(sum(p.numel() for p in self.params().values()) * density), 1)
        self._variant.prune(self, k)
        self.apply_mask()

    @torch.no_grad()
    def pruning_uniform(self, step: int) -> None:
        """Keeps the largest weights of each layer, as many as the schedule leaves.

        Layers named "classifier" do not fall below density 0.2; the others make up for that, as in the original.
        """
        density = self.target_density(step)
        if density is None:
            return
        sizes = {name: p.numel() for name, p in self.params().items()}
        classifier = sum(n for name, n in sizes.items() if "classifier" in name)
        others = sum(sizes.values()) - classifier
        low = density
        if density <= 0.2 and others:
            low = max((sum(sizes.values()) * density - 0.2 * classifier) / others, 0)
        self._prune({name: max(int(n * (max(density, 0.2) if "classifier" in name else low)), 1) for name, n in sizes.items()})
