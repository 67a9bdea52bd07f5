"""Executes what a method has planned for an update, action by action, over all layers at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dstee import ops
from dstee.distributed import agree
from dstee.distributed.ranks import exchange
from dstee.layer_batch import LayerBatch
from dstee.layer_shares import agree_on_shares, is_cut, whole_numbers
from dstee.mask_update import MaskUpdate
from dstee.methods import Action, KeepGlobal, Project, Random, SetDensity, Swap, Update
from dstee.methods.actions import Amount, Signal
from dstee.sparse_layer import LaterCounts, SparseLayer

__all__ = ["execute", "refuse_devices"]


def refuse_devices(layers: Sequence[SparseLayer], update: MaskUpdate) -> None:
    """Raises ValueError for layers on several devices, over which an update other than a plain swap cannot rank."""
    devices = {layer.param.device for layer in layers}
    if len(devices) > 1:
        raise ValueError(
            f"{update.method.name} updates all layers together, but they lie on {', '.join(sorted(map(str, devices)))}: move "
            "the model to one device, or use a method that swaps layer by layer (DSTEE, RigL, SET)"
        )


@torch.no_grad()
def execute(update: MaskUpdate, layers: list[SparseLayer], momenta: list[Tensor]) -> None:
    """All actions of ``update`` on ``layers``, which it reaches; afterwards ``layer.nnz`` is what they have left active.

    Args:
        momenta: laid out like the weights; 0 afterwards wherever a weight was dropped, even if it came back.

    Raises:
        ValueError, TypeError: an action asks for what the layers do not have; RuntimeError: the number of active weights is not
            what the method says. Actions before it have been done then.
    """
    bits = [layer.mask_bits for layer in layers]
    cut = is_cut(layers)
    # On a GPU the numbers stay there until somebody asks: reading them would wait for everything before.
    checked = bits[0].device.type == "cpu" or os.environ.get("DSTEE_CHECK_TOTALS") == "1"
    before = update.context.nnz.tolist() if checked else []
    expected = update.method.total(update.context) if checked and update.method.moves_budgets else None
    for action in update.actions:
        _Pass(update, layers, momenta).run(action)
    after = update.context.over_ranks(ops.count_active(bits)) if checked or not cut else update.context.nnz
    if checked:
        _check_totals(update, layers, before, after.tolist(), expected)
    if update.method.moves_budgets and not cut:
        counts = LaterCounts(after)
        for i, layer in enumerate(layers):
            layer.nnz = counts, i


def _check_totals(
    update: MaskUpdate, layers: Sequence[SparseLayer], before: list[int], after: list[int], expected: int | None
) -> None:
    name = update.method.name
    if expected is None:
        for layer, old, new in zip(layers, before, after, strict=True):
            if old != new:
                raise RuntimeError(
                    f"{name} changed the active weights of {layer.name} from {old} to {new} at step {update.t}: a method that "
                    "moves budgets must say so, moves_budgets = True, and total() what they add up to"
                )
    elif sum(after) != expected:
        raise RuntimeError(
            f"{name} left {sum(after)} weights active at step {update.t}, its total() says {expected} "
            f"(there were {sum(before)})"
        )


class _Pass:
    """One action: what it takes, and the op that does it."""

    def __init__(self, update: MaskUpdate, layers: list[SparseLayer], momenta: list[Tensor]):
        self.update, self.u, self.layers, self.momenta = update, update.context, layers, momenta
        self.params: list[Tensor] = [layer.local for layer in layers]
        self.mask_bits = [layer.mask_bits for layer in layers]
        self.counts = [layer.counts for layer in layers if layer.counts is not None] or None
        self.round = update.round if self.counts else 0  # only counters limit it
        self.device = self.params[0].device

    def run(self, action: Action) -> None:
        if isinstance(action, Swap):
            self.swap(action)
        elif isinstance(action, KeepGlobal):
            total = action.total(self.u) if callable(action.total) else action.total
            scores = None if action.by is None else self.signal("KeepGlobal.by", action.by)
            if is_cut(self.layers):
                self.keep_parts(int(total), scores)
            else:
                ops.global_keep_(scores, self.params, self.momenta, self.mask_bits, self.counts, total, round=self.round)
        elif isinstance(action, Project):
            self.project(action)
        else:
            self.set_density(action)

    def keep_parts(self, total: int, scores: list[Tensor] | None) -> None:
        """``KeepGlobal`` where layers are cut among ranks: once they know how many stay in each part, these are its best."""
        ranked = self.params if scores is None else scores
        rounds = agree.kept(ranked, self.mask_bits, [layer.where for layer in self.layers], total, scores is not None)
        here, everywhere = exchange(rounds, [layer.holders for layer in self.layers])
        for i, layer in enumerate(self.layers):
            own = slice(i, i + 1)
            if self.params[i].numel():
                ops.global_keep_(
                    scores and scores[own], self.params[own], self.momenta[own], self.mask_bits[own],
                    self.counts and self.counts[own], here[i], round=self.round,
                )  # fmt: skip
            layer.nnz = everywhere[i]

    def swap(self, swap: Swap) -> None:
        k = self.u.k if swap.drop is None else self.amount("Swap.drop", swap.drop)
        self.u.dropping = torch.as_tensor(k, device=self.device)
        k_grow = None if swap.grow is None else self.amount("Swap.grow", swap.grow)
        drop_by = None if swap.drop_by is None else self.signal("Swap.drop_by", swap.drop_by)
        self.drop_grow(
            k, k_grow, drop_by, swap.grow_by, bonus=swap.bonus,
            regrow=self.update.method.regrow if swap.regrow is None else swap.regrow,
        )  # fmt: skip

    def project(self, project: Project) -> None:
        if project.to is not None:
            for p, value, layer in zip(self.params, self.signal("Project.to", project.to), self.layers, strict=True):
                p.copy_(value.masked_fill(layer.inactive(), 0))
        nnz = self.u.nnz
        k = torch.as_tensor(self.amount("Project.k", project.k), device=self.device)
        self.drop_grow((nnz - k).clamp_(min=0), torch.zeros_like(nnz), None, lambda u: u.weights)

    def set_density(self, action: SetDensity) -> None:
        if strange := action.nnz.keys() - set(self.u.names):
            raise ValueError(
                f"SetDensity names {', '.join(sorted(strange))}, which take no part in the update: {', '.join(self.u.names)}"
            )
        nnz = self.u.nnz
        asked = [action.nnz.get(name, -1) for name in self.u.names]
        for name, number, n in zip(self.u.names, asked, self.u.sizes, strict=True):
            if name in action.nnz and (isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= n):
                raise ValueError(f"SetDensity wants {number!r} active weights in {name}, expected an int in 0..{n}")
        wanted = torch.tensor(asked, device=self.device)
        wanted = torch.where(wanted < 0, nnz, wanted)
        grow_by: Signal | Random = (
            (lambda u: [torch.zeros_like(w) for w in u.weights]) if action.grow_by is None else action.grow_by
        )
        self.drop_grow((nnz - wanted).clamp_(min=0), (wanted - nnz).clamp_(min=0), None, grow_by)

    def drop_grow(
        self, k: Any, k_grow: Any, drop_by: list[Tensor] | None, grow_by: Signal | Random | None, *,
        bonus: Tensor | None = None, regrow: bool = True,
    ) -> None:  # fmt: skip
        signal = None if grow_by is None or isinstance(grow_by, Random) else self.signal("Swap.grow_by", grow_by)
        grads = self.u.grads if grow_by is None else None
        bonus = None if bonus is None else bonus.to(self.device, non_blocking=True)
        seeds = self.update.seeds(grow_by, self.u.names) if isinstance(grow_by, Random) else None
        scale = where = None
        if is_cut(self.layers):
            batch = LayerBatch(self.layers, self.params, grads or [], self.momenta)
            asked = k if k_grow is None else k_grow
            k, k_grow = whole_numbers(self.layers, k, k_grow, regrow)
            for i, layer in enumerate(self.layers):
                layer.nnz += 0 if k_grow is None else k_grow[i] - k[i]
            k, k_grow, scale = agree_on_shares(
                batch, k, k_grow, asked=asked, bonus=bonus, round=self.round, grow_seeds=seeds, regrow=regrow,
                drop_scores=drop_by, grow_signal=signal,
            )  # fmt: skip
            where = [layer.where.place for layer in self.layers]
        elif bonus is not None and bonus.dtype is torch.float64:
            ranked = self.u.grads if signal is None else signal
            scale = ops.growth_scale(ranked, self.mask_bits, k if k_grow is None else k_grow, self.update.round)
        ops.drop_grow_(
            self.params, grads, self.momenta, self.mask_bits, self.counts, k, k_grow=k_grow, bonus=bonus, bonus_scale=scale,
            round=self.round, drop_scores=drop_by, grow_signal=signal, grow_seeds=seeds, where=where, regrow=regrow,
            reset_regrown=self.update.method.reset_regrown,
        )  # fmt: skip

    def amount(self, what: str, amount: Amount) -> list[int] | Tensor:
        """As the ops take it: a list of ints or an int64 tensor [L] on the device."""
        numbers = amount(self.u) if callable(amount) else amount
        if isinstance(numbers, Tensor):
            return numbers.to(self.device)
        if isinstance(numbers, bool) or not isinstance(numbers, (int, Mapping, Sequence)):
            raise TypeError(f"{what} must be an int, a list, a dict by layer or a tensor, got {type(numbers).__name__}")
        if isinstance(numbers, Mapping):
            if missing := set(self.u.names) - numbers.keys():
                raise ValueError(f"{what} has no number for {', '.join(sorted(missing))}")
            numbers = [numbers[name] for name in self.u.names]
        found = [numbers] * len(self.layers) if isinstance(numbers, int) else list(numbers)
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in found):
            raise ValueError(f"{what} must be whole numbers of weights >= 0, got {found}")
        return found

    def signal(self, what: str, make: Callable[[Update], Sequence[Tensor]]) -> list[Tensor]:
        found = make(self.u)
        if not isinstance(found, (list, tuple)) or len(found) != len(self.layers):
            got = f"{len(found)} tensors" if isinstance(found, (list, tuple)) else type(found).__name__
            raise ValueError(f"{what} must give a list with a tensor for each of {len(self.layers)} layers, got {got}")
        for layer, t, p in zip(self.layers, found, self.params, strict=True):
            if not isinstance(t, Tensor) or t.shape != p.shape or t.device != p.device:
                got = f"{list(t.shape)} on {t.device}" if isinstance(t, Tensor) else type(t).__name__
                raise ValueError(f"{what} gave {got} for {layer.name}, expected a tensor {list(p.shape)} on {p.device}")
        return [_like(t, p) for t, p in zip(found, self.params, strict=True)]


def _like(t: Tensor, p: Tensor) -> Tensor:
    """In the memory order of ``p``, float32 unless it has the dtype of ``p``."""
    t = t.detach()
    if t.dtype not in (p.dtype, torch.float32):
        t = t.float()
    return t if t.stride() == p.stride() else torch.empty_like(p, dtype=t.dtype).copy_(t)
