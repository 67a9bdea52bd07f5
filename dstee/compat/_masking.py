"""``Masking`` of ITOP's ``sparselearning``; see :mod:`dstee.compat.sparselearning`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dstee.compat import _masking_checkpoint as checkpoint
from dstee.compat import _masking_legacy as legacy
from dstee.compat._decay import next_rate
from dstee.compat._masked_step import masked_step
from dstee.compat._masking_init import draw
from dstee.compat._masking_rules import DEATH_MODES, GROWTH_MODES, Rule, check_gradients, momentum_signal, update_arguments
from dstee.compat._masks import Masks
from dstee.compat._state import drop_grow, keep_largest
from dstee.distributed.ranks import shared_seed
from dstee.sparsity_distribution import seed64


class Masking:
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

    Attributes as in the original: ``masks`` (live, packed; see :class:`dstee.compat._masks.Masks`), ``fired_masks``,
    ``modules``, ``names``, ``optimizer``, ``name2zeros``, ``name2nonzeros``, ``num_remove``, ``death_rate``, ``steps``,
    ``prune_every_k_steps``, ``baseline_nonzero``, ``density``. Nothing is printed unless ``print_nonzero_counts`` is called.

    Raises:
        AttributeError: ``args`` lacks what the original reads. ValueError: a mode is unknown or not supported (named).
    """

    growth_modes: tuple[str, ...] = GROWTH_MODES

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        death_rate: float = 0.3,
        growth_death_ratio: float = 1.0,
        death_rate_decay: Any = None,
        death_mode: str = "magnitude",
        growth_mode: str = "momentum",
        redistribution_mode: str = "momentum",
        threshold: float = 0.001,
        args: Any = None,
        *,
        exact: str = "fixed",
        c: float | None = None,
        eps: float | None = None,
        seed: int | None = None,
    ) -> None:
        if exact not in ("fixed", "legacy"):
            raise ValueError(f"exact must be 'fixed' or 'legacy', got {exact!r}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        for name in ("fix", "update_frequency"):
            if not hasattr(args, name):
                raise AttributeError(f"args has no attribute {name!r}: Masking needs args.fix and args.update_frequency")
        if not args.fix and (not isinstance(args.update_frequency, int) or args.update_frequency < 1):
            raise ValueError(f"args.update_frequency must be a number of steps >= 1, got {args.update_frequency!r}")
        self._check_modes(death_mode, growth_mode, redistribution_mode, growth_death_ratio, exact)
        if not 0 <= death_rate <= 1:
            raise ValueError(f"death_rate must be in [0, 1], got {death_rate}")
        self.args, self.exact = args, exact
        self.optimizer = optimizer
        self.growth_mode, self.death_mode = growth_mode, death_mode
        self.growth_death_ratio, self.redistribution_mode = growth_death_ratio, redistribution_mode
        self.death_rate_decay, self.death_rate = death_rate_decay, death_rate
        self.threshold = threshold
        self.c = getattr(args, "dstee_c", 1e-3) if c is None else c
        self.eps = getattr(args, "dstee_eps", 1.0) if eps is None else eps
        self.seed = seed
        self.prune_every_k_steps = None if args.fix else args.update_frequency
        self.modules: list[nn.Module] = []
        self.names: list[str] = []
        self.name2zeros: dict[str, int] = {}
        self.name2nonzeros: dict[str, int] = {}
        self.num_remove: dict[str, int] = {}
        self.baseline_nonzero: float | None = None
        self.density: float | None = None
        self.steps = 0
        self.round = 0
        self._masks, self._fired = Masks(), Masks()
        self._versions: dict[str, int] = {}

    def _check_modes(self, death: str, growth: str, redistribution: str, ratio: float, exact: str) -> None:
        if growth == "momentum_neuron" and exact == "fixed":
            raise ValueError("growth_mode 'momentum_neuron' grows nothing in the original; exact='legacy' reproduces that")
        if growth not in (*self.growth_modes, "momentum_neuron"):
            raise ValueError(f"Growth mode: {growth} not supported! Supported modes are: {', '.join(self.growth_modes)}")
        if growth == "dst_ee" and exact == "legacy":
            raise ValueError("growth_mode 'dst_ee' is not in the original: use exact='fixed'")
        if death not in DEATH_MODES:
            raise ValueError(f"Death mode: {death} not supported! Supported modes are: {', '.join(DEATH_MODES)}")
        if redistribution not in ("none", "momentum") or ratio != 1.0:
            warnings.warn(
                f"redistribution_mode={redistribution!r} and growth_death_ratio={ratio} have no effect, as in the original: "
                "every layer grows as many weights as it drops",
                stacklevel=3,
            )

    # --- masks -----------------------------------------------------------------------------------------------------------

    @property
    def masks(self) -> Masks:
        """Name -> 0/1 float tensor; assign a mapping (a checkpoint's) to replace all masks."""
        return self._masks

    @masks.setter
    def masks(self, masks: Mapping[str, Tensor]) -> None:
        self._assign(self._masks, masks, "masks")

    @property
    def fired_masks(self) -> Masks:
        """Name -> 0/1 tensor of the weights that were ever active."""
        return self._fired

    @fired_masks.setter
    def fired_masks(self, masks: Mapping[str, Tensor]) -> None:
        self._assign(self._fired, masks, "fired_masks")

    @staticmethod
    def _assign(ours: Masks, masks: Mapping[str, Tensor], what: str) -> None:
        if masks is ours:
            return
        if set(masks) != set(ours):
            missing, unknown = sorted(set(ours) - set(masks)), sorted(set(masks) - set(ours))
            raise ValueError(f"{what} must name every masked weight once; missing: {missing}, unknown: {unknown}")
        for name, mask in masks.items():
            ours[name] = mask

    def _params(self) -> dict[str, Tensor]:
        return {layer.name: layer.param for layer in self._masks.layers()}

    def add_module(self, module: nn.Module, density: float, sparse_init: str = "ERK") -> None:
        """Masks the weights of ``module`` and draws the masks (of all modules anew).

        "fixed" takes weights of two or more dimensions except embeddings; "legacy" all parameters without "bias" in their
        name except BatchNorm1d's and 2d's. The original's default ``sparse_init``, "ER", zeroes the network; here it is ERK.
        """
        self._register(module)
        self.init(mode=sparse_init, density=density)

    def _register(self, module: nn.Module, keep: Callable[[str, Tensor], bool] | None = None) -> None:
        norms = nn.BatchNorm1d | nn.BatchNorm2d
        skip = norms if self.exact == "legacy" else norms | nn.Embedding | nn.EmbeddingBag
        excluded = {id(p) for m in module.modules() if isinstance(m, skip) for p in m.parameters(recurse=False)}
        found = [(name, p) for name, p in module.named_parameters() if id(p) not in excluded]
        if self.exact == "legacy":
            found = [(name, p) for name, p in found if "bias" not in name]
        else:
            found = [(name, p) for name, p in found if p.dim() > 1 and "bias" not in name.rpartition(".")[2]]
        found = [(name, p) for name, p in found if keep is None or keep(name, p)]
        again = [name for name, _ in found if name in self._masks]
        if again:
            raise ValueError(f"masks for {', '.join(again)} exist already: names of several modules must differ")
        if not found:
            raise ValueError(f"{type(module).__name__} has no weight to mask")
        for name, _ in found:
            self._masks.add(name, module)
            self._fired.add(name, module)
            self.names.append(name)
        self.modules.append(module)

    @torch.no_grad()
    def init(self, mode: str = "ERK", density: float = 0.05, erk_power_scale: float = 1.0) -> None:
        """Draws the masks: "ERK", "uniform", "GMP" (dense) or "lottery_ticket" (the largest weights of all layers)."""
        params = self._params()
        if self.seed is None and self.exact == "fixed":
            self.seed = shared_seed(next(iter(params.values())).device)
        masks = draw(mode, params, density, erk_power_scale, self.seed or 0, self.exact == "legacy")
        self.density = density
        for name, mask in masks.items():
            self._masks.set_bits(name, mask)
        self._masks.recount()
        if mode == "uniform" and self.exact == "legacy":
            self.baseline_nonzero = sum(p.numel() * density for p in params.values())
        elif mode != "ERK" or self.exact == "fixed":
            self.baseline_nonzero = sum(layer.nnz for layer in self._masks.layers())
        self.round = self._masks.round = 0
        for layer in self._masks.layers():  # the initial mask is the first round: N = M is stored as 0
            p = layer.param
            layer.counts = torch.zeros(p.numel(), dtype=torch.int16, device=p.device) if self.growth_mode == "dst_ee" else None
        for fired, layer in zip(self._fired.layers(), self._masks.layers(), strict=True):
            fired.mask_bits = layer.mask_bits.clone()
        self._fired.replaced()
        self._fired.dtype = torch.float32
        self.apply_mask()

    def remove_weight(self, name: str) -> None:
        """Takes a weight (or the ``weight`` of a module) out of the masks; it stays as it is and trains densely."""
        found = name if name in self._masks else f"{name}.weight"
        if found not in self._masks:
            raise KeyError(f"no masked weight {name!r}, there are {', '.join(self._masks)}")
        del self._masks[found], self._fired[found]
        self.names.remove(found)

    def remove_weight_partial_name(self, partial_name: str) -> None:
        """Takes out all weights with ``partial_name`` in their name."""
        for name in [name for name in self._masks if partial_name in name]:
            self.remove_weight(name)

    def remove_type(self, nn_type: type) -> None:
        """Takes out the weights of all modules of a type."""
        for module in self.modules:
            for name, child in module.named_modules():
                if isinstance(child, nn_type) and f"{name}.weight" in self._masks:
                    self.remove_weight(f"{name}.weight")

    # --- steps -----------------------------------------------------------------------------------------------------------

    def rule(self) -> Rule:
        """What an update does now."""
        return Rule(self.death_mode, self.growth_mode, self.death_rate, self.threshold, self.c, self.eps)

    def _due(self, steps: int) -> bool:
        return self.prune_every_k_steps is not None and steps % self.prune_every_k_steps == 0

    def step(self) -> None:
        """The optimizer's step on the active weights and, every ``prune_every_k_steps``, a mask update."""
        if self._due(self.steps + 1) and self.exact == "fixed":
            check_gradients(self.rule(), self._params())
        self._optimizer_step()
        if self.death_rate_decay is not None:
            self.death_rate = next_rate(self.death_rate_decay, self.death_rate)
        self.steps += 1
        if self._due(self.steps):
            self._update()

    def _optimizer_step(self) -> None:
        fused = self.exact == "fixed" and self._masks_momentum()
        if not (fused and masked_step(self.optimizer, self._masks, self._versions, self.apply_mask)):
            self.optimizer.step()
            self.apply_mask()

    def _update(self) -> None:
        self.truncate_weights()
        self._fire()

    def _masks_momentum(self) -> bool:
        """Growth by momentum ranks what lies off the masks; the original masks that, and regrows only what it dropped."""
        return self.exact == "legacy" or self.growth_mode != "momentum"

    @torch.no_grad()
    def apply_mask(self) -> None:
        """Zeroes weights and momenta outside the masks, in place."""
        for layer in self._masks.layers():
            p = layer.param
            buffer = self.optimizer.state.get(p, {}).get("momentum_buffer")
            targets = [p] if buffer is None or not self._masks_momentum() else [p, buffer]
            if self.exact == "legacy":
                mask = layer.bools(layer.mask_bits)
                for t in targets:
                    t.mul_(mask)  # quirk: Inf and NaN outside the mask become NaN and stay
            else:
                off = layer.inactive()
                for t in targets:
                    t.masked_fill_(off, 0)

    @torch.no_grad()
    def truncate_weights(self) -> None:
        """One mask update of all layers at the present death rate: drop, grow, mask.

        Raises:
            RuntimeError: a gradient or momentum that the modes rank is missing. Nothing has changed then.
        """
        layers = self._masks.layers()
        for layer in layers:
            self.name2nonzeros[layer.name], self.name2zeros[layer.name] = layer.nnz, layer.numel - layer.nnz
        if self.exact == "legacy":
            self._truncate_legacy()
            return
        rule, params = self.rule(), self._params()
        check_gradients(rule, params)
        arguments = update_arguments(
            rule,
            params,
            [layer.nnz for layer in layers],
            self._masks.bools,
            self._fired.bools,
            self.optimizer,
            [seed64("grow", self.seed or 0, layer.name, self.round) for layer in layers],
            self.steps,
            self.round,
        )
        clean = [layer.name for layer in layers if self._versions.get(layer.name) == layer.param._version]
        k = arguments["k"]
        self.num_remove = dict(zip(params, k.tolist() if isinstance(k, Tensor) else k, strict=True))
        buffers = [self.optimizer.state.get(p, {}).get("momentum_buffer") for p in params.values()]
        drop_grow(
            list(params.values()),
            [layer.mask_bits for layer in layers],
            momenta=buffers if self._masks_momentum() else None,
            counts=[layer.counts for layer in layers if layer.counts is not None] or None,
            **arguments,
        )
        self.round += 1
        self._masks.round = self.round
        self._masks.replaced()
        self._versions = {name: params[name]._version for name in clean}  # zero outside the masks as before

    def _truncate_legacy(self) -> None:
        params, dropped = self._params(), {}
        for name, p in params.items():
            mask = self._masks[name].as_subclass(Tensor).clone()
            before = int(mask.sum())
            dropped[name] = legacy.death(self.death_mode, self.death_rate, mask, p.detach(), p.grad)
            self.num_remove[name] = before - int(dropped[name].sum())
        for name, p in params.items():
            mask, regrow = dropped[name].byte(), self.num_remove[name]
            if self.growth_mode == "random":
                mask = legacy.random_growth(mask, regrow)
            elif self.growth_mode == "random_unfired":
                mask = legacy.random_unfired_growth(mask, self._fired[name].as_subclass(Tensor), regrow)
            elif self.growth_mode == "momentum":
                mask = legacy.ranked_growth(mask, momentum_signal(self.optimizer, p, name), regrow)
            elif self.growth_mode == "gradient":
                check_gradients(self.rule(), params)
                assert p.grad is not None
                mask = legacy.ranked_growth(mask, p.grad, regrow)
            self._masks.set_bits(name, mask)
        self._masks.recount()
        self.apply_mask()

    @torch.no_grad()
    def truncate_weights_GMP(self, epoch: int) -> None:
        """Gradual magnitude pruning after ``init(mode="GMP")``: each layer on the cubic ramp from dense to ``density``, between
        epochs ``args.init_prune_epoch`` and ``args.final_prune_epoch`` (times ``args.multiplier``)."""
        start, stop = (self.args.multiplier * e for e in (self.args.init_prune_epoch, self.args.final_prune_epoch))
        if not start <= epoch <= stop:
            return
        assert self.density is not None
        rate = (1 - self.density) * (1 - (1 - (epoch - start) / (stop - start + 1)) ** 3)
        self._prune({name: p.numel() - int(rate * p.numel()) for name, p in self._params().items()})

    def _prune(self, keep: Mapping[str, int]) -> None:
        """Keeps that many of the largest active weights in each layer."""
        for name, p in self._params().items():
            scores = torch.where(self._masks.bools(name), p.detach().abs().float(), -1.0).flatten()
            chosen = keep_largest(scores, keep[name]) & (scores >= 0)
            self._masks.set_bits(name, chosen.view(p.shape))
        self._masks.recount()
        self.apply_mask()

    def state_dict(self) -> dict[str, Any]:
        """All but weights and optimizer, to resume exactly; loads under ``torch.load(weights_only=True)``."""
        return checkpoint.encode(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict` after ``add_module``; ValueError, KeyError where it does not fit."""
        checkpoint.decode(self, state)

    # --- looking ---------------------------------------------------------------------------------------------------------

    def _fire(self) -> None:
        for fired, layer in zip(self._fired.layers(), self._masks.layers(), strict=True):
            fired.mask_bits |= layer.mask_bits
        self._fired.replaced()
        self._fired.dtype = torch.uint8

    def fired_masks_update(self) -> tuple[dict[str, float], float]:
        """Adds the present masks to ``fired_masks``; share of weights that were ever active, per layer and in all."""
        self._fire()
        self._fired.recount()
        layers = self._fired.layers()
        return {layer.name: layer.nnz / layer.numel for layer in layers}, (
            sum(layer.nnz for layer in layers) / sum(layer.numel for layer in layers)
        )

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
