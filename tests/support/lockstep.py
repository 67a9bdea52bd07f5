"""Ranks simulated in one process: what they would add up is added up here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from dstee.distributed.agree import Rounds

T = TypeVar("T")


@dataclass
class Traffic:
    """What one rank sends: ``rows`` of 256 counts and ``bytes``, by round; ``layers`` of each row."""

    rows: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)


def lockstep(ranks: Sequence[Rounds[T]], replicas: int = 1, traffic: Traffic | None = None) -> list[T]:
    """Runs the computations of all ranks to their end and returns what each returns. Every one of ``replicas`` equal runs of
    ranks holds all layers: they are summed apart. A rank that raises ends the run, once all others have raised the same."""
    each = len(ranks) // replicas
    sums: list[Tensor | None] = [None] * len(ranks)
    while True:
        messages, results, errors = [], [], []
        for rank, said in zip(ranks, sums, strict=True):
            try:
                messages.append(rank.send(said))
            except StopIteration as end:
                results.append(end.value)
            except RuntimeError as error:
                errors.append(error)
        assert max(len(messages), len(results), len(errors)) == len(ranks), "ranks are in different rounds"
        if errors:
            assert len(set(map(str, errors))) == 1, "ranks raise different errors"
            raise errors[0]
        if results:
            return results
        first = messages[0]
        assert all(m.layers == first.layers and m.rows.dtype == first.rows.dtype for m in messages), "ranks send different rows"
        assert first.rows.shape == (len(first.layers), 256) and first.layers
        if traffic is not None:
            traffic.rows.append(len(first.layers))
            traffic.bytes.append(first.rows.numel() * first.rows.element_size())
            traffic.layers += first.layers
        for start in range(0, len(ranks), each):
            of_all = torch.stack([m.rows for m in messages[start : start + each]]).sum(0, dtype=torch.int64)
            sums[start : start + each] = [of_all.clone() for _ in range(each)]
        for m in messages:
            m.rows.fill_(-1)  # a collective may sum in place
