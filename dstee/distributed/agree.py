"""Ranks agree only on how many: which part of an update's k falls to each, and which weights of whole layers are chosen.

Ranks hold parts of layers. In a few rounds they add up counts of keys (:mod:`dstee.distributed.cursor`), after which each knows
how many of the selected weights are its own; these are the first so many of its part, whose order is that of the whole
(:mod:`dstee.distributed.where`). Nothing but counts travels, and neither rounds nor bytes depend on the number of ranks.
No group is named here: a caller sends the messages (:mod:`dstee.distributed.ranks`), over the ranks of each layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dstee import ops, rules
from dstee._float_mode import with_gradual_underflow
from dstee.distributed.cursor import Cursor, Ints, Message, Rounds, advance, crossing, exchange, index_bytes, word_bytes
from dstee.distributed.where import Where
from dstee.encoding import flat, mask_bytes, unpack_bits
from dstee.sparsity_distribution import mask_hashes

__all__ = ["Message", "Ranked", "Rounds", "Shares", "kept", "largest", "random_masks", "shares"]

T = TypeVar("T")
Hashes: TypeAlias = npt.NDArray[np.uint64]

DROP, GROWTH, SCALE = "the drop", "the growth", "the scale"  # what a cursor looks for

_CHUNK = 1 << 20  # weights whose keys are in memory at a time; whole bytes of mask bits
_SMALLEST = 0x0080_0000  # 2**-126, the least that a bonus is scaled with
_NO_KEY = [2**62, 0, 0]  # larger than any


@dataclass
class Ranked:
    """What an update ranks: this rank's parts of layers, one entry per layer, as the arguments of ``ops.key_histogram``.

    Attributes:
        where: where the parts lie; those without a weight are left to the other ranks.
        bonus: float32, or float64 in units of the signal: :func:`shares` finds the scale then.
        scale_k: the k of ``ops.growth_scale`` where it is not ``k_grow``: what was asked for before it was clipped.
    """

    params: list[Tensor]
    mask_bits: list[Tensor]
    where: list[Where]
    grads: list[Tensor] | None = None
    counts: list[Tensor] | None = None
    bonus: Tensor | None = None
    round: int = 0
    drop_scores: list[Tensor] | None = None
    grow_signal: list[Tensor] | None = None
    grow_seeds: list[int] | None = None
    regrow: bool = True
    scale_k: list[int] | None = None

    @property
    def scaled(self) -> bool:
        return self.bonus is not None and self.bonus.dtype is torch.float64

    @property
    def signals(self) -> list[Tensor]:
        """What the growth ranks, unless at random."""
        return self.grow_signal or self.grads or []

    def drop_bytes(self, i: int) -> list[tuple[int, int]]:
        """Those of a drop key of layer ``i`` that may decide."""
        return _rank_bytes(0, (self.drop_scores or self.params)[i]) + index_bytes(self.where[i].total)

    def growth_bytes(self, i: int) -> list[tuple[int, int]]:
        """Those of a growth key of layer ``i`` that may decide."""
        signal = None if self.grow_seeds else self.signals[i]
        score = _rank_bytes(0, signal) if self.bonus is None else word_bytes(0) + _rank_bytes(1, signal)
        return score + index_bytes(self.where[i].total)


def _rank_bytes(word: int, of: Tensor | None) -> list[tuple[int, int]]:
    """The bytes in which ranks of ``of`` differ; those of a bfloat16 never in the third, and in the last as NaN from 0.0."""
    short = of is not None and of.dtype is torch.bfloat16
    return [byte for byte in word_bytes(word) if not (short and byte == (word, 8))]


class Shares(NamedTuple):
    """This rank's parts of an update, by layer: ``k`` and ``k_grow`` of ``ops.drop_grow_``, and where the bonus is float64 its
    ``bonus_scale``, float32 [L] on the layers' device."""

    drop: list[int]
    grow: list[int]
    scale: Tensor | None


def shares(ranked: Ranked, k: list[int], k_grow: list[int]) -> Rounds[Shares]:
    """This rank's parts of the ``k`` weights that each layer drops and the ``k_grow`` that it grows, over all ranks.

    Numbers are of whole layers and the same on all ranks: k at most the active weights, k_grow at most the inactive ones and,
    with ``regrow``, the k dropped ones. Without ``regrow``, callers that pass one k for both clip it to the inactive weights.

    Raises:
        RuntimeError: a layer has fewer candidates than it is to drop or grow.
    """
    where, L = ranked.where, len(ranked.where)
    drop = {i: Cursor(DROP, i, k[i], ranked.drop_bytes(i)) for i in range(L) if k[i]}
    grow = {i: Cursor(GROWTH, i, k_grow[i], ranked.growth_bytes(i)) for i in range(L) if k_grow[i]}
    scale: dict[int, Cursor] = {}
    if ranked.scaled:
        places = [_place_of_scale(n, place.total) for n, place in zip(ranked.scale_k or k_grow, where, strict=True)]
        scale = {i: Cursor(SCALE, i, places[i], _rank_bytes(0, ranked.signals[i]), to_the_end=True) for i in grow}
    first = [drop, scale] if ranked.regrow else [scale]  # what a layer's growth waits for
    counting = _Counting(ranked, drop, scale)
    while True:
        ready = [c for i, c in grow.items() if all(side[i].settled for side in first if i in side)]
        cursors = [c for c in (*drop.values(), *scale.values(), *ready) if not c.settled]
        if not cursors:
            break
        yield from advance(cursors, counting.rows(cursors), _wide(where))
    mine = [[side[i].here if i in side else 0 for i in range(L)] for side in (drop, grow)]
    return Shares(mine[0], mine[1], counting.scales(range(L)) if ranked.scaled else None)


def _place_of_scale(k: int, total: int) -> int:
    """Which of the sampled inactive weights ``ops.growth_scale`` looks for."""
    return max(1, -(-min(k, total) * min(total, rules.MOST_SAMPLED) // max(total, 1)))


def _wide(where: Sequence[Where]) -> bool:
    return any(place.total >= 2**31 for place in where)


class _Counting:
    """Counts this rank's candidates of an update."""

    def __init__(self, ranked: Ranked, drop: dict[int, Cursor], scale: dict[int, Cursor]):
        self.ranked, self.drop, self.scale = ranked, drop, scale
        self.device = ranked.params[0].device if ranked.params else torch.device("cpu")
        self.sampled = _sample(ranked.signals, ranked, [i for i in scale if ranked.where[i].n]) if scale else {}

    def rows(self, cursors: Sequence[Cursor]) -> Tensor:
        """A row for each cursor, int32 [m, 256]: one call of the op for all that are at the same byte of the same key."""
        rows = [torch.zeros(256, dtype=torch.int32, device=self.device)] * len(cursors)
        groups: dict[tuple[str, int, int], list[int]] = {}
        for row, c in enumerate(cursors):
            if c.are_few and c.tied is None:
                c.list_tied(self.tied(c))
            if c.tied is not None:
                rows[row] = self.there(c.row().tolist(), torch.int32)
            elif self.ranked.where[c.layer].n:
                groups.setdefault((c.side, *c.byte), []).append(row)
        for (side, _, _), places in groups.items():
            group = [cursors[row] for row in places]
            found = self.count_sampled(group) if side == SCALE else self.count_keys(group)
            for row, counted in zip(places, found, strict=True):
                rows[row] = counted
        return torch.stack(rows)

    def count_keys(self, cursors: Sequence[Cursor]) -> Tensor:
        """Of cursors at one byte of one side."""
        r, layers = self.ranked, [c.layer for c in cursors]
        (word, shift), growth = cursors[0].byte, cursors[0].side == GROWTH

        def of(values: Sequence[T] | None) -> list[T] | None:
            return None if values is None else [values[i] for i in layers]

        named: dict[str, Any] = {}
        if growth:
            named = dict(grow_signal=of(r.grow_signal), grow_seeds=of(r.grow_seeds), bonus=r.bonus, round=r.round)
            if r.regrow:
                named["drop_from"] = self.there([self.drop[i].prefix if i in self.drop else _NO_KEY for i in layers])
            if r.scaled:
                named["bonus_scale"] = self.scales(layers)
        return ops.key_histogram(
            [r.params[i] for i in layers], of(r.grads) if growth else None, [r.mask_bits[i] for i in layers],
            of(r.counts) if growth else None, drop_scores=of(r.drop_scores), where=[r.where[i].place for i in layers],
            total=[r.where[i].total for i in layers], growth=growth, word=word, shift=shift,
            prefix=self.there([c.prefix for c in cursors]), **named,
        )  # fmt: skip

    def tied(self, c: Cursor) -> dict[int, Ints]:
        """Words 1 and 2 of this rank's keys that share the cursor's first word."""
        least = None
        if c.side == GROWTH:
            least = self.drop[c.layer].prefix if c.layer in self.drop and self.ranked.regrow else _NO_KEY
        scale = self.scales([c.layer]) if self.ranked.scaled and c.side == GROWTH else None
        return _tied([self.ranked.params[c.layer]], self.ranked, c.layer, c.prefix[0], least, scale)

    def count_sampled(self, cursors: Sequence[Cursor]) -> Tensor:
        """Of cursors at one byte of the ranks that ``ops.growth_scale`` samples."""
        shift, found = cursors[0].byte[1], []
        for c in cursors:
            ranks = self.sampled[c.layer]
            ranks = ranks[ranks >> shift + 8 == c.prefix[0] >> shift + 8]
            found.append(np.bincount(ranks >> shift & 255, minlength=256))
        return torch.from_numpy(np.stack(found)).to(self.device, torch.int32)

    def scales(self, layers: Sequence[int]) -> Tensor:
        """``bonus_scale`` of ``layers``: float32 on the device."""
        bits = [self.scale[i].prefix[0] - 1 if i in self.scale else 0 for i in layers]
        return self.there([x if x > 0 else _SMALLEST for x in bits], torch.int32).view(torch.float32)

    def there(self, numbers: list[Any], dtype: torch.dtype = torch.int64) -> Tensor:
        """Numbers of the host on the device, without waiting for it."""
        return torch.tensor(numbers, dtype=dtype).to(self.device, non_blocking=True)


@with_gradual_underflow
def _tied(
    params: list[Tensor], r: Ranked, i: int, first: int, least: list[int] | None, scale: Tensor | None
) -> dict[int, Ints]:
    """Words 1 and 2 of the keys of layer ``i`` whose first word is ``first``: of the growth, ``least`` being the key from which
    on the drop takes, or of the drop."""
    place, dropping = r.where[i], flat(r.drop_scores[i] if r.drop_scores else params[0])
    found = [torch.zeros(2, 0, dtype=torch.int64)]
    for start in range(0, place.n, _CHUNK):
        stop = min(start + _CHUNK, place.n)
        active = unpack_bits(r.mask_bits[i][start // 8 : mask_bytes(stop)], stop - start)
        index = place.to_global(torch.arange(start, stop, device=active.device))
        key, place_key = rules.drop_key(dropping[start:stop]), place.total - 1 - index
        signal, candidates = torch.zeros_like(key), active
        if least is not None:
            above = (key > least[0]) | ((key == least[0]) & (least[1] == 0) & (place_key >= least[2]))
            candidates = ~active | above
            g = rules.random_unit(r.grow_seeds[i], index) if r.grow_seeds else flat(r.signals[i])[start:stop].float().abs()
            stored = r.counts[i][start:stop] if r.counts else None
            key = rules.rank(rules.growth_score(g, stored, active, r.bonus, scale, r.round))
            signal = signal if r.bonus is None else rules.rank(g)
        at = (candidates & (key == first)).nonzero().view(-1)
        found.append(torch.stack([signal[at], place_key[at]]).cpu())
    words = torch.cat(found, 1).numpy()
    return {1: words[0], 2: words[1]}


@with_gradual_underflow
def _sample(signals: list[Tensor], ranked: Ranked, layers: list[int]) -> dict[int, Ints]:
    """The ranks of what ``ops.growth_scale`` samples of the whole layers, where it lies here and is inactive: int64 each."""
    found = []
    for i in layers:
        place, bits = ranked.where[i], ranked.mask_bits[i]
        at = place.to_local(rules.sample_positions(place.total, ranked.round, torch.device("cpu")))
        at = at[at >= 0].to(bits.device)
        active = (bits[at >> 3] >> (at & 7) & 1).bool()
        found.append(torch.where(active, -1, rules.rank(flat(signals[i])[at])))
    if not found:
        return {}
    ranks = torch.cat(found).cpu()  # one copy for all
    return {i: x[x >= 0].numpy() for i, x in zip(layers, ranks.split([len(x) for x in found]), strict=True)}


# --- weights chosen over all layers, or of whole layers ------------------------------------------------------------------


def kept(
    values: list[Tensor], mask_bits: list[Tensor], where: list[Where], total: int, by_score: bool
) -> Rounds[tuple[list[int], list[int]]]:
    """How many active weights of each layer are among the ``total`` first of all layers: on this rank, and on all.

    The order is that of ``ops.global_keep_``, which does the rest with each layer alone: score descending, layer ascending,
    global index ascending.

    Args:
        values: this rank's parts of the weights, ranked by abs, or with ``by_score`` of scores with a sign.
        total: the same on all ranks, at most the active weights.

    Raises:
        RuntimeError: there are fewer active weights than ``total``.
    """
    wide, L = _wide(where), len(where)
    here, everywhere, want, prefix = [0] * L, [0] * L, total, [0, 0, 0]
    layers = list(range(L)) if total else []
    for word, shift in word_bytes(0):
        if not layers:
            return here, everywhere
        rows = _count_values(values, mask_bits, where, layers, by_score, prefix, word, shift)
        mine, sums = yield from exchange(rows, layers, wide)
        if shift == 24 and (there := int(sums.sum())) < total:
            raise RuntimeError(
                f"{total} weights are to stay, but only {there} are active on all ranks: ranks disagree on masks or numbers; "
                "compare their states"
            )
        byte, want = crossing(sums.sum(0), want)
        for i, own, of_all in zip(layers, mine, sums, strict=True):
            here[i] += int(own[byte + 1 :].sum())
            everywhere[i] += int(of_all[byte + 1 :].sum())
        prefix[word] |= byte << shift
        ties = {i: (int(own[byte]), int(of_all[byte])) for i, own, of_all in zip(layers, mine, sums, strict=True)}
        layers = [i for i in layers if ties[i][1]]
        if want == sum(ties[i][1] for i in layers):
            break
    # Of equal scores the first layers' stay, and in the layer in which they run out those of the first indices.
    for i in layers:
        if not want:
            break
        if want >= ties[i][1]:
            own, of_all = ties[i]
        else:
            c = Cursor("the choice of what stays", i, want, index_bytes(where[i].total), prefix=prefix)
            while not c.settled:
                yield from advance([c], _count_values(values, mask_bits, where, [i], by_score, c.prefix, *c.byte), wide)
            own, of_all = c.here, want
        here[i], everywhere[i], want = here[i] + own, everywhere[i] + of_all, want - of_all
    return here, everywhere


@with_gradual_underflow
def _count_values(
    values: list[Tensor], mask_bits: list[Tensor], where: list[Where], layers: list[int], by_score: bool, prefix: list[int],
    word: int, shift: int,
) -> Tensor:  # fmt: skip
    """Active weights of ``layers`` by one byte of (rank, 0, inverted global index), behind ``prefix``: int32 [m, 256]."""
    rows = torch.zeros(len(layers), 257, dtype=torch.int32, device=values[0].device)
    for row, i in zip(rows, layers, strict=True):
        place, x = where[i], flat(values[i])
        for start in range(0, place.n, _CHUNK):
            part = x[start : start + _CHUNK].float()
            key = rules.signed_rank(part) + rules.MAX_RANK if by_score else rules.rank(part)
            counted = unpack_bits(mask_bits[i][start // 8 : (start + _CHUNK) // 8], len(part))
            if word == 2:
                counted = counted & (key == prefix[0])
                key = place.total - 1 - place.to_global(torch.arange(start, start + len(part), device=x.device))
            counted = counted & (key >> shift >> 8 == prefix[word] >> shift >> 8)
            row.scatter_add_(0, torch.where(counted, key >> shift & 255, 256), torch.ones_like(key, dtype=torch.int32))
    return rows[:, :256]


def random_masks(names: list[str], nnz: list[int], seed: int, where: list[Where]) -> Rounds[list[Tensor]]:
    """This rank's parts of ``sparsity_distribution.random_mask`` of whole layers: bool [n] each, on the CPU, as the messages.

    Raises:
        ValueError: an ``nnz`` is outside what the layer has.
    """
    for name, wanted, place in zip(names, nnz, where, strict=True):
        if not 0 <= wanted <= place.total:
            raise ValueError(f"nnz of {name!r} must be in 0..{place.total}, got {wanted}")
    chosen = {
        i: Cursor("the random mask", i, wanted, word_bytes(0, 64))
        for i, wanted in enumerate(nnz)
        if 0 < wanted < where[i].total
    }
    left: dict[int, list[Hashes]] = {}

    def row(c: Cursor) -> Tensor:
        i, shift, found = c.layer, c.byte[1], np.zeros(256, dtype=np.int64)
        keys = left.get(i, _hashes(where[i], seed, names[i]))
        if c.at:  # of the hashes themselves only those that are still in question are kept
            above = np.uint64(shift + 8)
            keys = left[i] = [x[x >> above == np.uint64(c.prefix[0]) >> above] for x in keys]
        for x in keys:
            found += np.bincount((x >> np.uint64(shift)).astype(np.uint8), minlength=256)
        return torch.from_numpy(found)

    while cursors := [c for c in chosen.values() if not c.settled]:
        yield from advance(cursors, torch.stack([row(c) for c in cursors]), _wide(where))
    left.clear()
    masks = []
    for i, place in enumerate(where):
        mask = torch.full((place.n,), nnz[i] > 0)
        if i in chosen:
            parts = [torch.from_numpy(x >= np.uint64(chosen[i].prefix[0])) for x in _hashes(place, seed, names[i])]
            mask = torch.cat([mask[:0], *parts])
        masks.append(mask)
    return masks


def _hashes(place: Where, seed: int, name: str) -> Iterator[Hashes]:
    """The inverted hashes (the smallest are wanted) of a part of a layer, a chunk at a time."""
    for start in range(0, place.n, _CHUNK):
        index = place.to_global(torch.arange(start, min(start + _CHUNK, place.n)))
        yield ~mask_hashes(index.numpy().astype(np.uint64), seed, name)


def largest(weights: list[Tensor], nnz: list[int], where: list[Where]) -> Rounds[list[Tensor]]:
    """Masks of the ``nnz`` weights of each layer that are first in (abs descending, NaN last, global index ascending).

    Args:
        weights: this rank's parts of the layers, in any memory order.

    Returns:
        bool [n] each on the weights' device, row-major.
    """
    weights = [w.detach().reshape(-1).contiguous() for w in weights]
    none = [torch.zeros(mask_bytes(w.numel()), dtype=torch.uint8, device=w.device) for w in weights]
    found = yield from shares(Ranked(weights, none, where, grow_signal=weights), [0] * len(weights), nnz)
    return _first(weights, found.grow)


@with_gradual_underflow
def _first(weights: list[Tensor], k: list[int]) -> list[Tensor]:
    return [rules.first_k(rules.rank(flat(w)), torch.tensor(n, device=w.device)) for w, n in zip(weights, k, strict=True)]
