"""``drop_grow_``: one mask update, fused with a step where one is given."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dstee import _checks, _dispatch, reference, sgd_rule
from dstee.ops._call import call, declare
from dstee.sgd_rule import SGDRule

declare(
    "drop_grow_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, Tensor(c!)[] mask_bits, Tensor(d!)[] counts, "
    "int[] k, Tensor? k_tensor, Tensor? bonus, int round, Tensor? round_tensor, Tensor[] drop_scores, Tensor[] grow_signal, "
    "int[] grow_seeds, bool regrow, bool reset_regrown, float[] sgd, Tensor? lr, Tensor? found_inf) -> ()",
    lambda *args: None,
)


def drop_grow_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor] | None,
    momenta: Sequence[Tensor] | None,
    mask_bits: Sequence[Tensor],
    counts: Sequence[Tensor] | None,
    k: Sequence[int] | Tensor,
    *,
    bonus: Tensor | None,
    round: int | Tensor,
    drop_scores: Sequence[Tensor] | None = None,
    grow_signal: Sequence[Tensor] | None = None,
    grow_seeds: Sequence[int] | None = None,
    regrow: bool = True,
    reset_regrown: bool = False,
    sgd: SGDRule | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One mask update of all layers, in place: drop the k weakest active weights, grow the k best candidates.

    1. With ``sgd``, the masked step comes first (order "after").
    2. Drop: the k active positions first in the order (abs(w) ascending, flat index ascending); NaN weights before all.
    3. Grow: among positions inactive after the drop (before it, without ``regrow``) the first k in the order (score
       descending, abs(g) descending, flat index ascending), score = float32 ``abs(g) + bonus[N]`` (paper, Eq. 1);
       NaN gradients after all.
    4. Dropped weights and their momenta become 0; grown ones start at 0, or, dropped and regrown in one update, keep
       their values (``reset_regrown`` zeroes them). Counters: N += M. The number of active weights does not change.

    Args:
        params, grads, momenta, mask_bits: as in :func:`masked_sgd_`. ``momenta`` may be None when there are none;
            ``grads`` may be None when another growth signal is given and ``sgd`` is not.
        counts: int16 [n] each, as :func:`encode_counts` makes them for this ``round``; None for methods without a counter.
        k: weights to swap per layer: a list of ints, or an int64 tensor [L] on the device, which is clipped there to the
            active weights. Without ``regrow`` both are clipped to the inactive weights.
        bonus: exploration bonus by counter, from :func:`bonus_table`, on the device; None adds nothing (RigL). A counter
            that the table does not have, a negative one too, takes the last entry.
        round: mask updates done before this one (q), at most 32,765: an int, or a one-element int64 tensor on the device
            (then, with ``k``, ``lr`` and ``bonus`` in tensors too, a captured CUDA graph follows the schedule).
        drop_scores: what the drop ranks (by abs) instead of the weights; float32 or the weights' dtype. Read after the step.
        grow_signal: what the growth ranks (by abs) instead of the gradients. Read after the step.
        grow_seeds: one 64-bit seed per layer: growth by a hash of (seed, flat index), uniform in [0, 1) (SET).
        found_inf: one-element tensor; where it is not 0, nothing changes: no step, no mask, no counter.

    Raises:
        TypeError, ValueError: an argument does not fit; the text names it and its list index. Nothing has changed then.
    """
    params = _checks.tensor_list("params", params)
    if not params:
        return
    L, device = len(params), params[0].device
    if grads is None and (sgd is not None or (grow_signal is None and grow_seeds is None)):
        raise ValueError("grads is None: the step and gradient growth need them; or pass grow_signal or grow_seeds")
    if grow_signal is not None and grow_seeds is not None:
        raise ValueError("grow_signal and grow_seeds both given: growth ranks one of them")
    grads = _checks.tensor_list("grads", grads, L, optional=True)
    momenta = _checks.tensor_list("momenta", momenta, L, optional=True)
    mask_bits = _checks.tensor_list("mask_bits", mask_bits, L)
    counts = _checks.tensor_list("counts", counts, L, optional=True)
    drop_scores = _checks.tensor_list("drop_scores", drop_scores, L, optional=True)
    grow_signal = _checks.tensor_list("grow_signal", grow_signal, L, optional=True)
    seeds = _checks.seeds(grow_seeds, L)
    round, round_tensor = _checks.split_round(round, device)
    if bonus is not None and not counts:
        raise ValueError("bonus given without counts: the bonus depends on the counters; pass both or neither")
    readable = round_tensor is not None and device.type == "cpu" and not _dispatch.is_traced()
    known = int(round_tensor) if round_tensor is not None and readable else round
    _checks.check_bonus(bonus, known, device)
    if sgd is not None:
        _checks.check_rule(sgd, momenta, device)
    _checks.check_scalar_tensor("found_inf", found_inf, device)
    k_list, k_tensor = _checks.split_k(k, L, device)

    def check() -> None:
        signals = {"drop_scores": drop_scores, "grow_signal": grow_signal}
        _checks.check_layers(params, mask_bits, grads=grads, momenta=momenta, counts=counts, signals=signals)
        readable = device.type == "cpu" and not _dispatch.is_traced()
        active = reference.count_active(mask_bits).tolist() if readable else None
        _checks.check_k(k_list, params, active)

    call(
        "drop_grow_", device, check,
        params, grads, momenta, mask_bits, counts, k_list, k_tensor, bonus, round, round_tensor, drop_scores, grow_signal,
        seeds, regrow, reset_regrown, *sgd_rule.pack(sgd), found_inf,
    )  # fmt: skip
