"""The k-th of keys that several ranks hold, found byte by byte: ranks add up how many keys have each value of the next byte."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Cursor", "Ints", "Message", "Rounds", "advance", "crossing", "exchange", "index_bytes", "word_bytes"]

_FEW = 255

T = TypeVar("T")
Ints: TypeAlias = npt.NDArray[np.int64]


class Message(NamedTuple):
    """What a rank adds to a sum over ranks.

    Attributes:
        rows: counts [m, 256] on the layers' device: int32, or int64 where a layer has 2**31 weights or more. Whoever sends them
            may overwrite them.
        layers: of which layer each row is, the same on all ranks. A row is summed over the ranks that hold parts of its layer,
            each part once.
    """

    rows: Tensor
    layers: list[int]


Rounds: TypeAlias = Generator[Message, Tensor, T]
"""A computation over ranks: yields a message a round, is sent the sums (int64 [m, 256] on the CPU), and returns at the end."""


def word_bytes(word: int, bits: int = 32) -> list[tuple[int, int]]:
    """(word, shift) of the bytes of a word of a key, the most significant first."""
    return [(word, shift) for shift in range(bits - 8, -1, -8)]


def index_bytes(total: int) -> list[tuple[int, int]]:
    """Those of word 2, the index, in which the weights of a layer of ``total`` differ."""
    return word_bytes(2, 8 * -(-(total - 1).bit_length() // 8))


def crossing(sums: Ints, want: int) -> tuple[int, int]:
    """The byte of the ``want``-th largest key, and how many keys with this byte are among the ``want`` first.

    ``sums``: keys by byte, int64 [256], at least ``want`` in all; ``want`` is at least 1.
    """
    from_here = sums[::-1].cumsum()[::-1]  # keys with this byte or a larger one
    byte = int((from_here >= want).sum()) - 1
    return byte, want - int(from_here[byte] - sums[byte])


@dataclass
class Cursor:
    """The search for the ``want`` largest keys of one layer over all ranks.

    Once it is settled they are those from ``prefix`` on, and ``here`` of them are this rank's.

    Attributes:
        side: what the keys are of.
        bytes: (word, shift) of the bytes that may decide, in order.
        to_the_end: the ``want``-th key itself is asked for, or the last where there are fewer; 0 where there is none.
        left: keys on all ranks that agree with all that is known.
        tied: words 1 and 2 of this rank's among them, once they are listed.
        prefix: the words of the ``want``-th key as far as they are known, 0 beyond.
    """

    side: str
    layer: int
    want: int
    bytes: list[tuple[int, int]]
    to_the_end: bool = False
    prefix: list[int] = field(default_factory=lambda: [0, 0, 0])
    here: int = 0
    at: int = 0
    settled: bool = False
    left: int = 2**62
    tied: dict[int, Ints] | None = None

    @property
    def byte(self) -> tuple[int, int]:
        """(word, shift) of the byte that the next round counts."""
        return self.bytes[self.at]

    @property
    def are_few(self) -> bool:
        """Whether the first word is known, and the keys that share it are so few that each rank may list its own."""
        return not self.settled and self.byte[0] > 0 and self.left <= _FEW

    def list_tied(self, tied: dict[int, Ints]) -> None:
        """``tied`` of keys that agree with the first word: of these, those that agree with all that is known."""
        for word, shift in self.bytes[: self.at]:
            if word:
                agrees = tied[word] >> shift == self.prefix[word] >> shift
                tied = {w: x[agrees] for w, x in tied.items()}
        self.tied = tied

    def row(self) -> Ints:
        """Counts of the listed keys by each of several bytes, side by side in the bits of one row: int64 [256], below 2**31.

        Keys that tie in one word mostly tie in the first bytes of the next, too, and each of these would take a round.
        """
        assert self.tied is not None
        row = np.zeros(256, dtype=np.int64)
        for bits, (word, shift) in self._side_by_side():
            row += np.bincount(self.tied[word] >> shift & 255, minlength=256) << bits
        return row

    def _side_by_side(self) -> list[tuple[int, tuple[int, int]]]:
        """The bytes that a row of listed keys counts, each from which bit on: no count is more than ``left``."""
        width = self.left.bit_length()
        return list(zip(range(0, 32 - width, width), self.bytes[self.at :], strict=False))

    def take(self, mine: Ints, sums: Ints) -> None:
        """One round's counts: this rank's, and those of all.

        Raises:
            RuntimeError: there are fewer keys than wanted, or equal ones; on all ranks, which see the same sums.
        """
        if self.at == 0 and (there := int(sums.sum())) < self.want:
            if not self.to_the_end:
                raise RuntimeError(
                    f"layer {self.layer} has {there} candidates on all ranks, but {self.side} wants {self.want}: the masks are "
                    "not what the number of active weights says, or ranks disagree on it; compare the ranks' states"
                )
            self.want, self.settled = there, not there
            if self.settled:
                return
        if self.tied is None:
            self._narrow(mine, sums)
            return
        before, width = self.left, self.left.bit_length()
        for bits, _ in self._side_by_side():
            self._narrow(mine >> bits & (1 << width) - 1, sums >> bits & (1 << width) - 1)
            if self.settled or self.left < before:  # the bytes behind were counted of keys that are out now
                break
        self.list_tied(self.tied)

    def _narrow(self, mine: Ints, sums: Ints) -> None:
        """What the counts by the next byte say."""
        word, shift = self.byte
        byte, self.want = crossing(sums, self.want)
        self.left = int(sums[byte])
        whole = self.want == int(sums[byte])
        self.here += int(mine[byte + (not whole) :].sum())
        self.prefix[word] |= byte << shift
        self.at += 1
        last = self.at == len(self.bytes)
        self.settled = last if self.to_the_end else whole
        if last and not self.settled:
            raise RuntimeError(
                f"layer {self.layer} has {int(sums[byte])} weights of one index: parts of ranks overlap, or replicas were "
                "added up; compare where the ranks' parts lie"
            )


def exchange(rows: Tensor, layers: Sequence[int], wide: bool) -> Rounds[tuple[Ints, Ints]]:
    """One round: this rank's counts (``rows``, integers [m, 256]) and the sums over ranks, both int64 [m, 256]."""
    mine = rows.to("cpu", torch.int64, copy=True)
    sums = yield Message(rows.to(torch.int64 if wide else torch.int32), list(layers))
    return mine.numpy(), sums.numpy()


def advance(cursors: Sequence[Cursor], rows: Tensor, wide: bool) -> Rounds[None]:
    """One round of all ``cursors``, each with a row of ``rows``."""
    mine, sums = yield from exchange(rows, [c.layer for c in cursors], wide)
    for c, own, of_all in zip(cursors, mine, sums, strict=True):
        c.take(own, of_all)
