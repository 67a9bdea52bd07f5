"""One mask update, decided before the step that carries it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dstee import _checks, ops
from dstee.methods import Method
from dstee.schedule import UpdateSchedule
from dstee.sparse_layer import SparseLayer


@dataclass(frozen=True)
class MaskUpdate:
    """What the update at step ``t`` does. An optimizer may fuse it with its step; ``SparseModel`` does the rest.

    ``done``: names of the layers that have been updated.
    """

    t: int
    round: int
    seed: int
    method: Method
    schedule: UpdateSchedule
    bonus: Tensor | None
    done: set[str] = field(default_factory=set)

    @classmethod
    def due(cls, t: int, round: int, seed: int, method: Method, schedule: UpdateSchedule) -> MaskUpdate | None:
        """The update that step ``t`` carries, if any.

        Raises:
            ValueError: the counters cannot hold another round.
        """
        if not (method.updates and schedule.is_due(t)):
            return None
        _checks.check_round(round)
        return cls(t, round, seed, method, schedule, method.bonus(t, round))

    def swaps(self, layer: SparseLayer) -> int:
        """k of one layer; a dense layer has nothing to grow, a frozen one is left out."""
        if layer.nnz == layer.numel or not layer.param.requires_grad:
            return 0
        return self.schedule.swap_count(layer.nnz, self.t)

    def check_gradients(self, layers: Iterable[SparseLayer]) -> None:
        """Raises RuntimeError naming the trainable layers that have no gradient to grow by."""
        if not self.method.needs_gradients:
            return
        missing = [layer.name for layer in layers if layer.param.grad is None and layer.param.requires_grad]
        if missing:
            raise RuntimeError(
                f"a mask update is due, but these sparse weights have no gradient: {', '.join(missing)}. Update after backward "
                "and before zero_grad; freeze (requires_grad_(False)) or exclude layers that the loss does not reach"
            )

    def apply(
        self,
        layers: Sequence[SparseLayer],
        params: Sequence[Tensor],
        grads: Sequence[Tensor] | None,
        momenta: Sequence[Tensor] | None,
        sgd: ops.SGDRule | None = None,
    ) -> None:
        """Swaps weights in ``layers``, all on one device; with ``sgd``, after the step. Nothing has changed when it raises."""
        before = [layer.mask_bits.clone() for layer in layers]
        ops.drop_grow_(
            params,
            grads,
            momenta,
            [layer.mask_bits for layer in layers],
            [layer.counts for layer in layers if layer.counts is not None] or None,
            [self.swaps(layer) for layer in layers],
            bonus=None if self.bonus is None else self.bonus.to(params[0].device, non_blocking=True),
            round=self.round,
            grow_seeds=self.method.grow_seeds(self.seed, [layer.name for layer in layers], self.round),
            regrow=self.method.regrow,
            reset_regrown=self.method.reset_regrown,
            sgd=sgd,
        )
        for layer, bits in zip(layers, before, strict=True):
            layer.previous_bits = bits
            self.done.add(layer.name)
