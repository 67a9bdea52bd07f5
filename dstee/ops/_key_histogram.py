"""``key_histogram``: candidates counted by one byte of their keys, the counting half of the selection in ``drop_grow_``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dstee import _budget_checks, _checks
from dstee.ops._call import call, declare

declare(
    "key_histogram(Tensor[] params, Tensor[] grads, Tensor[] mask_bits, Tensor[] counts, Tensor? bonus, Tensor? bonus_scale, "
    "int round, Tensor? round_tensor, Tensor[] drop_scores, Tensor[] grow_signal, int[] grow_seeds, int[] where, int[] total, "
    "bool growth, int word, int shift, Tensor prefix, Tensor? drop_from) -> Tensor",
    lambda params, *rest: params[0].new_empty((len(params), 256), dtype=torch.int32),
)


def key_histogram(
    params: Sequence[Tensor],
    grads: Sequence[Tensor] | None,
    mask_bits: Sequence[Tensor],
    counts: Sequence[Tensor] | None,
    *,
    bonus: Tensor | None = None,
    bonus_scale: Tensor | None = None,
    round: int | Tensor = 0,
    drop_scores: Sequence[Tensor] | None = None,
    grow_signal: Sequence[Tensor] | None = None,
    grow_seeds: Sequence[int] | None = None,
    where: Sequence[Sequence[int]] | Tensor | None = None,
    total: Sequence[int] | Tensor | None = None,
    growth: bool,
    word: int,
    shift: int,
    prefix: Tensor,
    drop_from: Tensor | None = None,
) -> Tensor:
    """How many candidates of each layer have each value of one byte of their key, behind what is known of the k-th: reads only.

    A key is three words, larger first as :func:`drop_grow_` selects:

    ====== ================================= ============ ===================
    word   drop (``growth=False``)           growth       bits
    ====== ================================= ============ ===================
    0      0x7F800001 - rank(abs(w))         rank(score)  32
    1      0                                 rank(signal) 32
    2      total - 1 - global index          the same     64
    ====== ================================= ============ ===================

    rank(x) is 0 for NaN, else the bits of the float32 abs(x), plus 1. Word 1 is 0 without a bonus: signal and score are the
    same. Candidates of the drop are the active weights, those of the growth the inactive ones and the active ones whose key of
    the drop is at least ``drop_from``. Counted are those whose words before ``word`` equal ``prefix`` and whose ``word`` equals
    it above the byte at ``shift``. Layers that are cut in parts add up the counts of these; then the byte in which the k-th of
    the whole lies is known, and the next follows. Once all that agree with the bytes found are wanted, those bytes, with zeros
    behind, are the key from which on the drop takes weights: ``drop_from`` of the growth. Each call reads the weights once.

    Args:
        params, grads, mask_bits, counts, bonus, bonus_scale, round, drop_scores, grow_signal, grow_seeds, where: as in
            :func:`drop_grow_`, which is called afterwards with the parts of k that were found; ``params`` after the step.
        total: weights of the whole layers: a list, or int64 [L] on the CPU; default those of ``params``.
        growth: the key and the candidates of the growth, or of the drop.
        word, shift: which byte: shift 0, 8, 16 or 24, for word 2 up to 56.
        prefix: int64 [L, 3] on the device, the words of the key as far as they are known.
        drop_from: int64 [L, 3] on the device, for the growth with ``regrow``: the words of the drop's key, compared one after
            another, from which on active weights are candidates. (0, 0, 0) takes all of a layer, (2**62, 0, 0) none. None:
            none of any layer.

    Returns:
        int32 [L, 256] on the device, no host sync.

    Raises:
        TypeError, ValueError: an argument does not fit; the text names it and its list index.
    """
    _budget_checks.check_digit(growth, word, shift)
    params = _checks.tensor_list("params", params)
    L = len(params)
    if growth and grads is None and grow_signal is None and grow_seeds is None:
        raise ValueError("grads is None: gradient growth needs them; or pass grow_signal or grow_seeds")
    if grow_signal is not None and grow_seeds is not None:
        raise ValueError("grow_signal and grow_seeds both given: growth ranks one of them")
    if drop_from is not None and not growth:
        raise ValueError("drop_from given with growth=False: it says which active weights the growth counts; leave it out")
    grads = _checks.tensor_list("grads", grads, L, optional=True)
    mask_bits = _checks.tensor_list("mask_bits", mask_bits, L)
    counts = _checks.tensor_list("counts", counts, L, optional=True)
    drop_scores = _checks.tensor_list("drop_scores", drop_scores, L, optional=True)
    grow_signal = _checks.tensor_list("grow_signal", grow_signal, L, optional=True)
    if not params:
        return torch.zeros(0, 256, dtype=torch.int32)
    device = params[0].device
    seeds = _checks.seeds(grow_seeds, L)
    round, round_tensor = _checks.split_round(round, device)
    if bonus is not None and not counts:
        raise ValueError("bonus given without counts: the bonus depends on the counters; pass both or neither")
    _checks.check_bonus(bonus, round, device, bonus_scale, L)
    sizes = _budget_checks.read_sizes(total, params)
    places = _budget_checks.read_places(where, params, sizes)
    _checks.check_per_layer("prefix", prefix, torch.int64, (L, 3), device)
    if drop_from is not None:
        _checks.check_per_layer("drop_from", drop_from, torch.int64, (L, 3), device)

    def check() -> None:
        signals = {"drop_scores": drop_scores, "grow_signal": grow_signal}
        _checks.check_layers(params, mask_bits, grads=grads, momenta=[], counts=counts, signals=signals)

    return call(
        "key_histogram", device, check,
        params, grads, mask_bits, counts, bonus, bonus_scale, round, round_tensor, drop_scores, grow_signal, seeds, places,
        sizes, growth, word, shift, prefix, drop_from,
    )  # fmt: skip
