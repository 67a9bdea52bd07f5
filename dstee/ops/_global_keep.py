"""``global_keep_``: of all active weights of all layers, the best stay."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dstee import _budget_checks, _checks
from dstee.ops._call import active_where_free, call, declare

declare(
    "global_keep_(Tensor(a!)[] params, Tensor(b!)[] momenta, Tensor(c!)[] mask_bits, Tensor(d!)[] counts, Tensor[] scores, "
    "int total, Tensor? total_tensor, int round, Tensor? round_tensor) -> ()",
    lambda *args: None,
)


def global_keep_(
    scores: Sequence[Tensor] | None,
    params: Sequence[Tensor],
    momenta: Sequence[Tensor] | None,
    mask_bits: Sequence[Tensor],
    counts: Sequence[Tensor] | None,
    total: int | Tensor,
    *,
    round: int | Tensor = 0,
) -> None:
    """Of the active weights of all layers together the ``total`` first stay, the others are dropped, in place.

    The order is (score descending, layer ascending, flat index ascending), -0.0 equal to 0.0 and NaN after all. What is dropped
    becomes 0, its momentum too, and its counter stays what it was (as in the drop of :func:`drop_grow_` at the same ``round``,
    which may follow in the same round).

    Args:
        scores: what is ranked, with its sign; float32 or the weights' dtype, laid out like them. None: abs(w).
        params, momenta, mask_bits, counts: as in :func:`drop_grow_`; ``momenta`` and ``counts`` may be None.
        total: how many stay, at most the active weights: an int, or a one-element int64 tensor on the device, which is clipped
            there. An int is refused beyond them on the CPU (asking a GPU for its masks would be a sync: there, beyond the
            number of weights, and clipped else).
        round: as in :func:`drop_grow_`; needed with ``counts``.

    Raises:
        TypeError, ValueError: an argument does not fit; the text names it and its list index. Nothing has changed then.
    """
    params = _checks.tensor_list("params", params)
    L = len(params)
    scores = _checks.tensor_list("scores", scores, L, optional=True)
    momenta = _checks.tensor_list("momenta", momenta, L, optional=True)
    mask_bits = _checks.tensor_list("mask_bits", mask_bits, L)
    counts = _checks.tensor_list("counts", counts, L, optional=True)
    if not params:
        return
    device = params[0].device
    total, total_tensor = _budget_checks.split_total(total, device)
    round, round_tensor = _checks.split_round(round, device)

    def check() -> None:
        signals = {"scores": scores}
        _checks.check_layers(params, mask_bits, grads=[], momenta=momenta, counts=counts, signals=signals)
        _budget_checks.check_total(total, params, active_where_free(mask_bits))

    call(
        "global_keep_", device, check,
        params, momenta, mask_bits, counts, scores, total, total_tensor, round, round_tensor,
    )  # fmt: skip
