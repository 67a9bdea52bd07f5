"""One mask update, decided before the step that carries it, and what a model and an optimizer ask of each other for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dstee import _checks, ops
from dstee.distributed.ranks import sets_of_ranks
from dstee.distributed.where import local_part
from dstee.layer_batch import LayerBatch
from dstee.layer_shares import agree_on_shares, is_cut, refuse_parts
from dstee.methods import Action, KeepGlobal, Method, Project, Random, SetDensity, Swap, Update, growth_seeds
from dstee.sparse_layer import SparseLayer

__all__ = ["FusingOptimizer", "Journal", "MaskKeeper", "MaskUpdate", "as_fusing"]


@dataclass(frozen=True)
class MaskUpdate:
    """What the update at a step does. An optimizer may carry it in its step where ``swap`` is set; ``SparseModel`` does the
    rest."""

    context: Update
    method: Method
    actions: Sequence[Action]
    allow_missing_gradients: bool = False

    @classmethod
    def make(cls, context: Update, method: Method, allow_missing_gradients: bool = False) -> MaskUpdate:
        """What ``method`` plans for ``context``.

        Raises:
            ValueError: the counters cannot hold another round, or a bonus has no signal to scale with. TypeError: it has
                planned something else than actions.
        """
        if method.needs_counter:
            _checks.check_round(context.round)
        if any(layer.holders for layer in context.layers):
            refuse_parts(method)
        actions = method.plan(context)
        if not isinstance(actions, (list, tuple)):
            raise TypeError(f"{method.name}.plan must return a list of actions, got {type(actions).__name__}")
        for i, action in enumerate(actions):
            if not isinstance(action, (Swap, KeepGlobal, Project, SetDensity)):
                raise TypeError(
                    f"{method.name}.plan returned {type(action).__name__} at [{i}], expected a Swap, KeepGlobal, Project or "
                    "SetDensity"
                )
            bonus = action.bonus if isinstance(action, Swap) and isinstance(action.grow_by, Random) else None
            if bonus is not None and bonus.dtype is torch.float64:
                raise ValueError(
                    f"{method.name}.plan returned a Swap at [{i}] with a bonus in units of the signal (float64), but growth at "
                    "random has none: use a float32 bonus, or grow by a signal"
                )
        return cls(context, method, actions, allow_missing_gradients)

    @property
    def t(self) -> int:
        return self.context.t

    @property
    def round(self) -> int:
        return self.context.round

    @property
    def swap(self) -> Swap | None:
        """The one swap that this update is, where the step may carry it."""
        action = self.actions[0] if len(self.actions) == 1 else None
        alone = type(self.method).after_step is Method.after_step  # else it comes between the two
        return action if isinstance(action, Swap) and action.is_fusible and alone else None

    def swaps(self, layer: SparseLayer) -> int:
        """k of one layer; a dense layer has nothing to grow, a frozen one is left out."""
        nnz = layer.nnz
        if nnz == layer.numel or not layer.param.requires_grad:
            return 0
        return self.context.schedule.swap_count(nnz, self.t)

    def reaches(self, layer: SparseLayer) -> bool:
        """False for layers that the update leaves out: frozen ones, and, where that is allowed, those without a gradient."""
        if not layer.param.requires_grad:
            return False
        return not (self.method.needs_gradients and layer.param.grad is None)

    def check_gradients(self, layers: Iterable[SparseLayer]) -> None:
        """Raises RuntimeError naming trainable layers that have no gradient to grow by, ValueError where counters are full.

        Where weights are cut among ranks, all of these must come here together, and raise the same.
        """
        layers = list(layers)
        if any(layer.counts is not None for layer in layers):
            _checks.check_round(self.round)
        if not self.method.needs_gradients:
            return
        grads = [layer.param.grad for layer in layers if layer.param.grad is not None]
        some = any(bool(local_part(grad).any()) for grad in grads)  # as a rule, the first of them ends this
        missing = [layer.name for layer in layers if layer.param.grad is None and layer.param.requires_grad]
        if is_cut(layers):
            missing, some = _on_all_ranks(layers, missing, some)
        if missing and not self.allow_missing_gradients:
            raise RuntimeError(
                f"a mask update is due, but these sparse weights have no gradient: {', '.join(missing)}. Update after backward "
                "and before zero_grad; freeze (requires_grad_(False)) or exclude layers that the loss never reaches; where it "
                "reaches others at each step (LayerDrop, experts), set sparse.allow_missing_gradients = True to leave out "
                "those without a gradient"
            )
        if grads and not some:
            raise RuntimeError(
                "a mask update is due, but all gradients of the sparse weights are 0, so growth would be by index alone: "
                "update after backward and before zero_grad"
            )

    def apply(self, batch: LayerBatch) -> None:
        """The ``swap`` in the layers of ``batch``, after its step where it has one. Nothing has changed when it raises."""
        swap = self.swap
        assert swap is not None
        k = [self.swaps(layer) for layer in batch.layers]
        bonus = None if swap.bonus is None else swap.bonus.to(batch.device, non_blocking=True)
        names = [layer.name for layer in batch.layers]
        seeds = self.seeds(swap.grow_by, names) if isinstance(swap.grow_by, Random) else None
        round = self.round if batch.counts else 0  # only counters limit it
        regrow = self.method.regrow if swap.regrow is None else swap.regrow
        k_grow = where = scale = None
        rule = batch.rule
        if is_cut(batch.layers):
            if rule is not None:  # ranks agree on the weights that the step leaves
                ops.masked_sgd_(batch.params, batch.grads, batch.momenta or None, batch.mask_bits, sgd=rule)
                rule = None
            k, k_grow, scale = agree_on_shares(batch, k, None, bonus=bonus, round=round, grow_seeds=seeds, regrow=regrow)
            where = [layer.where.place for layer in batch.layers]
        elif bonus is not None and bonus.dtype is torch.float64:
            scale = ops.growth_scale(batch.grads, batch.mask_bits, k, self.round)
        ops.drop_grow_(
            batch.params,
            batch.grads or None,
            batch.momenta or None,
            batch.mask_bits,
            batch.counts or None,
            k,
            k_grow=k_grow,
            bonus=bonus,
            bonus_scale=scale,
            round=round,
            grow_seeds=seeds,
            where=where,
            regrow=regrow,
            reset_regrown=self.method.reset_regrown,
            sgd=rule,
            packed_momenta=batch.packed,
        )

    def seeds(self, random: Random, names: Sequence[str]) -> list[int]:
        return growth_seeds(self.context.seed, names, self.round, random.tag)


@dataclass(frozen=True)
class Journal:
    """An update under way: what ``t``, ``round`` and the method's numbers will be if an exception ends it, and the masks before
    it. It is left to be settled then."""

    t: int
    round: int
    numbers: dict[str, Tensor]
    before: dict[str, Tensor]


def _on_all_ranks(layers: Sequence[SparseLayer], missing: Sequence[str], some: bool) -> tuple[list[str], bool]:
    """The layers without a gradient and whether any gradient is not 0, over the ranks that hold parts of the layers: one
    all-reduce for each set of ranks, small ones first, so that all ranks hear what one of these finds.

    Raises:
        RuntimeError: a layer has a gradient on some ranks and none on others.
    """
    uneven = [False] * len(layers)
    without = [int(layer.name in missing) for layer in layers]
    for ranks in sets_of_ranks(layer.everyone for layer in layers):
        here = torch.tensor([int(some), *without, *map(int, uneven)], dtype=torch.int64)
        found = ranks.reduce(here).tolist()
        some, counted, told = found[0] > 0, found[1 : len(layers) + 1], found[len(layers) + 1 :]
        uneven = [0 < n < len(ranks.members) or heard > 0 for n, heard in zip(counted, told, strict=True)]
    if any(uneven):
        names = ", ".join(layer.name for layer, odd in zip(layers, uneven, strict=True) if odd)
        raise RuntimeError(
            f"a mask update is due, but only some ranks have a gradient of {names}: every rank must run the same forward and "
            "backward before an update"
        )
    return list(missing), some


class MaskKeeper(Protocol):
    """What an optimizer that masks its own step asks of the ``SparseModel`` whose weights it holds."""

    @property
    def layers(self) -> dict[str, SparseLayer]: ...

    def attach(self, optimizer: FusingOptimizer, first: bool = True) -> None:
        """``update()`` without an argument means this optimizer from now on; with ``first=False``, if it means none yet."""

    def is_stepping(self) -> bool:
        """Whether the step is one of the model's own, :meth:`SparseModel.step`."""

    def begin_step(self, optimizer: torch.optim.Optimizer) -> tuple[dict[int, SparseLayer], MaskUpdate | None]:
        """The layers by id of their parameter, and the update that this step is to carry, if any.

        Raises:
            ValueError: ``optimizer`` does not hold the sparse weights, or weights and masks do not belong together.
            RuntimeError: an update is due and a sparse weight has no gradient. Nothing has changed in either case.
        """

    def end_step(self, optimizer: FusingOptimizer, updated: Sequence[SparseLayer]) -> None:
        """The step was made, and carried the update for the layers ``updated``."""

    def check_at_next_step(self) -> None:
        """State was loaded: weights, masks and optimizer state are held against each other before the next step."""


class FusingOptimizer(Protocol):
    """An optimizer whose step leaves inactive weights alone and carries the update that is due (``SparseSGD``)."""

    sparse: MaskKeeper

    def momentum_buffer(self, layer: SparseLayer) -> Tensor | None:
        """The momentum of the layer's weight, laid out like the weight; None before its first step with momentum."""

    def pack_momenta(self, layers: Iterable[SparseLayer]) -> None:
        """Of ``layers`` that had an update after the step: what :meth:`momentum_buffer` gave out may be stored as ever."""


def as_fusing(optimizer: object) -> FusingOptimizer | None:
    """``optimizer`` where it masks its own step. (Every step asks, and ``isinstance`` of a protocol is slow.)"""
    fusing = hasattr(optimizer, "sparse") and hasattr(optimizer, "momentum_buffer")
    return optimizer if fusing else None  # type: ignore[return-value]
