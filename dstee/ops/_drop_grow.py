"""``drop_grow_``: one mask update, fused with a step where one is given."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dstee import _budget_checks, _checks, _dispatch, sgd_rule
from dstee.ops._call import active_where_free, call, declare, options_in_use
from dstee.sgd_rule import SGDRule

declare(
    "drop_grow_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, Tensor(c!)[] mask_bits, Tensor(d!)[] counts, "
    "int[] k, Tensor? k_tensor, int[] k_grow, Tensor? k_grow_tensor, Tensor? bonus, Tensor? bonus_scale, int round, "
    "Tensor? round_tensor, Tensor[] drop_scores, Tensor[] grow_signal, int[] grow_seeds, int[] where, bool regrow, "
    "bool reset_regrown, float[] sgd, Tensor? lr, Tensor? found_inf, bool packed_momenta=False) -> ()",
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
    k_grow: Sequence[int] | Tensor | None = None,
    bonus: Tensor | None,
    bonus_scale: Tensor | None = None,
    round: int | Tensor,
    drop_scores: Sequence[Tensor] | None = None,
    grow_signal: Sequence[Tensor] | None = None,
    grow_seeds: Sequence[int] | None = None,
    where: Sequence[Sequence[int]] | Tensor | None = None,
    regrow: bool = True,
    reset_regrown: bool = False,
    sgd: SGDRule | None = None,
    found_inf: Tensor | None = None,
    packed_momenta: bool = False,
) -> None:
    """One mask update of all layers, in place: drop the k weakest active weights, grow the k (or k_grow) best candidates.

    1. With ``sgd``, the masked step comes first (order "after").
    2. Drop: the k active positions first in the order (abs(w) ascending, flat index ascending); NaN weights before all.
    3. Grow: among positions inactive after the drop (before it, without ``regrow``) the first k, or k_grow, in the order
       (score descending, abs(g) descending, flat index ascending), score = float32 ``abs(g) + bonus[N]`` (paper, Eq. 1);
       NaN gradients after all.
    4. Dropped weights and their momenta become 0; grown ones start at 0, or, dropped and regrown in one update, keep
       their values (``reset_regrown`` zeroes them). Counters: N += M. The number of active weights changes by k_grow - k,
       not at all without ``k_grow``.

    Args:
        params, grads, momenta, mask_bits: as in :func:`masked_sgd_`. ``momenta`` may be None when there are none;
            ``grads`` may be None when another growth signal is given and ``sgd`` is not.
        counts: int16 [n] each, as :func:`encode_counts` makes them for this ``round``; None for methods without a counter.
        k: weights to swap per layer: a list of ints, or an int64 tensor [L] on the device, which is clipped there to the
            active weights. Without ``regrow`` both are clipped to the inactive weights.
        k_grow: weights to grow per layer where they are not as many as are dropped, in either form; ``k`` is then what is
            dropped, and not clipped to the inactive weights. At most the inactive weights, and with ``regrow`` the k dropped
            ones. A list is refused beyond that on the CPU (asking a GPU for its masks would be a sync: there, beyond the
            layer's size, and clipped else); a tensor is clipped.
        bonus: exploration bonus by counter, from :func:`bonus_table`, on the device; None adds nothing (RigL). A counter
            that the table does not have, a negative one too, takes the last entry.
        bonus_scale: float32 [L] on the device, as :func:`growth_scale` makes it; ``bonus`` is a float64 table then, and the
            bonus of layer i ``float32(double(bonus_scale[i]) * bonus[N])``. Where that is Inf, and where the table is 0 and the
            scale Inf, abs(g) decides alone.
        round: mask updates done before this one (q), at most 32,765: an int, or a one-element int64 tensor on the device
            (then, with ``k``, ``lr`` and ``bonus`` in tensors too, a captured CUDA graph follows the schedule).
        drop_scores: what the drop ranks (by abs) instead of the weights; float32 or the weights' dtype. Read after the step.
        grow_signal: what the growth ranks (by abs) instead of the gradients. Read after the step.
        grow_seeds: one 64-bit seed per layer: growth by a hash of (seed, flat index), uniform in [0, 1) (SET).
        where: of layers that are parts of larger ones, (base, run, pitch) each, as a list or an int64 tensor [L, 3] on the CPU:
            local index i is the global ``base + i // run * pitch + i % run``, by which ``grow_seeds`` hash. It grows with i, so
            that the order of ties is that of the whole. None: parts are wholes.
        found_inf: one-element tensor; where it is not 0, nothing changes: no step, no mask, no counter.
        packed_momenta: the momenta are those of the active weights alone, as in :func:`masked_sgd_`; afterwards they are in the
            order of the new mask. Not together with ``k_grow``, which would change how many there are.

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
    _checks.check_bonus(bonus, known, device, bonus_scale, L)
    if sgd is not None:
        _checks.check_rule(sgd, momenta, device)
    _checks.check_scalar_tensor("found_inf", found_inf, device)
    k_list, k_tensor = _checks.split_k(k, L, device)
    grow_list, grow_tensor = ([], None) if k_grow is None else _checks.split_k(k_grow, L, device, "k_grow")
    places = _budget_checks.read_places(where, params)
    packed = packed_momenta and bool(momenta)
    if packed and k_grow is not None:
        raise ValueError(
            "packed_momenta and k_grow both given: k_grow changes the number of active weights, and packed momenta have one "
            "entry for each; unpack them before such an update"
        )

    def check() -> None:
        signals = {"drop_scores": drop_scores, "grow_signal": grow_signal}
        _checks.check_layers(
            params, mask_bits, grads=grads, momenta=momenta, counts=counts, signals=signals, packed_momenta=packed
        )
        active = active_where_free(mask_bits)
        _checks.check_k(k_list, params, active)
        _budget_checks.check_k_grow(grow_list, k_list, k_tensor, params, active, regrow)

    call(
        "drop_grow_", device, check,
        params, grads, momenta, mask_bits, counts, k_list, k_tensor, grow_list, grow_tensor, bonus, bonus_scale, round,
        round_tensor, drop_scores, grow_signal, seeds, places, regrow, reset_regrown, *sgd_rule.pack(sgd), found_inf, packed,
        options=options_in_use(k_grow=k_grow, where=where, bonus_scale=bonus_scale, packed_momenta=packed or None),
    )  # fmt: skip
