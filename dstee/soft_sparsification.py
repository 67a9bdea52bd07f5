"""STR: thresholds that are learned with the weights, and the masks that they become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import index
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from dstee import _optimizer_state, _optimizer_step, ops, sparsity_distribution
from dstee._optimizer_step import Closure, Stepper
from dstee._state_checks import is_int, is_number
from dstee.methods import Method, Static
from dstee.methods.soft_threshold import LearnedThreshold
from dstee.schedule import UpdateSchedule
from dstee.selection import Rules, select
from dstee.soft_layers import SoftLayer, SoftSummary, count_beyond, find_shift, largest_margins, soft_layers, summarize
from dstee.sparse_model import SparseModel, masked_parameters
from dstee.sparsification import from_masks
from dstee.summary import Summary

__all__ = ["SoftThreshold"]

FORMAT_VERSION = 1


class SoftThreshold:
    """STR (Kusupati et al., 2020): trains ``sign(W) * relu(abs(W) - sigmoid(s))`` with one learned ``s`` per layer, then masks.

    Two phases. *Soft*: each weight is a parametrization of the model; ``s`` is a parameter beside it, and decay of ``s``
    towards 0, where the threshold is 1/2, makes the layers sparse as far as the loss lets it. *Frozen*, after :meth:`freeze`:
    the thresholds are gone, the weight is the module's own parameter again, the same object as before, and ``sparse`` is the
    :class:`SparseModel` with as many active weights as ``sparsity`` says. Any optimizer over the model's parameters takes
    part, thresholds and all::

        soft = dstee.SoftThreshold(model, sparsity=0.95, freeze_at=450)
        optimizer = torch.optim.SGD(soft.parameter_groups(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            soft.step(optimizer)  # freezes after step 450 and goes on with masks

    The original starts at ``s = -3200``, where the threshold is exactly 0, and decays ``s`` as it does the weights; with
    its learning rates the thresholds come to life after many thousands of steps. The defaults here are ours, for trainings
    of a few hundred steps and more: ``init = -8``, a threshold of 3e-4, and a decay of ``s`` of its own,
    :meth:`parameter_groups`. More decay makes what the thresholds leave sparser, less of it leaves more to the exact cut.

    As a model under ``sparsify`` it counts steps in ``t``; freezing is its one update: ``round`` is 0, then 1.

    Args:
        model: changed in place, as by ``sparsify``: float32, bfloat16 or float16 weights of one device.
        sparsity: share of zeros in [0, 1) after freezing, over all layers together; None: what the thresholds have cut.
        init: what ``s`` starts at in every layer.
        freeze_at: the number of steps after which :meth:`step` freezes; None: only :meth:`freeze` does.
        method, schedule, seed, track_exploration: of the SparseModel, as for ``sparsify``; default method static.
            With counters all weights count as active in the round before freezing.
        include, exclude: as for ``sparsify``. Tied weights are refused, exclude them.

    Raises:
        ValueError: nothing to make sparse, weights that are sparse already or tied, a number out of range. TypeError: a dtype
            or a rule that is not supported. The model has not changed then.
    """

    key = "str"
    name = "STR"

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | None = None,
        *,
        init: float = -8.0,
        freeze_at: int | None = None,
        method: Method | None = None,
        schedule: UpdateSchedule | None = None,
        seed: SupportsIndex = 0,
        include: Rules = None,
        exclude: Rules = None,
        track_exploration: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a Module, got {type(model).__name__}")
        if not is_number(init):
            raise ValueError(f"init must be a finite number, the logit of the first threshold, got {init!r}")
        if sparsity is not None and not is_number(sparsity):
            raise TypeError(f"sparsity must be a number or None, got {sparsity!r}")
        if freeze_at is not None and not is_int(freeze_at, 1, 2**63 - 1):
            raise ValueError(f"freeze_at must be a number of steps, at least 1, got {freeze_at!r}")
        for what, value, kind in (("method", method, Method), ("schedule", schedule, UpdateSchedule)):
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{what} must be a {kind.__name__}, got {type(value).__name__}")
        if any(isinstance(module, LearnedThreshold) for module in model.modules()):
            raise ValueError("the model has learned thresholds already: go on with the SoftThreshold that made them")
        chosen = select(model, include, exclude).chosen
        masked = masked_parameters()
        for c in chosen:
            if id(c.param) in masked:
                raise ValueError(f"{c.name} is sparse already: take it out of its SparseModel first, sparse.remove({c.name!r})")
        layers = soft_layers(chosen, float(init))
        self.model = model
        self.sparsity = sparsity
        self.freeze_at = freeze_at
        self.shift: float | None = None
        """How far freezing moved the logits to meet ``sparsity``: above 0 where the thresholds had cut too little."""
        self.sparse: SparseModel | None = None
        """The masks, once they are frozen."""
        self._layers = {layer.name: layer for layer in layers}
        self._method = Static() if method is None else method
        self._schedule = UpdateSchedule() if schedule is None else schedule
        self._seed, self._counted = index(seed), track_exploration
        self._t = 0
        self._used: tuple[int | Tensor, int] = 0, 0  # active weights summed over the steps of step(), and their number
        self._total()
        for layer in layers:
            layer.put_on()

    def __repr__(self) -> str:
        phase = "soft" if self.sparse is None else "frozen"
        return f"SoftThreshold({len(self._layers)} layers, {self.nnz:,} of {self.numel:,} weights active, {phase}, t={self.t})"

    # --- looking ---------------------------------------------------------------------------------------------------------

    @property
    def t(self) -> int:
        """Optimizer steps so far."""
        return self._t if self.sparse is None else self.sparse.t

    @property
    def round(self) -> int:
        """0 in the soft phase; freezing is the first mask update."""
        return 0 if self.sparse is None else self.sparse.round

    @property
    def method(self) -> Method:
        """The method of the SparseModel, from freezing on."""
        return self._method if self.sparse is None else self.sparse.method

    @property
    def schedule(self) -> UpdateSchedule:
        return self._schedule if self.sparse is None else self.sparse.schedule

    @property
    def seed(self) -> int:
        return self._seed if self.sparse is None else self.sparse.seed

    @property
    def numel(self) -> int:
        """Weights of all layers."""
        return sum(layer.weight.numel() for layer in self._layers.values())

    @property
    def nnz(self) -> int:
        """Weights that are not 0 for the model: beyond the thresholds, or in the masks. A host sync in the soft phase."""
        return int(count_beyond(self._soft()).sum()) if self.sparse is None else self.sparse.nnz

    def density(self) -> float:
        """Share of the weights that are not 0 for the model."""
        return self.nnz / self.numel

    def mean_density(self) -> float:
        """The mean over the steps that :meth:`step` made of the :meth:`density` that they computed with."""
        active, steps = self._used
        return int(active) / (steps * self.numel) if steps else self.density()

    def masks(self) -> dict[str, Tensor]:
        """Which weights are not 0 for the model, by parameter name: bool, shape and strides of the weight."""
        if self.sparse is not None:
            return self.sparse.masks()
        return {layer.name: layer.active() for layer in self._soft()}

    def thresholds(self) -> dict[str, nn.Parameter]:
        """The learned ``s`` by the name of the weight that they cut; the threshold is their sigmoid."""
        return {name: layer.logit for name, layer in self._layers.items()}

    def summary(self) -> SoftSummary | Summary:
        """Per layer and in all, to print: in the soft phase with the thresholds, then that of the SparseModel."""
        if self.sparse is not None:
            return self.sparse.summary()
        return summarize(self._soft())

    # --- training --------------------------------------------------------------------------------------------------------

    def parameter_groups(self, decay: float = 0.02) -> list[dict[str, Any]]:
        """Two groups for an optimizer: all other parameters, and the thresholds with a weight decay of their own.

        The decay pulls ``s`` up, the gradient holds it down: where they meet is what the method finds. The default is ours, of
        an MLP on MNIST (784-300-100-10, 6,400 images, 600 steps of SGD, lr .1 cosine, Nesterov .9, weight decay 5e-4, frozen
        after 450): .02 leaves 7 % of the weights before the cut and gives 94.4 / 94.4 / 93.9 / 92.5 % at sparsity .90 / .95 /
        .98 / .99, half of it leaves 18 % and gives 94.9 / 94.6 / 93.4 / 90.5 %. A training with n times the sum of
        lr / (1 - momentum) over its soft steps, about 340 there, gets as far with less: try decay / n first.

        Args:
            decay: ``weight_decay`` of the thresholds.

        Returns:
            dicts with named parameters, as ``torch.optim`` takes them.
        """
        soft = self._soft()
        ids = {id(layer.logit) for layer in soft}
        named = list(self.model.named_parameters())
        return [
            {"params": [(name, p) for name, p in named if id(p) not in ids]},
            {"params": [(name, p) for name, p in named if id(p) in ids], "weight_decay": decay},
        ]

    def step(self, *optimizers: Stepper, closure: Closure | None = None, scaler: torch.amp.GradScaler | None = None) -> bool:
        """The optimizer's step; after that of ``freeze_at`` the thresholds become masks. Frozen it is the SparseModel's step.

        Args:
            optimizers, closure, scaler: as for :meth:`SparseModel.step`. A step that is skipped does not count.

        Returns:
            True when masks changed: at the step that freezes.

        Raises:
            ValueError: the optimizers do not hold the weights and thresholds. Nothing has changed then.
        """
        active, steps = self._used
        if self.sparse is not None:
            nnz, t = self.sparse.nnz, self.sparse.t
            changed = self.sparse.step(*optimizers, closure=closure, scaler=scaler)
            if self.sparse.t > t:
                self._used = active + nnz, steps + 1
            return changed
        steppers = [_optimizer_step.owner(optimizer) for optimizer in optimizers]
        held: set[int] = set().union(*(_optimizer_state.held_by(one.core) for one in steppers))
        missing = [
            layer.name for layer in self._soft() for p in (layer.weight, layer.logit) if p.requires_grad and id(p) not in held
        ]
        if missing:
            raise ValueError(
                f"the optimizer does not hold the weight or the threshold of {', '.join(dict.fromkeys(missing))}: make it "
                "after SoftThreshold, over model.parameters() or soft.parameter_groups()"
            )
        if closure is not None and len(steppers) > 1:
            raise ValueError("a closure belongs to one optimizer: call it, and backward, before stepping several")
        if scaler is not None and not scaler.is_enabled():
            scaler = None
        beyond = count_beyond(self._soft()).sum()
        if not any([_optimizer_step.run_step(one.optimizer, one.core, closure, scaler) for one in steppers]):
            return False
        self.__dict__.update(_t=self._t + 1, _used=(active + beyond, steps + 1))
        if self._t != self.freeze_at:
            return False
        self.freeze()
        return True

    def freeze(self, *, method: Method | None = None, schedule: UpdateSchedule | None = None) -> SparseModel:
        """Takes the thresholds off and returns the masks; goes on with ``method`` where one is given.

        With a target, one shift of all ``s`` is searched under which that many weights are beyond the thresholds; the exact
        number are those furthest beyond. Weights keep the values that the model computed with; where the shift is below 0,
        because the thresholds had cut more than the target, those that it takes back have what the lower thresholds leave.

        Raises:
            RuntimeError: it was frozen already.
        """
        layers = self._soft()
        total = self._total()
        if total is None:
            shift, masks = 0.0, [layer.active() for layer in layers]
        else:
            shift = find_shift(layers, total)
            masks = largest_margins(layers, shift, total)
        values = [layer.values(min(shift, 0.0)) for layer in layers]
        with self._taking_off():
            sparse = self._masked(dict(zip(self._layers, masks, strict=True)), method, schedule)
        with torch.no_grad():
            for layer, mask, value in zip(layers, masks, values, strict=True):
                layer.weight.copy_(value.masked_fill_(~mask, 0))
                layer.logit.grad = None  # an optimizer that holds it leaves it alone from now on
        self.__dict__.update(sparse=sparse, shift=shift)
        return sparse

    def _soft(self) -> Sequence[SoftLayer]:
        if self.sparse is not None:
            raise RuntimeError("the thresholds are frozen already: the masks are in .sparse")
        return list(self._layers.values())

    def _total(self) -> int | None:
        """The number of active weights that ``sparsity`` means."""
        if self.sparsity is None:
            return None
        return sparsity_distribution.uniform({"all layers": [self.numel]}, float(self.sparsity))["all layers"]

    @contextmanager
    def _taking_off(self) -> Iterator[None]:
        """The thresholds are off inside and afterwards; on again after an exception."""
        for layer in self._layers.values():
            layer.take_off()
        try:
            yield
        except BaseException:
            for layer in self._layers.values():
                layer.put_on()
            raise

    def _masked(self, masks: Mapping[str, Tensor], method: Method | None, schedule: UpdateSchedule | None) -> SparseModel:
        """The SparseModel of these masks after the update that brought them, in a model whose thresholds are off."""
        sparse = from_masks(
            self.model, masks, method=method or self._method, schedule=schedule or self._schedule, seed=self._seed,
            track_exploration=self._counted,
        )  # fmt: skip
        for kept in sparse.layers.values():
            if kept.counts is not None:  # every weight was active in the round before
                active = kept.active()
                kept.counts = ops.encode_counts(active.int() + 1, active, 1)
        sparse.set_progress(self._t, 1)
        return sparse

    # --- checkpoints -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Phase and progress, a plain dict; weights and thresholds are in the model's own ``state_dict``, masks in "sparse"."""
        return {
            "format_version": FORMAT_VERSION,
            "t": self.t,
            "sparsity": self.sparsity,
            "freeze_at": self.freeze_at,
            "shift": self.shift,
            "used": [int(number) for number in self._used],
            "layers": {name: list(layer.weight.shape) for name, layer in self._layers.items()},
            "sparse": None if self.sparse is None else self.sparse.state_dict(full=True),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resumes bit for bit from :meth:`state_dict`, in the phase that it was taken in.

        Call it before ``model.load_state_dict``: the names of a frozen model are others than those of the soft phase. The
        optimizer is made before that, over the soft model, so that its parameters are in the order that they were saved in.

        Raises:
            ValueError: listing what is wrong; or the state is of the soft phase, this one is frozen. Nothing has changed then.
        """
        state = _checked(state_dict, {name: list(layer.weight.shape) for name, layer in self._layers.items()})
        masks, sparse = state["sparse"], self.sparse
        if masks is None and sparse is not None:
            raise ValueError("the state is of the soft phase and this one is frozen: make a new SoftThreshold of a new model")
        if masks is not None and sparse is not None:
            sparse.load_state_dict(masks, strict=False)  # another run has other numbers of weights
        elif masks is not None:
            with self._taking_off():
                sparse = self._masked({n: torch.ones(layer.weight.shape) for n, layer in self._layers.items()}, None, None)
                try:
                    sparse.load_state_dict(masks, strict=False)
                except BaseException:
                    sparse.remove(*sparse.layers)
                    raise
        progress = {key: state[key] for key in ("sparsity", "freeze_at", "shift")}
        self.__dict__.update(progress, _t=state["t"], _used=tuple(state["used"]), sparse=sparse)


def _checked(state: object, shapes: Mapping[str, list[int]]) -> Mapping[str, Any]:
    """``state`` if it is one of layers of these ``shapes``; its masks are left to ``SparseModel.load_state_dict``."""
    keys = {"format_version", "t", "sparsity", "freeze_at", "shift", "used", "layers", "sparse"}
    if not isinstance(state, Mapping) or not is_int(state.get("format_version"), FORMAT_VERSION, FORMAT_VERSION):
        raise ValueError("the state of a SoftThreshold must be a dict made by SoftThreshold.state_dict of this format")
    if odd := sorted(map(str, keys ^ state.keys())):
        raise ValueError(f"cannot load the state, nothing was changed: {', '.join(odd)} is missing or unknown")
    masks, wrong = state["sparse"], []
    if not is_int(state["t"], 0, 2**63 - 1):
        wrong.append(f"t must be a step number, got {state['t']!r}")
    if state["sparsity"] is not None and not (is_number(state["sparsity"], 0, 1) and state["sparsity"] < 1):
        wrong.append(f"sparsity must be in [0, 1) or None, got {state['sparsity']!r}")
    if state["freeze_at"] is not None and not is_int(state["freeze_at"], 1, 2**63 - 1):
        wrong.append(f"freeze_at must be a step number, got {state['freeze_at']!r}")
    if (state["shift"] is None) != (masks is None) or (masks is not None and not is_number(state["shift"])):
        wrong.append(f"shift must be a number in the frozen phase and None before, got {state['shift']!r}")
    used = state["used"]
    if not (isinstance(used, list) and len(used) == 2 and all(is_int(number, 0, 2**63 - 1) for number in used)):
        wrong.append(f"used must be two numbers, got {used!r}")
    if state["layers"] != shapes:
        wrong.append(f"it is of layers {state['layers']!r}, the model has {shapes!r}")
    if masks is not None and not (
        isinstance(masks, Mapping) and isinstance(masks.get("layers"), Mapping) and masks["layers"].keys() == shapes.keys()
    ):
        wrong.append("the masks are not those of these layers")
    if wrong:
        raise ValueError("cannot load the state, nothing was changed:\n  " + "\n  ".join(wrong))
    return state
