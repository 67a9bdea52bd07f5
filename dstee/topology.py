"""Topology: masks, counters and schedule of a model's sparse layers, and the steps that change them."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from dstee import _optimizer_state, _optimizer_step, after_step, interpreter, method_hooks, ops
from dstee._optimizer_step import Closure, Stepper
from dstee.distributed.check import check_copies, check_parts, check_update, meet
from dstee.mask_update import FusingOptimizer, Journal, MaskUpdate
from dstee.methods import Method, Step, Update
from dstee.methods.context import LossFn
from dstee.one_at_a_time import OneAtATime
from dstee.schedule import UpdateSchedule
from dstee.sparse_layer import SparseLayer
from dstee.weight_watch import CheckedWeights, WeightWatch

__all__ = ["Topology"]

UNCOUNTED = 20  # steps of a fusing optimizer that nobody counts, after which one warning is due


class Topology(CheckedWeights):
    """The part of :class:`dstee.SparseModel` that changes masks.

    A step is all or nothing: an exception in it, KeyboardInterrupt too, leaves masks, counters, ``t`` and ``round`` that
    belong together. What changes together is written by one call, or, over many layers, under a journal.
    """

    def __init__(self, model: nn.Module, layers: dict[str, SparseLayer], method: Method, schedule: UpdateSchedule, seed: int):
        super().__init__(model, layers)
        self._method = method
        self._schedule = schedule
        self.seed = seed
        self.budget = {name: layer.nnz for name, layer in layers.items()}
        """Active weights of each layer at the target sparsity, which methods that start denser end with."""
        self.batches: Iterable[tuple[Any, Any]] | None = None
        self.loss_fn: LossFn = torch.nn.functional.cross_entropy
        """With ``batches``, data for methods that look at it, as ``sparsify`` got them; no part of any state."""
        self._numbers = method_hooks.fresh_numbers(method, layers.values())
        self._t = 0
        self._round = 0
        self._journal: Journal | None = None
        self._busy: OneAtATime | None = None  # the step or update under way
        self._optimizer: weakref.ref[FusingOptimizer] | None = None
        self._pending: MaskUpdate | None = None  # for the optimizer's next step alone
        self._stepped = self._ended = False  # a fusing optimizer made a step: one not counted yet; one since it was called
        self._updated: set[str] = set()  # layers whose update that step carried
        self._together: list[torch.optim.Optimizer] = []  # who steps now
        self._known: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()  # whose state can be reset
        self._uncounted = 0
        self.allow_missing_gradients = False

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        passing: dict[str, Any] = {
            "_optimizer": None,
            "_busy": None,
            "_pending": None,
            "_together": [],
            "batches": None,  # may be a loader of any size, a generator
            "loss_fn": torch.nn.functional.cross_entropy,
            "_watch": WeightWatch(),
            "_compared": False,
        }
        return {name: value for name, value in (self.__dict__ | passing).items() if name != "_known"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _known=weakref.WeakSet())

    @property
    def t(self) -> int:
        """Optimizer steps so far."""
        self._settle()
        return self._t

    @property
    def round(self) -> int:
        """Mask updates so far."""
        self._settle()
        return self._round

    @property
    def method(self) -> Method:
        """What an update ranks; another one may take its place between steps."""
        return self._method

    @method.setter
    def method(self, method: Method) -> None:
        if not isinstance(method, Method):
            raise TypeError(f"method must be a Method, got {type(method).__name__}")
        without = [layer.name for layer in self.layers.values() if layer.counts is None]
        if method.needs_counter and without:
            raise ValueError(
                f"{method.name} needs counters, which {', '.join(without[:3])}{', ...' * (len(without) > 3)} do not have: "
                "make the model sparse with track_exploration=True"
            )
        method_hooks.refuse_without_stop(method, self._schedule)
        if type(method) is not type(self._method):  # what the other one remembers means nothing to it
            self._numbers = method_hooks.fresh_numbers(method, self.layers.values())
            for layer in self.layers.values():
                layer.state = {}
        self._method = method

    @property
    def schedule(self) -> UpdateSchedule:
        """When updates fall and how much they swap; another one may take its place between steps."""
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: UpdateSchedule) -> None:
        if not isinstance(schedule, UpdateSchedule):
            raise TypeError(f"schedule must be an UpdateSchedule, got {type(schedule).__name__}")
        method_hooks.refuse_without_stop(self._method, schedule)
        self._schedule = schedule

    def set_progress(self, t: int, round: int) -> None:
        """For masks and counters that come from elsewhere: the steps and updates that made them."""
        self.__dict__.update(_t=t, _round=round)

    # --- stepping --------------------------------------------------------------------------------------------------------

    def step(self, *optimizers: Stepper, closure: Closure | None = None, scaler: torch.amp.GradScaler | None = None) -> bool:
        """The whole step: the optimizer's, and a mask update when one is due. Call it after backward, before zero_grad.

        Any torch optimizer will do, wrapped or not, if it holds the model's sparse weights; with :class:`SparseSGD` step and
        update are one sweep, with others weights and parameter-shaped state are masked again afterwards. A step that the
        optimizer or the ``scaler`` skips (not finite gradients, accumulation in a wrapper) changes nothing and does not count.

        Args:
            optimizers: one, or several that hold the sparse weights together; the ``step`` of each is called, hooks and all,
                but for a due step of a method with ``order="replace"``.
            closure: as for ``optimizer.step``; with one optimizer only.
            scaler: calls ``scaler.step(optimizer)``; ``scaler.update()`` stays with the caller.

        Returns:
            True when the topology changed.

        Raises:
            ValueError: the optimizer does not hold the sparse weights; loaded weights and masks do not belong together.
            TypeError: its state cannot be reset for single weights. RuntimeError: an update is due and a sparse weight has no
            gradient (named), or these gradients were stepped already. Nothing has changed then.
        """
        steppers = self._steppers(optimizers)
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        if scaler is not None and closure is not None:
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")  # torch's own text
        if closure is not None and len(steppers) > 1:
            raise ValueError("a closure belongs to one optimizer: call it, and backward, before stepping several")
        with OneAtATime(self, "step"):
            if self._stepped and closure is None and self._watch.same_gradient(self.layers.values()):
                raise RuntimeError(
                    "these gradients were stepped already, by optimizer.step(): call sparse.update() after that, "
                    "or sparse.step(optimizer) instead of it, not both"
                )
            update = self._due([one.core for one in steppers])
            if update is not None and self.method.order == "replace":
                return self._replace(steppers, update, closure, scaler)
            others = [one.core for one in steppers if one.fusing is None]
            together = [one.core for one in steppers]
            if others:
                self._layers_of(together, full=update is not None)
                if update is not None:
                    closure = _optimizer_step.before_step(closure, partial(update.check_gradients, self.layers.values()))
            hooked = others if method_hooks.overrides(self.method, "before_step") else []
            if hooked and closure is not None:
                closure, hooked = _optimizer_step.before_step(closure, partial(self._change_gradients, others[0])), []
            hooks = []
            first = [_optimizer_state.FirstStep(core, self.layers.values()) for core in others if core not in self._known]
            self._pending, self._together, self._torn = update, together, bool(others)
            try:
                for core in hooked:  # runs when the optimizer really steps, with gradients that a GradScaler has unscaled
                    hooks.append(core.register_step_pre_hook(lambda one, *_: self._change_gradients(one)))
                performed = [self._run(one, closure, scaler) for one in steppers]
                for one in first:
                    one.check()
                self._known.update(others)
            finally:
                self._pending, self._together = None, []
                for hook in hooks:
                    hook.remove()
            self._torn = self._torn and any(performed)
            return any(performed) and self._finish(steppers, update)

    def update(self, *optimizers: Stepper | None) -> bool:
        """What :meth:`step` does besides the optimizer's step, for hosts that own that step: call it right after.

        After a step that a GradScaler skipped, :class:`SparseSGD` knows and nothing counts; of other optimizers the caller must
        know, and pass them.

        Returns:
            True when the topology changed.

        Raises:
            RuntimeError: as :meth:`step`; the method has ``order="replace"``; no optimizer is known.
        """
        stepped: list[Stepper | FusingOptimizer] = [one for one in optimizers if one is not None]
        if not stepped and self._optimizer is not None and (last := self._optimizer()) is not None:
            stepped = [last]
        if not stepped:
            raise RuntimeError("update() does not know who made the step: pass the optimizer, sparse.update(optimizer)")
        steppers = self._steppers(stepped)
        method_hooks.refuse_after_step(self.method, any(one.fusing is None for one in steppers))
        return self._count(steppers)

    def _count(self, steppers: Sequence[_optimizer_step.Owner]) -> bool:
        """:meth:`update`, for hosts that have seen to what must come before the step (``dstee.integrations``)."""
        with OneAtATime(self, "update"):
            foreign = any(one.fusing is None for one in steppers)
            if self._watch.nothing_happened(self.layers.values()) if foreign else not self._stepped:
                return False
            cores = [one.core for one in steppers]
            _optimizer_state.refuse_codes([core for core in cores if core not in self._known], self.layers.values())
            self._known.update(cores)
            self._torn = foreign  # it has written everywhere
            update = self._due(cores)
            self._layers_of(cores, full=update is not None, foreign=foreign)
            if update is not None:
                update.check_gradients(self.layers.values())
            return self._finish(steppers, update)

    # --- what a fusing optimizer asks (mask_update.MaskKeeper) -----------------------------------------------------------

    def attach(self, optimizer: FusingOptimizer, first: bool = True) -> None:
        """:meth:`update` without an argument means ``optimizer`` from now on; with ``first=False``, if it means none yet."""
        if first or self._optimizer is None or self._optimizer() is None:
            self._optimizer = weakref.ref(optimizer)

    def is_stepping(self) -> bool:
        """Whether the step is one of the model's own, :meth:`step`."""
        return bool(self._together)

    def begin_step(self, optimizer: torch.optim.Optimizer) -> tuple[dict[int, SparseLayer], MaskUpdate | None]:
        """For an optimizer that masks its own step, before it changes anything: the sparse layers by id of their parameter,
        and the mask update that the step is to carry.

        Raises:
            ValueError, RuntimeError: as :meth:`step`.
        """
        update, self._pending = self._pending, None
        layers = self._layers_of(self._together or [optimizer], full=update is not None)
        if update is not None:
            update.check_gradients(layers.values())
        if method_hooks.overrides(self.method, "before_step"):
            self._change_gradients(optimizer)
        if update is None or update.swap is None:
            return layers, None
        self._begin(update, self._numbers)
        return layers, update

    def end_step(self, optimizer: FusingOptimizer, updated: Sequence[SparseLayer]) -> None:
        """The step was made and carried the mask update of the layers ``updated``; :meth:`update` may count it."""
        self._watch.note_step(in_place=True)
        self.attach(optimizer)
        self._updated = {layer.name for layer in updated} | (self._updated if self._together else set())  # of several: all
        self._stepped = self._ended = True
        self._uncounted += 1
        if self._uncounted == UNCOUNTED and self.method.updates:
            warnings.warn(
                f"{UNCOUNTED} steps of the optimizer were not counted, so the masks do not change: call sparse.step(optimizer) "
                "instead of optimizer.step(), or sparse.update() after it",
                stacklevel=4,
            )

    # --- inside a step ---------------------------------------------------------------------------------------------------

    def _run(self, one: _optimizer_step.Owner, closure: Closure | None, scaler: torch.amp.GradScaler | None) -> bool:
        """The optimizer's step. False when it was skipped; a fusing optimizer itself says when not."""
        if one.fusing is None:
            return _optimizer_step.run_step(one.optimizer, one.core, closure, scaler)
        self._ended = False
        _optimizer_step.call_step(one.optimizer, closure, scaler)
        return self._ended

    def _due(self, optimizers: Sequence[torch.optim.Optimizer]) -> MaskUpdate | None:
        if not (self._method.updates and self._method.due(self._t + 1, self._schedule)):
            return None
        context = Update(**vars(self._context(optimizers)), budget=self.budget, model=self.model, batches=self.batches)
        update = MaskUpdate.make(context, self.method, self.allow_missing_gradients)
        if update.swap is None:
            interpreter.refuse_devices(list(self.layers.values()), update)
        meet(self, self._t + 1)
        return update

    def _change_gradients(self, core: torch.optim.Optimizer) -> None:
        method_hooks.run_before_step(self.method, self._context([core]), core)

    def _context(self, optimizers: Sequence[torch.optim.Optimizer]) -> Step:
        """What the step under way, of ``optimizers``, tells the method's hooks."""
        layers = [layer for layer in self.layers.values() if layer.follow().requires_grad]
        numbers = {key: x.to(layers[0].mask_bits.device) for key, x in self._numbers.items()} if layers else self._numbers
        return Step(self._t + 1, self._round, self.seed, self.schedule, layers, dict(numbers), optimizers)

    def _steppers(self, optimizers: Sequence[Stepper | FusingOptimizer]) -> list[_optimizer_step.Owner]:
        if not optimizers:
            raise TypeError("step() needs the optimizer that holds the sparse weights: sparse.step(optimizer)")
        owners = [_optimizer_step.owner(optimizer) for optimizer in optimizers]
        if any([one.fusing is not None and one.fusing.sparse is not self for one in owners]):
            raise ValueError("this SparseSGD belongs to another SparseModel: make it with the one that steps")
        return owners

    def _compare_ranks(self) -> None:
        if self._agreed > self._alike:  # the model was sharded since
            check_parts(self)
            self._alike = self._agreed
        if self._unchecked or not self._compared:
            check_copies(self)
            self._compared = True

    def _begin(self, update: MaskUpdate, numbers: dict[str, torch.Tensor]) -> Journal:
        """From here on the masks may change."""
        before = {name: layer.mask_bits.clone() for name, layer in self.layers.items()}
        self._journal = Journal(update.t, update.round + 1, numbers, before)
        return self._journal

    def _settle(self) -> None:
        """What an exception left of an update: it is counted if a mask has changed, and forgotten if none has."""
        journal = self._journal
        if journal is None or (self._busy is not None and self._busy.is_under_way()):
            return
        changed = {name for name, bits in journal.before.items() if not torch.equal(self.layers[name].mask_bits, bits)}
        for name, layer in self.layers.items():
            if changed:
                layer.previous_bits = journal.before[name] if name in changed else None
            if name in changed and layer.sharding is None:  # else only all ranks together could count
                layer.nnz = int(ops.count_active([layer.mask_bits]))
        done = {"_t": journal.t, "_round": journal.round, "_numbers": journal.numbers, "_stepped": False} if changed else {}
        self.__dict__.update(done, _journal=None, _updated=set())  # one call: no signal comes in between

    def _replace(
        self, steppers: Sequence[_optimizer_step.Owner], update: MaskUpdate, closure: Closure | None,
        scaler: torch.amp.GradScaler | None,
    ) -> bool:  # fmt: skip
        """``order="replace"``: the update alone, without the optimizers' step."""
        if closure is not None:
            with torch.enable_grad():
                closure()
        if any([_optimizer_step.accumulates(one.optimizer) for one in steppers]):
            return False
        self._layers_of([one.core for one in steppers], full=True)
        update.check_gradients(self.layers.values())
        if scaler is not None and not all([_optimizer_step.unscale(scaler, one.optimizer) for one in steppers]):
            return False
        return self._finish(steppers, update)

    def _finish(self, steppers: Sequence[_optimizer_step.Owner], update: MaskUpdate | None) -> bool:
        """After the optimizers' step: masks what they do not mask, updates what they have not updated, counts."""
        fusing = [one.fusing is not None for one in steppers]
        hooked = method_hooks.overrides(self.method, "after_step") and (update is None or self.method.order != "replace")
        round, numbers = self._round, self._numbers
        if update is not None or hooked or not all(fusing):  # else the step has seen to all of it
            with torch.no_grad():
                round, numbers = self._change(steppers, update, any(fusing), hooked)
        counted = {"_stepped": False, "_updated": set(), "_uncounted": 0} if any(fusing) else {}
        self.__dict__.update(counted, _t=self._t + 1, _round=round, _numbers=numbers, _journal=None, _torn=False)
        if update is not None:
            check_update(self)
        return update is not None

    def _change(
        self, steppers: Sequence[_optimizer_step.Owner], update: MaskUpdate | None, fused: bool, hooked: bool
    ) -> tuple[int, dict[str, torch.Tensor]]:
        """What :meth:`_finish` does to weights and masks; ``round`` and the method's numbers afterwards."""
        owners = _optimizer_step.owners_of(self.layers.values(), steppers)
        self._torn = True
        after_step.mask(owners, self.layers.values())
        round, numbers = self._round, self._numbers
        if hooked:
            context = self._context([one.core for one in steppers]) if update is None else update.context
            self.method.after_step(context)
            for layer in self.layers.values():
                layer.clear_outside()
            numbers = method_hooks.left_by_hooks(self.method, context)
        if update is not None:
            journal = self._journal or self._begin(update, numbers)  # the step that carried the update has begun it
            done = self._updated if fused else set()
            swapped = {name for name, layer in self.layers.items() if name in done or update.reaches(layer)}
            rest = [self.layers[name] for name in self.layers if name in swapped - done]
            if update.swap is not None:
                after_step.swap(owners, update, rest, journal.before)
            elif rest:
                after_step.execute(owners, update, rest)
            numbers = method_hooks.left_by_hooks(self.method, update.context)
            for name, layer in self.layers.items():  # in others nothing grew
                layer.previous_bits = journal.before[name] if name in swapped else None
            round += 1
        self._watch.note_step(in_place=False)
        return round, numbers
