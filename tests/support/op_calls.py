"""A good call of every op, and for each tensor argument the call in which that argument alone is another tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dstee
from dstee import ops

N = 40


def arguments() -> dict[str, Any]:
    mask = torch.arange(N) % 4 == 0
    p = torch.where(mask, torch.linspace(-1, 1, N), 0.0)
    return dict(params=[p], grads=[torch.linspace(1, 2, N)], momenta=[p * 0.5], mask_bits=[ops.pack_mask(mask)])


def update(**changed: Any) -> None:
    counts, bonus = [torch.zeros(N, dtype=torch.int16)], dstee.bonus_table(1e-3, 1.0, 10, 3)
    ops.drop_grow_(**(arguments() | dict(counts=counts, k=[3], bonus=bonus, round=3) | changed))


def step(**changed: Any) -> None:
    ops.masked_sgd_(**(arguments() | dict(lr=0.1, momentum=0.9) | changed))


UNITS = dstee.bonus_table(0.1, 1.0, 10, 3, dtype=torch.float64)
KEY = torch.zeros(1, 3, dtype=torch.int64)


def histogram(**changed: Any) -> Tensor:
    """Of the growth, with all that it can take but two of the three signals."""
    given: dict[str, Any] = {name: tensors for name, tensors in arguments().items() if name != "momenta"}
    given |= dict(counts=[torch.zeros(N, dtype=torch.int16)], bonus=UNITS, bonus_scale=torch.ones(1), round=3)
    given |= dict(growth=True, word=0, shift=24, prefix=KEY, drop_from=KEY)
    return ops.key_histogram(**(given | changed))


def keep(**changed: Any) -> None:
    given = {name: tensors for name, tensors in arguments().items() if name != "grads"}
    given |= dict(scores=[torch.linspace(1, 2, N)], counts=[torch.zeros(N, dtype=torch.int16)], total=4, round=3)
    ops.global_keep_(**(given | changed))


Wrap = Callable[[Tensor], Tensor]
MASK, BITS, COUNTS = torch.arange(N) % 4 == 0, ops.pack_mask(torch.arange(N) % 4 == 0), torch.zeros(N, dtype=torch.int16)
FLOAT, SCALAR = torch.linspace(1, 2, N), torch.ones(1)
# (op, argument): a call in which that argument alone is wrapped
CALLS: dict[tuple[str, str], Callable[[Wrap], Any]] = {
    ("drop_grow_", "params[0]"): lambda wrap: update(params=[wrap(arguments()["params"][0])]),
    ("drop_grow_", "grads[0]"): lambda wrap: update(grads=[wrap(FLOAT)]),
    ("drop_grow_", "momenta[0]"): lambda wrap: update(momenta=[wrap(FLOAT)]),
    ("drop_grow_", "mask_bits[0]"): lambda wrap: update(mask_bits=[wrap(BITS)]),
    ("drop_grow_", "counts[0]"): lambda wrap: update(counts=[wrap(COUNTS)]),
    ("drop_grow_", "drop_scores[0]"): lambda wrap: update(drop_scores=[wrap(FLOAT)]),
    ("drop_grow_", "grow_signal[0]"): lambda wrap: update(grow_signal=[wrap(FLOAT)]),
    ("drop_grow_", "k"): lambda wrap: update(k=wrap(torch.tensor([3]))),
    ("drop_grow_", "round"): lambda wrap: update(round=wrap(torch.tensor([3]))),
    ("drop_grow_", "bonus"): lambda wrap: update(bonus=wrap(dstee.bonus_table(1e-3, 1.0, 10, 3))),
    ("drop_grow_", "lr"): lambda wrap: update(sgd=dstee.SGDRule(wrap(SCALAR), 0.9)),
    ("drop_grow_", "found_inf"): lambda wrap: update(found_inf=wrap(SCALAR)),
    ("masked_sgd_", "params[0]"): lambda wrap: step(params=[wrap(arguments()["params"][0])]),
    ("masked_sgd_", "grads[0]"): lambda wrap: step(grads=[wrap(FLOAT)]),
    ("masked_sgd_", "momenta[0]"): lambda wrap: step(momenta=[wrap(FLOAT)]),
    ("masked_sgd_", "mask_bits[0]"): lambda wrap: step(mask_bits=[wrap(BITS)]),
    ("masked_sgd_", "lr"): lambda wrap: step(lr=wrap(SCALAR)),
    ("masked_sgd_", "grad_scale"): lambda wrap: step(grad_scale=wrap(SCALAR)),
    ("masked_sgd_", "found_inf"): lambda wrap: step(found_inf=wrap(SCALAR)),
    ("pack_mask", "mask"): lambda wrap: ops.pack_mask(wrap(MASK)),
    ("unpack_mask", "mask_bits[0]"): lambda wrap: ops.unpack_mask(wrap(BITS), (N,)),
    ("encode_counts", "N"): lambda wrap: ops.encode_counts(wrap(MASK.int()), MASK, 3),
    ("encode_counts", "mask"): lambda wrap: ops.encode_counts(MASK.int(), wrap(MASK), 3),
    ("decode_counts", "counts[0]"): lambda wrap: ops.decode_counts(wrap(COUNTS), BITS, 3, (N,)),
    ("decode_counts", "mask_bits[0]"): lambda wrap: ops.decode_counts(COUNTS, wrap(BITS), 3, (N,)),
    ("count_active", "mask_bits[0]"): lambda wrap: ops.count_active([wrap(BITS)]),
    ("count_explored", "counts[0]"): lambda wrap: ops.count_explored([wrap(COUNTS)], [BITS]),
    ("count_explored", "mask_bits[0]"): lambda wrap: ops.count_explored([COUNTS], [wrap(BITS)]),
    ("drop_grow_", "k_grow"): lambda wrap: update(k_grow=wrap(torch.tensor([3]))),
    ("drop_grow_", "bonus_scale"): lambda wrap: update(bonus=UNITS, bonus_scale=wrap(torch.ones(1))),
    ("key_histogram", "params[0]"): lambda wrap: histogram(params=[wrap(arguments()["params"][0])]),
    ("key_histogram", "grads[0]"): lambda wrap: histogram(grads=[wrap(FLOAT)]),
    ("key_histogram", "mask_bits[0]"): lambda wrap: histogram(mask_bits=[wrap(BITS)]),
    ("key_histogram", "counts[0]"): lambda wrap: histogram(counts=[wrap(COUNTS)]),
    ("key_histogram", "drop_scores[0]"): lambda wrap: histogram(drop_scores=[wrap(FLOAT)]),
    ("key_histogram", "grow_signal[0]"): lambda wrap: histogram(grow_signal=[wrap(FLOAT)]),
    ("key_histogram", "bonus"): lambda wrap: histogram(bonus=wrap(UNITS)),
    ("key_histogram", "bonus_scale"): lambda wrap: histogram(bonus_scale=wrap(torch.ones(1))),
    ("key_histogram", "round"): lambda wrap: histogram(round=wrap(torch.tensor([3]))),
    ("key_histogram", "prefix"): lambda wrap: histogram(prefix=wrap(KEY)),
    ("key_histogram", "drop_from"): lambda wrap: histogram(drop_from=wrap(KEY)),
    ("global_keep_", "params[0]"): lambda wrap: keep(params=[wrap(arguments()["params"][0])]),
    ("global_keep_", "momenta[0]"): lambda wrap: keep(momenta=[wrap(FLOAT)]),
    ("global_keep_", "mask_bits[0]"): lambda wrap: keep(mask_bits=[wrap(BITS)]),
    ("global_keep_", "counts[0]"): lambda wrap: keep(counts=[wrap(COUNTS)]),
    ("global_keep_", "scores[0]"): lambda wrap: keep(scores=[wrap(FLOAT)]),
    ("global_keep_", "total"): lambda wrap: keep(total=wrap(torch.tensor([3]))),
    ("global_keep_", "round"): lambda wrap: keep(round=wrap(torch.tensor([3]))),
    ("growth_scale", "signals[0]"): lambda wrap: ops.growth_scale([wrap(FLOAT)], [BITS], [3], 3),
    ("growth_scale", "mask_bits[0]"): lambda wrap: ops.growth_scale([FLOAT], [wrap(BITS)], [3], 3),
    ("growth_scale", "k"): lambda wrap: ops.growth_scale([FLOAT], [BITS], wrap(torch.tensor([3])), 3),
    ("growth_scale", "round"): lambda wrap: ops.growth_scale([FLOAT], [BITS], [3], wrap(torch.tensor([3]))),
    ("count_below", "tensors[0]"): lambda wrap: ops.count_below([wrap(FLOAT)], [BITS], SCALAR),
    ("count_below", "mask_bits[0]"): lambda wrap: ops.count_below([FLOAT], [wrap(BITS)], SCALAR),
    ("count_below", "thresholds"): lambda wrap: ops.count_below([FLOAT], [BITS], wrap(SCALAR)),
    ("count_outside", "params[0]"): lambda wrap: ops.count_outside([wrap(FLOAT)], [BITS]),
    ("count_outside", "mask_bits[0]"): lambda wrap: ops.count_outside([FLOAT], [wrap(BITS)]),
}
