"""drop_grow_: one sweep over large layers, seven launches for any number of layers; one where all layers are small.

  prepare  two programs a layer: from a sample, the bounds behind which almost surely nobody wins
  sweep    masked SGD and scores, tile by tile; possible winners go to lists
  bins     how many of the listed lie between the sample's keys
  drop     who is dropped, but for the finalists: the last bin that wins; the dropped may grow again
  settle   the drop's finalists
  apply    mask bits, counters and zeros of all who win or lose with their whole bin
  finish   the growth's finalists; small layers from the first step to the last; layers whose sample misled or list was full

Layers of other dtypes are another seven. No host sync, nobody waits within a launch, and what is decided depends on keys and
indices alone: the result is the same for any schedule.
"""

from __future__ import annotations

from ._rules import NO_STEP
from ._state import make_work
from ._table import LAYER_OPTIONS, LIST_OPTIONS, OPTIONS, Group, groups, launching
from ._tiles import AT_RANDOM, BY_GRADIENT, BY_TENSOR
from .masked_sgd import rule_of
from .sample import prepare_kernel
from .select_drop import apply_kernel, bins_kernel, drop_kernel, settle_kernel
from .select_grow import finish_kernel
from .sweep import sweep_kernel

# For tests: bounds that are surely too tight, or lists with a share of their room.
HANDICAP: dict[str, float] = {"shy": 0, "room": 1.0}


def _all_same(some, others) -> bool:
    return len(some) == len(others) and all(
        a.data_ptr() == b.data_ptr() and a.dtype == b.dtype for a, b in zip(some, others, strict=True)
    )


def drop_grow_(
    params, grads, momenta, mask_bits, counts, k, k_tensor, bonus, round, round_tensor, drop_scores, grow_signal, grow_seeds,
    regrow, reset_regrown, sgd, lr_tensor, found_inf,
) -> None:  # fmt: skip
    """As dstee.reference.drop_grow_."""
    if _all_same(drop_scores, params):
        drop_scores = ()
    if grow_seeds or _all_same(grow_signal, grads):
        grow_signal = ()
    growth = AT_RANDOM if grow_seeds else BY_TENSOR if grow_signal else BY_GRADIENT
    lr, momentum, dampening, weight_decay, nesterov, maximize, first_step = sgd or [0.0] * 7
    rule = rule_of(momentum, weight_decay, nesterov, maximize, first_step) if sgd else NO_STEP.value
    flags = {"RULE": rule, "GROWTH": growth.value, "OTHER_DROP": bool(drop_scores)}
    outcome = {"REGROW": bool(regrow), "RESET": bool(reset_regrown), "HAS_M": bool(momenta), "COUNTED": bool(counts)}
    if not counts:
        bonus = None
    ranked = (bonus, bonus.numel() if bonus is not None else 0, int(round), round_tensor)
    step = (float(lr), lr_tensor, float(momentum), float(1 - dampening), float(weight_decay))
    with launching(params[0].device):
        for group in groups(
            params, grads, momenta, mask_bits, counts, drop_scores, grow_signal, grow_seeds, k, lists=HANDICAP["room"]
        ):
            _update(group, k_tensor, ranked, step, found_inf, flags, outcome)


def _update(group: Group, k_tensor, ranked, step, found_inf, flags, outcome) -> None:
    work = make_work(group.layers, group.entries, group.rows.device)
    half = work.bins.numel()
    splitters = (work.bins, work.splitter_key, work.splitter_index)
    lists = (work.key, work.index, work.growth_key, work.finalists)
    of_growth = {"REGROW": outcome["REGROW"], "GROWTH": flags["GROWTH"]} | {
        name: group.types[name] for name in ("W_TYPE", "GROW_TYPE")
    }
    of_outcome = outcome | {"W_TYPE": group.types["W_TYPE"]}
    tiles, chunks = group.tile_layer, group.chunk_layer
    if len(tiles):
        prepare_kernel[(group.layers, 2)](
            group.rows, group.calls, work.state, *splitters, work.splitter_key[half:], work.splitter_index[half:],
            k_tensor, *ranked, *step, int(HANDICAP["shy"]), **flags, **group.types, **LAYER_OPTIONS,
        )  # fmt: skip
        sweep_kernel[(len(tiles),)](
            group.rows, group.calls, tiles, work.state, work.key, work.index,
            k_tensor, *ranked, *step, found_inf, **flags, **group.types, **OPTIONS,
        )  # fmt: skip
        bins_kernel[(len(chunks), 2)](group.rows, chunks, work.state, *splitters, work.key, work.index, **LIST_OPTIONS)
        drop_kernel[(len(chunks),)](
            group.rows, group.calls, chunks, work.state, *splitters, *lists, k_tensor, *ranked, **of_growth, **LIST_OPTIONS
        )
        settle_kernel[(group.layers,)](
            group.rows, group.calls, work.state, *splitters, *lists, k_tensor, *ranked, **of_growth, **LIST_OPTIONS
        )
        apply_kernel[(len(chunks), 2)](
            group.rows, group.calls, chunks, work.state, *splitters, *lists, k_tensor, *ranked[2:], **of_outcome, **OPTIONS
        )
    finish_kernel[(group.layers,)](
        group.rows, group.calls, work.state, *splitters, *lists, k_tensor, *ranked, *step, found_inf,
        **flags, **outcome, **group.types, **LAYER_OPTIONS,
    )  # fmt: skip
