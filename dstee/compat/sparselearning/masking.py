"""``Masking`` of ITOP's ``sparselearning``; see :mod:`dstee.compat.sparselearning`."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dstee.compat.plain_masks import keep_largest
from dstee.compat.sparselearning import state_dict as saved_state
from dstee.compat.sparselearning.decay import Decay, next_rate
from dstee.compat.sparselearning.fixed import Fixed
from dstee.compat.sparselearning.initial_masks import draw
from dstee.compat.sparselearning.legacy import Legacy
from dstee.compat.sparselearning.masked_model import MaskedModel
from dstee.compat.sparselearning.masked_step import masked_step
from dstee.compat.sparselearning.modes import DEATH_MODES, GROWTH_MODES, Rule, momentum_signal

__all__ = ["Masking", "PruneNames"]

VARIANTS = {"fixed": Fixed(), "legacy": Legacy()}


class Masking(MaskedModel):
    """ITOP's ``Masking``: owns the masks of a model and makes its optimizer steps.

    Args:
        optimizer: any torch optimizer; ``mask.step()`` takes the place of ``optimizer.step()``.
        death_rate: share of the active weights that an update swaps, until ``death_rate_decay`` (may be None) says otherwise.
        growth_death_ratio, redistribution_mode: without effect, as in the original; other values than the usual ones warn.
        death_mode: magnitude, SET (two-sided), Taylor_FO (``(w*g)**2``) or threshold (abs(w) <= ``threshold`` dies).
        growth_mode: random, random_unfired, momentum, gradient or dst_ee (with ``c`` and ``eps``).
        args: namespace with ``fix`` and ``update_frequency``, as :func:`add_sparse_args` fills it.
        exact: "fixed" or "legacy"; see the module.
        c, eps: of growth dst_ee; default ``args.dstee_c``, ``args.dstee_eps``, else 1e-3 and 1.
        seed: of initial masks and random growth in "fixed"; default drawn from torch's generator (rank 0's, for all ranks).

    Attributes as in the original: ``masks`` (live, packed; see :class:`dstee.compat.sparselearning.masks.Masks`),
    ``fired_masks``, ``modules``, ``names``, ``optimizer``, ``name2zeros``, ``name2nonzeros``, ``num_remove``, ``death_rate``,
    ``steps``, ``prune_every_k_steps``, ``baseline_nonzero``, ``density``. Nothing is printed unless ``print_nonzero_counts``
    is called.

    Raises:
        AttributeError: ``args`` lacks what the original reads. ValueError: a mode is unknown or not supported (named).
    """

    growth_modes: tuple[str, ...] = GROWTH_MODES

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        death_rate: float = 0.3,
        growth_death_ratio: float = 1.0,
        death_rate_decay: Decay | None = None,
        death_mode: str = "magnitude",
        growth_mode: str = "momentum",
        redistribution_mode: str = "momentum",
        threshold: float = 0.001,
        args: argparse.Namespace | None = None,
        *,
        exact: str = "fixed",
        c: float | None = None,
        eps: float | None = None,
        seed: int | None = None,
    ) -> None:
        if exact not in VARIANTS:
            raise ValueError(f"exact must be 'fixed' or 'legacy', got {exact!r}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        lacking = [name for name in ("fix", "update_frequency") if not hasattr(args, name)]
        if args is None or lacking:
            raise AttributeError(f"args has no attribute {lacking[0]!r}: Masking needs args.fix and args.update_frequency")
        if not args.fix and (not isinstance(args.update_frequency, int) or args.update_frequency < 1):
            raise ValueError(f"args.update_frequency must be a number of steps >= 1, got {args.update_frequency!r}")
        self._variant: Fixed = VARIANTS[exact]
        self._check_modes(death_mode, growth_mode, redistribution_mode, growth_death_ratio)
        if not 0 <= death_rate <= 1:
            raise ValueError(f"death_rate must be in [0, 1], got {death_rate}")
        super().__init__(optimizer)
        self.args, self.exact = args, exact
        self.growth_mode, self.death_mode = growth_mode, death_mode
        self.growth_death_ratio, self.redistribution_mode = growth_death_ratio, redistribution_mode
        self.death_rate_decay, self.death_rate = death_rate_decay, death_rate
        self.threshold = threshold
        self.c = getattr(args, "dstee_c", 1e-3) if c is None else c
        self.eps = getattr(args, "dstee_eps", 1.0) if eps is None else eps
        self.seed = seed
        self.prune_every_k_steps = None if args.fix else args.update_frequency
        self.baseline_nonzero: float | None = None
        self.density: float | None = None

    def _check_modes(self, death: str, growth: str, redistribution: str, ratio: float) -> None:
        self._variant.check_growth(growth)
        if growth not in (*self.growth_modes, "momentum_neuron"):
            raise ValueError(f"Growth mode: {growth} not supported! Supported modes are: {', '.join(self.growth_modes)}")
        if death not in DEATH_MODES:
            raise ValueError(f"Death mode: {death} not supported! Supported modes are: {', '.join(DEATH_MODES)}")
        if redistribution not in ("none", "momentum") or ratio != 1.0:
            warnings.warn(
                f"redistribution_mode={redistribution!r} and growth_death_ratio={ratio} have no effect, as in the original: "
                "every layer grows as many weights as it drops; SNFSMasking moves weights between layers",
                stacklevel=3,
            )

    # --- masks -----------------------------------------------------------------------------------------------------------

    def add_module(self, module: nn.Module, density: float, sparse_init: str = "ERK") -> None:
        """Masks the weights of ``module`` and draws the masks (of all modules anew).

        "fixed" takes weights of two or more dimensions except embeddings; "legacy" all parameters without "bias" in their
        name except BatchNorm1d's and 2d's. The original's default ``sparse_init``, "ER", zeroes the network; here it is ERK.
        """
        self._register(module)
        self.init(mode=sparse_init, density=density)

    def _register(self, module: nn.Module, keep: Callable[[str, Tensor], bool] | None = None) -> None:
        self._add(module, self._names(module, keep))

    def _names(self, module: nn.Module, keep: Callable[[str, Tensor], bool] | None = None) -> list[str]:
        """The weights of a module that get masks."""
        skipped = {id(p) for m in module.modules() if isinstance(m, self._variant.skipped) for p in m.parameters(recurse=False)}
        found = [(name, p) for name, p in module.named_parameters() if id(p) not in skipped]
        return [name for name, p in found if self._variant.is_masked(name, p) and (keep is None or keep(name, p))]

    @torch.no_grad()
    def init(self, mode: str = "ERK", density: float = 0.05, erk_power_scale: float = 1.0) -> None:
        """Draws the masks: "ERK", "uniform", "GMP" (dense) or "lottery_ticket" (the largest weights of all layers)."""
        params = self.params()
        self.seed = self._variant.seed(self.seed, next(iter(params.values())).device)
        masks = self._draw(mode, density, erk_power_scale)
        self.density = density
        for name, mask in masks.items():
            self._masks.set_bits(name, mask)
        self._masks.recount()
        nnz = sum(layer.nnz for layer in self._masks.layers())
        sizes = [p.numel() for p in params.values()]
        self.baseline_nonzero = self._variant.baseline_nonzero(mode, sizes, density, nnz, self.baseline_nonzero)
        self.round = self._masks.round = 0
        for layer in self._masks.layers():  # the initial mask is the first round: N = M is stored as 0
            p = layer.param
            layer.counts = torch.zeros(p.numel(), dtype=torch.int16, device=p.device) if self.growth_mode == "dst_ee" else None
        for fired, layer in zip(self._fired.layers(), self._masks.layers(), strict=True):
            fired.mask_bits = layer.mask_bits.clone()
        self._fired.replaced()
        self._fired.dtype = torch.float32
        self.apply_mask()

    def _draw(self, mode: str, density: float, power: float) -> dict[str, Tensor]:
        """Initial masks by name; weights are masked afterwards."""
        params = self.params()
        shapes = {name: p.shape for name, p in params.items()}
        return draw(
            mode, params, density,
            lambda: self._variant.random_masks(mode, shapes, density, power, self.seed or 0),
            self._variant.lottery_ticket,
        )  # fmt: skip

    # --- steps -----------------------------------------------------------------------------------------------------------

    def rule(self) -> Rule:
        """What an update does now."""
        return Rule(self.death_mode, self.growth_mode, self.death_rate, self.threshold, self.c, self.eps)

    def _due(self, steps: int) -> bool:
        return self.prune_every_k_steps is not None and steps % self.prune_every_k_steps == 0

    def step(self) -> None:
        """The optimizer's step on the active weights and, every ``prune_every_k_steps``, a mask update."""
        if self._due(self.steps + 1):
            self._variant.check_before_step(self.rule(), self.params())
        self._optimizer_step()
        if self.death_rate_decay is not None:
            self.death_rate = next_rate(self.death_rate_decay, self.death_rate)
        self.steps += 1
        if self._due(self.steps):
            self._update()

    def _optimizer_step(self) -> None:
        fused = self._variant.fuses_step and self._variant.masks_momentum(self.growth_mode)
        if not (fused and masked_step(self.optimizer, self._masks, self.clean_versions, self.apply_mask)):
            self.optimizer.step()
            self.apply_mask()

    def _update(self) -> None:
        self.truncate_weights()
        self._fire()

    @torch.no_grad()
    def apply_mask(self) -> None:
        """Zeroes weights and momenta outside the masks, in place."""
        momenta = self._variant.masks_momentum(self.growth_mode)
        for layer in self._masks.layers():
            p = layer.param
            buffer = self.momentum_of(p) if momenta else None
            self._variant.clear(layer, [p] if buffer is None else [p, buffer])

    @torch.no_grad()
    def truncate_weights(self) -> None:
        """One mask update of all layers at the present death rate: drop, grow, mask.

        Raises:
            RuntimeError: a gradient or momentum that the modes rank is missing. Nothing has changed then.
        """
        for layer in self._masks.layers():
            self.name2nonzeros[layer.name], self.name2zeros[layer.name] = layer.nnz, layer.numel - layer.nnz
        self._variant.update(self, self.rule())

    @torch.no_grad()
    def truncate_weights_GMP(self, epoch: int) -> None:
        """Gradual magnitude pruning after ``init(mode="GMP")``: each layer on the cubic ramp from dense to ``density``, between
        epochs ``args.init_prune_epoch`` and ``args.final_prune_epoch`` (times ``args.multiplier``)."""
        start, stop = (self.args.multiplier * e for e in (self.args.init_prune_epoch, self.args.final_prune_epoch))
        if not start <= epoch <= stop:
            return
        assert self.density is not None
        rate = (1 - self.density) * (1 - (1 - (epoch - start) / (stop - start + 1)) ** 3)
        self._prune({name: p.numel() - int(rate * p.numel()) for name, p in self.params().items()})

    def _prune(self, keep: Mapping[str, int]) -> None:
        """Keeps that many of the largest active weights in each layer."""
        for name, p in self.params().items():
            scores = torch.where(self._masks.bools(name), p.detach().abs().float(), -1.0).flatten()
            chosen = keep_largest(scores, keep[name]) & (scores >= 0)
            self._masks.set_bits(name, chosen.view(p.shape))
        self._masks.recount()
        self.apply_mask()

    def state_dict(self) -> saved_state.MaskingState:
        """All but weights and optimizer, to resume exactly; loads under ``torch.load(weights_only=True)``."""
        plain: saved_state.Plain = {
            "steps": self.steps,
            "round": self.round,
            "seed": self.seed,
            "density": self.density,
            "death_rate": self.death_rate,
            "baseline_nonzero": self.baseline_nonzero,
        }
        return saved_state.encode(plain, self._masks, self._fired, self.growth_mode == "dst_ee", self.death_rate_decay)

    def load_state_dict(self, state: saved_state.MaskingState) -> None:
        """Restores :meth:`state_dict` after ``add_module``; ValueError, KeyError where it does not fit."""
        saved_state.check(state, self._masks, self.growth_mode, self.death_rate_decay)
        self.steps, self.round, self.seed = state["steps"], state["round"], state["seed"]
        self.density, self.death_rate = state["density"], state["death_rate"]
        self.baseline_nonzero = state["baseline_nonzero"]
        saved_state.restore(state, self._masks, self._fired, self.death_rate_decay)
        self.apply_mask()

    # --- statistics -------------------------------------------------------------------------------------------------------

    def print_nonzero_counts(self) -> None:
        """Prints the active weights of each layer before and after the last update."""
        for layer in self._masks.layers():
            before = self.name2nonzeros.get(layer.name, layer.nnz)
            print(f"{layer.name}: {before}->{layer.nnz}, density: {layer.nnz / layer.numel:.3f}")
        print(f"Death rate: {self.death_rate}")

    def get_momentum_for_weight(self, weight: Tensor) -> Tensor:
        """SGD's momentum buffer, or Adam's ``m / (sqrt(v) + 1e-8)``."""
        return momentum_signal(self.optimizer, weight)

    def get_gradient_for_weights(self, weight: Tensor) -> Tensor:
        """A copy of the gradient."""
        if weight.grad is None:
            raise AttributeError("the weight has no gradient: call it after backward and before zero_grad")
        return weight.grad.clone()


class PruneNames(Masking):
    """``Masking`` as GraNet and SNFS have it, who say prune for what ITOP calls death."""

    @property
    def prune_rate(self) -> float:
        """Their name for ``death_rate``."""
        return self.death_rate

    @prune_rate.setter
    def prune_rate(self, rate: float) -> None:
        self.death_rate = rate

    @property
    def prune_rate_decay(self) -> Decay | None:
        """Their name for ``death_rate_decay``."""
        return self.death_rate_decay
