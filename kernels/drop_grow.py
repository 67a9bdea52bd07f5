"""drop_grow_: one sweep over large layers, seven launches for any number of layers; one where all layers are small.

  sample       two programs a layer: from a sample, the bounds behind which almost surely no weight is selected
  sweep        masked SGD and keys, tile by tile; weights that pass the bounds are listed
  select_drop  three launches: the listed are counted in bins between the sample's keys; the bins in front of that of the k-th
               are dropped; then the first of that bin. What is dropped may grow again
  commit       mask bits, counters and zeros of all weights that the growth's bins decide
  select_grow  the growth in the bin of the k-th, committed at once;
               small_layer: a small one, from the step to the outcome;
               fallback: a layer whose sample misled or whose list was full, by scans of all of it

Layers of other dtypes are another seven. No host sync, and nothing waits within a launch. The selected sets are functions of
keys and indices alone, so the result does not depend on schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import test_limits
from ._launch import LAYER_OPTIONS, LIST_OPTIONS, OPTIONS, launching
from ._rules import NO_STEP, SgdNumbers
from ._state import make_memory
from ._table import DtypeGroup, group_by_dtype
from ._tiles import AT_RANDOM, AT_RANDOM_IN_PART, BY_GRADIENT, BY_TENSOR, DropBy, GrowBy
from ._upload import on_device
from .commit import Outcome, commit_kernel
from .masked_sgd import read_sgd
from .sample import sample_kernel
from .select_drop import histogram_kernel, select_drop_in_bin_kernel, select_drop_kernel
from .select_grow import select_grow_kernel
from .sweep import sweep_kernel

__all__ = ["drop_grow_"]


def _all_same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(
        a.data_ptr() == b.data_ptr() and a.dtype == b.dtype for a, b in zip(some, others, strict=True)
    )


def drop_grow_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    mask_bits: Sequence[Tensor],
    counts: Sequence[Tensor],
    k: Sequence[int],
    k_tensor: Tensor | None,
    k_grow: Sequence[int],
    k_grow_tensor: Tensor | None,
    bonus: Tensor | None,
    bonus_scale: Tensor | None,
    round: int,
    round_tensor: Tensor | None,
    drop_scores: Sequence[Tensor],
    grow_signal: Sequence[Tensor],
    grow_seeds: Sequence[int],
    where: Sequence[int],
    regrow: bool,
    reset_regrown: bool,
    sgd: Sequence[float],
    lr: Tensor | None,
    found_inf: Tensor | None,
    packed_momenta: bool = False,
) -> None:
    """As dstee.reference.drop_grow_, but without ``packed_momenta``.

    Raises:
        RuntimeError: it was asked for.
    """
    if packed_momenta:
        raise RuntimeError("the Triton kernel of drop_grow_ has no packed_momenta")
    device = params[0].device
    if _all_same(drop_scores, params):
        drop_scores = ()
    if grow_seeds or _all_same(grow_signal, grads):
        grow_signal = ()
    part_numbers = []
    if grow_seeds and where:
        part_numbers = [x for i, seed in enumerate(grow_seeds) for x in (seed, *where[3 * i : 3 * i + 3])]
    parts = on_device(part_numbers, torch.int64, device)
    seeds = [parts.data_ptr() + 32 * i for i in range(len(grow_seeds))] if part_numbers else grow_seeds
    signal = AT_RANDOM_IN_PART if part_numbers else AT_RANDOM if grow_seeds else BY_TENSOR if grow_signal else BY_GRADIENT
    numbers, operations = read_sgd(sgd) if sgd else (SgdNumbers(0.0, 0.0, 0.0, 0.0), NO_STEP.value)
    bonus = bonus if counts else None
    size = 0 if bonus is None else bonus.numel()
    if bonus is not None and bonus_scale is not None:
        bonus = torch.cat([bonus, bonus_scale.double()])
    growth = on_device(k_grow, torch.int64, device) if k_grow else k_grow_tensor
    call = _Call(numbers, k_tensor, growth, bonus, size, int(round), round_tensor, lr, found_inf, operations, bool(regrow))
    most = [] if growth is not None and not k_grow else [max(x) for x in zip(k, k_grow or k, strict=True)] if k else []
    share = test_limits.limits.list_share
    with launching(device):
        for group in group_by_dtype(
            params, grads, momenta, mask_bits, counts, drop_scores, grow_signal, seeds, k, most=most, list_share=share
        ):
            drop_by = DropBy(bool(drop_scores), group.w_type, group.drop_type)
            grow_by = GrowBy(signal.value, group.w_type, group.grow_type)
            _launch(group, call, drop_by, grow_by, Outcome(bool(reset_regrown), bool(momenta), bool(counts), group.w_type))


class _Call(NamedTuple):
    """What is the same for all groups."""

    numbers: SgdNumbers
    k: Tensor | None
    k_grow: Tensor | None
    bonus: Tensor | None
    bonus_size: int
    round: int
    round_tensor: Tensor | None
    lr: Tensor | None
    found_inf: Tensor | None
    operations: int
    regrow: bool


def _launch(group: DtypeGroup, call: _Call, drop_by: DropBy, grow_by: GrowBy, outcome: Outcome) -> None:
    table, layers = group.table, group.layers
    tiles, chunks = len(table.tile_layer), len(table.chunk_layer)
    memory = make_memory(layers, group.entries, table.rows.device)
    rounds = (call.round, call.round_tensor)
    ranked = (call.k, call.k_grow, call.bonus, call.bonus_size, *rounds)
    constants, of_drop = (call.operations, drop_by, grow_by), (call.regrow, grow_by)
    if tiles:
        tight = int(test_limits.limits.tight_bounds)
        sample_kernel[(layers, 2)](table, memory, call.numbers, *ranked, call.lr, tight, *constants, **LAYER_OPTIONS)
        sweep_kernel[(tiles,)](table, memory, call.numbers, *ranked, call.lr, call.found_inf, *constants, **OPTIONS)
        histogram_kernel[(chunks, 2)](table, memory, **LIST_OPTIONS)
        select_drop_kernel[(chunks,)](table, memory, *ranked, *of_drop, **LIST_OPTIONS)
        select_drop_in_bin_kernel[(layers,)](table, memory, *ranked, *of_drop, **LIST_OPTIONS)
        commit_kernel[(chunks, 2)](table, memory, call.k, call.k_grow, *rounds, call.regrow, outcome, **OPTIONS)
    select_grow_kernel[(layers,)](
        table, memory, call.numbers, *ranked, call.lr, call.found_inf, *constants, call.regrow, outcome, **LAYER_OPTIONS
    )
