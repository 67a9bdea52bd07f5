"""Which ranks differ from most of the others, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

__all__ = ["dissenters", "name_ranks", "name_rest"]

T = TypeVar("T")

_NAMED = 8  # ranks by number in one text


def dissenters(values: Mapping[int, T]) -> Iterator[tuple[list[int], T, T]]:
    """(ranks, their value, the value of most ranks) for each value but the most frequent one.

    Args:
        values: by rank, in an order that is the same everywhere; of values that are equally frequent the first one's counts.
    """
    usual = Counter(values.values()).most_common(1)[0][0]
    for value in dict.fromkeys(values.values()):
        if value != usual:
            yield [rank for rank, other in values.items() if other == value], value, usual


def name_ranks(ranks: Sequence[int]) -> str:
    """ "rank 2", "ranks 0, 3"."""
    named = ", ".join(map(str, ranks[:_NAMED]))
    more = f", ... ({len(ranks)} in all)" if len(ranks) > _NAMED else ""
    return f"rank{'s' * (len(ranks) > 1)} {named}{more}"


def name_rest(odd: Sequence[int], ranks: Sequence[int]) -> str:
    """Those of ``ranks`` that are not ``odd``: "rank 0", "the others"."""
    rest = [rank for rank in ranks if rank not in odd]
    return name_ranks(rest) if len(rest) == 1 else "the others"
