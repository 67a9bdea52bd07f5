"""Largest remainders in rational arithmetic, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def by_fractions(budget: int, shares: Sequence[int | Fraction], capacity: Sequence[int]) -> list[int]:
    def fill(budget: int, shares: Sequence[int | Fraction]) -> list[int]:
        parts, rest = [0] * len(shares), [i for i, s in enumerate(shares) if s > 0]
        while rest:
            whole = sum(shares[i] for i in rest)
            exact = {i: Fraction(budget * shares[i], whole) for i in rest}
            full = [i for i in rest if exact[i] >= capacity[i]]
            if not full:
                for i in rest:
                    parts[i] = int(exact[i])
                by_remainder = sorted(rest, key=lambda i: (int(exact[i]) - exact[i], i))
                for i in by_remainder[: budget - sum(parts[i] for i in rest)]:
                    parts[i] += 1
                break
            for i in full:
                parts[i] = capacity[i]
                budget -= capacity[i]
                rest.remove(i)
        return parts

    budget = min(budget, sum(capacity))
    parts = fill(budget, shares)
    return [a + b for a, b in zip(parts, fill(budget - sum(parts), [int(s == 0) for s in shares]), strict=True)]
