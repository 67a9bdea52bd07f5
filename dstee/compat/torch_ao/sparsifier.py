"""``DSTEESparsifier``: a sparsifier of ``torch.ao.pruning`` whose masks are those of dynamic sparse training.

It is a :class:`torch.ao.pruning.BaseSparsifier`: ``prepare``, ``step``, ``squash_mask``, ``convert``,
``state_dict`` and the sparsity schedulers are used as with torch's own. The masks are FakeSparsity parametrizations, so
autograd hands masked gradients to the optimizer; the dense ones, by which DST-EE and RigL grow, are kept on their way through
the parametrization in those steps that carry an update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.ao.pruning import BaseSparsifier
from torch.nn.utils import parametrize

from dstee import _checks, layer_update, ops
from dstee._optimizer_state import zero_state
from dstee._optimizer_step import core_optimizer
from dstee.compat.torch_ao import state_dict as saved_state
from dstee.compat.torch_ao.arguments import Magnitude, active_weights, check_config, check_level, to_method
from dstee.compat.torch_ao.parametrization import DenseGradFakeSparsity
from dstee.distributed import ranks
from dstee.layer_batch import count_active
from dstee.methods import DSTEE, SET, Method, growth_seeds
from dstee.schedule import UpdateSchedule
from dstee.sparse_layer import check_parameter
from dstee.sparsity_distribution import random_mask

__all__ = ["DSTEESparsifier"]

Group = dict[str, Any]  # one layer, as BaseSparsifier keeps it: its module, tensor_name, tensor_fqn and options


class DSTEESparsifier(BaseSparsifier):
    """Dynamic sparse training as a sparsifier: DST-EE, RigL, SET, or magnitude pruning.

    Call ``step()`` after every ``optimizer.step()``. When the schedule says so it updates the masks of all layers in one
    call: the density goes to ``sparsity_level`` (which a scheduler may move) and the method swaps its share of the weights.
    A layer of n weights has exactly ``n - round(sparsity_level * n)`` active ones after an update, at least one below level 1,
    as with ``WeightNormSparsifier`` and blocks of one weight. Weights outside the mask are 0 in ``original`` after it.

    Args:
        sparsity_level: share of zeros in each layer, in [0, 1]; ``prepare``'s config may give each layer its own.
        method: "dst-ee", "rigl", "set", "magnitude" or a :class:`dstee.methods.Method` with ``order="after"``. To update
            instead of stepping, as RigL does, call ``if not sparsifier.step(): optimizer.step()``.
        schedule: counts calls of ``step()``; default every 100, 30 % of the active weights (magnitude: every call).
        init: the masks that ``prepare`` makes: "random" (exact, from ``seed`` and the layer's name), "magnitude" or "dense".
            Default: "dense" for magnitude, else "random". A config's own ``mask`` comes before it.
        seed: of random masks and random growth.
        optimizer: its parameter-shaped state (momentum, ...) is zeroed with the weights that an update drops or grows. Without
            it that state stays, as torch's sparsifiers leave it.

    Raises:
        ValueError, TypeError: an argument is out of range or unknown.
    """

    def __init__(
        self,
        sparsity_level: float = 0.5,
        method: str | Method = "dst-ee",
        schedule: UpdateSchedule | None = None,
        *,
        init: Literal["random", "magnitude", "dense"] | None = None,
        seed: int = 0,
        optimizer: torch.optim.Optimizer | None = None,
    ):
        check_level("sparsity_level", sparsity_level)
        self.method = to_method(method)
        if schedule is None:
            schedule = UpdateSchedule(every=1) if isinstance(self.method, Magnitude) else UpdateSchedule()
        if not isinstance(schedule, UpdateSchedule):
            raise TypeError(f"schedule must be an UpdateSchedule, got {type(schedule).__name__}")
        if init not in (None, "random", "magnitude", "dense"):
            raise ValueError(f"init must be 'random', 'magnitude' or 'dense', got {init!r}")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an int, got {type(seed).__name__}")
        self.schedule = schedule
        self.init = init or ("dense" if isinstance(self.method, Magnitude) else "random")
        self.seed = seed
        self.optimizer = None if optimizer is None else core_optimizer(optimizer)
        self.t = 0
        self._squashed = False
        super().__init__(defaults={"sparsity_level": sparsity_level})

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "step"}  # a scheduler's wrapper of step()

    # --- preparing -------------------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module, config: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Masks the layers of ``config`` (a list of ``{"tensor_fqn": name, ...}``; None: every Linear), in place.

        Raises:
            AssertionError: as ``BaseSparsifier``. ValueError, TypeError: a layer is not there, cannot be sparse, or has an
            option that is not supported; the model has not changed then. RuntimeError: already prepared.
        """
        if self.groups and not self._squashed:
            raise RuntimeError("this sparsifier is prepared already: squash_mask() first, or make another one")
        for entry in config or ():
            if isinstance(entry, dict) and isinstance(entry.get("tensor_fqn"), str):
                check_config(model, entry)
        self.groups.clear()
        self.state.clear()
        self._squashed = False
        super().prepare(model, config)

    def _prepare(self, *args: object, **kwargs: object) -> None:
        for group in self.groups:
            module, name, fqn = group["module"], group["tensor_name"], group["tensor_fqn"]
            weight = getattr(module, name)
            mask = self._initial_mask(fqn, weight.detach(), group)
            self.state[fqn] = {"mask": mask, "round": 0}
            if self.method.needs_counter:
                self.state[fqn]["counts"] = torch.zeros(mask.numel(), dtype=torch.int16, device=mask.device)
            parametrize.register_parametrization(module, name, DenseGradFakeSparsity(mask))
            with torch.no_grad():
                self._original(group).masked_fill_(mask == 0, 0)
        self._arm()

    def _initial_mask(self, fqn: str, weight: Tensor, group: Group) -> Tensor:
        if group.get("mask") is not None:
            return group["mask"].to(weight.device, weight.dtype, copy=True)
        nnz = active_weights(weight.numel(), group["sparsity_level"])
        if self.init == "random":
            mask = random_mask(weight.numel(), nnz, self.seed, fqn).to(weight.device)
        elif self.init == "magnitude":
            n = weight.numel()
            bits = ops.pack_mask(torch.ones(n, dtype=torch.bool, device=weight.device))
            layer = layer_update.LayerUpdate(weight.reshape(-1).clone(), bits, n - nnz, 0)
            layer_update.drop_grow_([layer], bonus=None, round=0)
            mask = layer.bools()
        else:
            mask = torch.ones(weight.numel(), device=weight.device)
        return mask.view(weight.shape).to(weight.dtype)

    def _mask_module(self, group: Group) -> DenseGradFakeSparsity:
        module, name = group["module"], group["tensor_name"]
        if parametrize.is_parametrized(module, name):
            for p in module.parametrizations[name]:
                if isinstance(p, DenseGradFakeSparsity):
                    return p
        raise RuntimeError(f"{group['tensor_fqn']} has no mask of this sparsifier: it was squashed, or never prepared")

    def _original(self, group: Group) -> nn.Parameter:
        self._mask_module(group)
        return group["module"].parametrizations[group["tensor_name"]].original

    # --- stepping --------------------------------------------------------------------------------------------------------

    def step(  # type: ignore[override]  # torch's returns None
        self, use_path: bool = True, *, scaler: torch.amp.GradScaler | None = None
    ) -> bool:
        """Counts one step and, when one is due, updates all masks. After ``optimizer.step()``, before ``scaler.update()``.

        Args:
            use_path: as in ``BaseSparsifier``, which does not use it either.
            scaler: the GradScaler of the loss: dense gradients are divided by its scale, and a step in which they are not
                finite changes nothing and does not count.

        Returns:
            True when the masks were updated.

        Raises:
            RuntimeError: not prepared or squashed; an update is due and no gradient came by (named). ValueError, TypeError: a
            level is outside [0, 1], a weight is none that can be sparse. Nothing has changed then.
        """
        if not self.enable_mask_update:
            self._arm()
            return False
        if not self.groups or self._squashed:
            raise RuntimeError("step() without masks: call prepare(model, config) first, squash_mask() last")
        due = self.method.updates and self.schedule.is_due(self.t + 1)
        if due and not self._update(self.groups, scaler):
            self._arm()
            return False
        self.t += 1
        self._arm()
        return due

    def update_mask(self, module: nn.Module, tensor_name: str, **kwargs: object) -> None:
        """Updates the mask of one layer now, whatever the schedule; :meth:`step` does it for all at once."""
        found = [g for g in self.groups if g["module"] is module and g["tensor_name"] == tensor_name]
        if not found:
            raise ValueError(f"{type(module).__name__}.{tensor_name} is no layer of this sparsifier")
        self._update(found, None)

    @torch.no_grad()
    def _update(self, groups: Sequence[Group], scaler: torch.amp.GradScaler | None) -> bool:
        groups = [g for g in groups if self._original(g).requires_grad]
        grads = self._gradients(groups, scaler)
        if grads is None:
            return False
        layers = [self._layer(group) for group in groups]
        active = count_active([layer.mask_bits for layer in layers])
        rounds: dict[int, list[int]] = {}
        for i, (group, layer) in enumerate(zip(groups, layers, strict=True)):
            n, fqn = layer.weight.numel(), group["tensor_fqn"]
            target = active_weights(n, group["sparsity_level"])
            swaps = self._swaps(min(active[i], target), n)
            layer.drop, layer.grow = swaps + max(0, active[i] - target), swaps + max(0, target - active[i])
            if grads:
                layer.signal = grads[i].to(layer.weight.dtype).reshape(-1)
            round = self.state[fqn]["round"]
            layer.seed = growth_seeds(self.seed, [fqn], round)[0] if isinstance(self.method, SET) else None
            rounds.setdefault(round, []).append(i)
        for round, indices in rounds.items():  # one, unless update_mask was called for some layers alone
            zeroed = layer_update.drop_grow_(
                [layers[i] for i in indices],
                bonus=self.method.bonus(self.t + 1, round) if isinstance(self.method, DSTEE) else None,
                round=round,
                regrow=self.method.regrow,
                reset_regrown=self.method.reset_regrown,
                report_zeroed=self.optimizer is not None and self.method.reset_regrown,  # else the masks say it
            )
            for j, i in enumerate(indices):
                self._commit(groups[i], layers[i], zeroed[j] if zeroed else None)
        return True

    def _swaps(self, active: int, n: int) -> int:
        if isinstance(self.method, Magnitude) or active == n:
            return 0
        return self.schedule.swap_count(active, self.t + 1)

    def _gradients(self, groups: Sequence[Group], scaler: torch.amp.GradScaler | None) -> list[Tensor] | None:
        """Dense gradients, unscaled and the same on all ranks; [] when the method needs none, None when not finite."""
        for group in groups:
            check_level(f"sparsity_level of {group['tensor_fqn']}", group["sparsity_level"])
            check_parameter(group["tensor_fqn"], self._original(group))
            _checks.check_round(self.state[group["tensor_fqn"]]["round"])
        if not self.method.needs_gradients:
            return []
        found = [self._mask_module(group).dense_grad for group in groups]
        missing = [g["tensor_fqn"] for g, grad in zip(groups, found, strict=True) if grad is None]
        if missing:
            raise RuntimeError(
                f"a mask update is due, but no gradient came by these weights since the last step(): {', '.join(missing)}. "
                "Call step() once after each backward; freeze or leave out layers that the loss does not reach"
            )
        grads = [grad for grad in found if grad is not None]
        if scaler is not None and scaler.is_enabled():
            grads = [grad.float() / scaler.get_scale() for grad in grads]
            if not all(bool(grad.isfinite().all()) for grad in grads):
                return None
        return ranks.mean(grads)

    def _layer(self, group: Group) -> layer_update.LayerUpdate:
        original, module = self._original(group), self._mask_module(group)
        mask, state = module.mask, self.state[group["tensor_fqn"]]
        off = ~mask.bool()  # four times as fast as mask == 0
        original.masked_fill_(off, 0)  # momentum and weight decay may have moved it
        bits = ops.pack_mask(off.contiguous().logical_not_())
        counts = state.get("counts")
        if counts is not None and counts.device != original.device:
            counts = state["counts"] = counts.to(original.device)
        return layer_update.LayerUpdate(original.detach().contiguous().view(-1), bits, 0, 0, counts=counts)

    def _commit(self, group: Group, layer: layer_update.LayerUpdate, zeroed: Tensor | None) -> None:
        """Writes mask and weights back where they were copies, and zeroes the optimizer's state with the weights."""
        original, module, state = self._original(group), self._mask_module(group), self.state[group["tensor_fqn"]]
        if layer.weight.data_ptr() != original.data_ptr():
            original.copy_(layer.weight.view(original.shape))
        new = layer.bools().view(original.shape)
        if self.optimizer is not None:
            reset = ~new | (module.mask == 0)
            if zeroed is not None:
                reset |= zeroed.view(original.shape)
            zero_state(self.optimizer, original, reset)
        module.mask.copy_(new)
        state["mask"] = module.mask
        state["round"] += 1

    def _arm(self) -> None:
        """Forgets the recorded gradients, and records in the step that carries the next update."""
        recording = self.method.needs_gradients and self.method.updates and self.schedule.is_due(self.t + 1)
        for group in self.groups:
            module = None if self._squashed else self._mask_module(group)
            if module is not None:
                module.recording, module.dense_grad = recording, None

    # --- ending ----------------------------------------------------------------------------------------------------------

    def squash_mask(
        self,
        params_to_keep: tuple[str, ...] | None = None,
        params_to_keep_per_layer: dict[str, tuple[str, ...]] | None = None,
        *args: object,
        **kwargs: object,
    ) -> None:
        """Makes the masked weights plain parameters again, as ``BaseSparsifier`` does; no ``step()`` after it."""
        super().squash_mask(params_to_keep, params_to_keep_per_layer, *args, **kwargs)
        self._squashed = True

    def state_dict(self) -> dict[str, Any]:
        """``BaseSparsifier``'s ``state`` and ``groups``, and what DST-EE counts; loads under ``weights_only=True``."""
        progress = saved_state.Progress(self.t, self.seed, self.method, self.schedule)
        return saved_state.encode(self.state, self.groups, progress)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Resumes from :meth:`state_dict`, or takes the masks of another sparsifier's (counters then start anew).

        Weights come from the model's own state. Needs ``prepare`` with the same layers first; ``state_dict`` stays as it is.

        Raises:
            RuntimeError: listing all that does not fit. Nothing has changed then.
        """
        if not self.groups or self._squashed:
            raise RuntimeError("load_state_dict() before prepare(): call prepare(model, config) with the same layers first")
        own = {group["tensor_fqn"]: group for group in self.groups}
        restored = saved_state.decode(
            state_dict,
            {fqn: self._original(group).shape for fqn, group in own.items()},
            {fqn: group["sparsity_level"] for fqn, group in own.items()},
            self.method,
            strict,
        )
        if (progress := restored.progress) is not None:
            self.t, self.seed, self.method, self.schedule = progress.t, progress.seed, progress.method, progress.schedule
        for fqn, entry in restored.entries.items():
            self._restore(own[fqn], entry)
            own[fqn].update({key: value for key, value in restored.options[fqn].items() if key in own[fqn]})
        self._arm()

    def _restore(self, group: Group, entry: saved_state.Entry) -> None:
        mask = self._mask_module(group).mask
        mask.copy_(entry["mask"])
        state: dict[str, Tensor | int] = {"mask": mask, "round": entry.get("round", 0)}
        if isinstance(counts := entry.get("counts"), Tensor):
            state["counts"] = counts.to(mask.device, copy=True)
        elif self.method.needs_counter:
            state["counts"] = torch.zeros(mask.numel(), dtype=torch.int16, device=mask.device)
        self.state[group["tensor_fqn"]] = state
