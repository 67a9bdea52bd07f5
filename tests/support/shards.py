"""One layer cut into parts, as processes hold them, and the parts' shares of an update found by counting alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dstee import encoding, ops
from dstee.testing import Case

LISTS = ("params", "grads", "momenta", "counts")


@dataclass
class Part:
    """What one process holds of a case: for each layer a block of rows, or of columns, of its matrix [rows, columns]."""

    case: Case
    where: list[tuple[int, int, int]]

    def histogram(self, **options: Any) -> Tensor:
        c = self.case
        named = {name: x for name, x in c.options.items() if name not in ("regrow", "reset_regrown")}
        given = dict(bonus=c.bonus, round=c.round, where=self.where)
        return ops.key_histogram(c.params, c.grads, c.mask_bits, c.counts, **named, **given, **options)


def cut(case: Case, columns: list[int], ranks: int, by_rows: bool) -> list[Part]:
    """The parts of ``ranks`` processes, as torch.chunk deals rows or columns; some are empty."""
    return [_part(case, columns, rank, ranks, by_rows) for rank in range(ranks)]


def _part(case: Case, columns: list[int], rank: int, ranks: int, by_rows: bool) -> Part:
    where, blocks = [], []
    for p, width in zip(case.params, columns, strict=True):
        rows = p.numel() // width
        size = rows if by_rows else width
        step = -(-size // ranks)
        low = min(rank * step, size)
        high = min(low + step, size)
        if by_rows:
            blocks.append((slice(low, high), slice(None)))
            where.append((low * width, max((high - low) * width, 1), max((high - low) * width, 1)))
        else:
            blocks.append((slice(None), slice(low, high)))
            where.append((low, max(high - low, 1), width))

    def block(i: int, t: Tensor) -> Tensor:
        return encoding.flat(t).view(-1, columns[i])[blocks[i]].reshape(-1).clone()

    def parts(tensors: list[Tensor] | None) -> list[Tensor] | None:
        return tensors and [block(i, t) for i, t in enumerate(tensors)]

    bits = [encoding.pack_bits(block(i, mask)) for i, mask in enumerate(case.masks())]
    options = {k: parts(v) if k in ("drop_scores", "grow_signal") else v for k, v in case.options.items()}
    own = {name: parts(getattr(case, name)) for name in LISTS}
    return Part(replace(case, **own, mask_bits=bits, options=options), where)


NO_KEY = 2**62  # a first word that no key reaches


def agree(
    parts: list[Part], sizes: list[int], k: list[int], growth: bool, drop_from: Tensor | None = None
) -> tuple[list[list[int]], Tensor]:
    """How many of the k weights of each layer that are dropped, or grown, lie in each part, and int64 [layers, 3] from which
    key on they are: from sums of histograms alone."""
    L = len(sizes)
    want, taken = list(k), [[0] * L for _ in parts]
    prefix = torch.tensor([[0 if k[i] else NO_KEY, 0, 0] for i in range(L)])
    open_ = [i for i in range(L) if k[i]]
    for word, shift in _bytes(growth and parts[0].case.bonus is not None, max(sizes)):
        if not open_:
            break
        digit = dict(growth=growth, word=word, shift=shift, prefix=prefix.clone(), total=sizes)
        of_parts = [part.histogram(**digit, drop_from=drop_from) for part in parts]
        whole = torch.stack(of_parts).sum(0)
        for i in list(open_):
            above = whole[i].flip(0).cumsum(0).flip(0)  # candidates with this digit or a higher one
            d = int((above >= want[i]).sum()) - 1
            want[i] -= int(above[d] - whole[i, d])
            everything = want[i] == int(whole[i, d])
            for r, mine in enumerate(of_parts):
                taken[r][i] += int(mine[i, d + (not everything) :].sum())
            prefix[i, word] |= d << shift
            if everything:
                open_.remove(i)
    assert not open_, "the index tells all weights apart"
    return taken, prefix


def _bytes(signal: bool, largest: int) -> Iterator[tuple[int, int]]:
    """The bytes of a key that may decide, in order."""
    for word in (0, 1) if signal else (0,):
        yield from ((word, shift) for shift in (24, 16, 8, 0))
    yield from ((2, shift) for shift in range(8 * ((largest.bit_length() - 1) // 8), -1, -8))


def update(case: Case, columns: list[int], ranks: int, by_rows: bool) -> list[Part]:
    """The parts after the update of ``case``, whose k does not exceed what is there: each drops and grows its own share."""
    parts = cut(case, columns, ranks, by_rows)
    sizes = [p.numel() for p in case.params]
    k = [int(x) for x in case.k]
    regrow = case.options.get("regrow", True)
    if not regrow:
        k = [min(x, int((~mask).sum())) for x, mask in zip(k, case.masks(), strict=True)]
    drops, drop_from = agree(parts, sizes, k, growth=False)
    grows, _ = agree(parts, sizes, k, growth=True, drop_from=drop_from if regrow else None)
    for part, drop, grow in zip(parts, drops, grows, strict=True):
        part.case.k = drop
        part.case.options |= dict(k_grow=grow, where=part.where)
        part.case.drop_grow_()
    return parts
