"""What one rank sends while a block runs: collectives, their payload, and which byte of which layer's keys each row counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar
from unittest import mock

import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from dstee.distributed.cursor import Cursor

__all__ = ["Traffic", "watched"]

T = TypeVar("T")

_INPUTS = {"all_reduce": (0, "tensor"), "all_gather": (1, "tensor"), "all_gather_into_tensor": (1, "input_tensor"),
           "broadcast": (0, "tensor")}  # fmt: skip
"""Collective -> place and name of the tensor that goes in."""
_COUNTS = 256
"""Columns of a row of counts, by which a round of the agreement is told from all else."""


@dataclass
class Traffic:
    """``rounds``: of each message of the agreement its ``rows``, ``bytes`` and how many layers it counts by ``digits``
    (what is sought, word, shift). ``other``: name and bytes of each further collective. ``layer_bytes``: of the rounds, by
    layer."""

    rounds: list[dict[str, Any]] = field(default_factory=list)
    other: list[tuple[str, int]] = field(default_factory=list)
    layer_bytes: dict[int, int] = field(default_factory=dict)

    def to_dict(self, layers: int) -> dict[str, Any]:
        """For JSON; ``layers``: how many there are.

        Raises:
            RuntimeError: rows were sent that no layer's search has read, so that bytes by layer would be wrong.
        """
        for i, r in enumerate(self.rounds):
            if sum(r["digits"].values()) != r["rows"]:
                raise RuntimeError(f"round {i} sent {r['rows']} rows, but {sum(r['digits'].values())} were read: {r['digits']}")
        by_layer = [self.layer_bytes.get(i, 0) for i in range(layers)]
        return {"rounds": self.rounds, "other": [list(call) for call in self.other], "layer_bytes": by_layer}

    def sent(self, name: str, t: Tensor) -> None:
        size = t.numel() * t.element_size()
        if name == "all_reduce" and t.dim() == 2 and t.shape[1] == _COUNTS:
            self.rounds.append({"rows": t.shape[0], "bytes": size, "digits": {}})
        else:
            self.other.append((name, size))

    def read(self, c: Cursor) -> None:
        """A layer's row of the last round."""
        if not self.rounds:
            return  # nothing is sent where one rank holds all
        last = self.rounds[-1]
        digit = f"{c.side.removeprefix('the ')} {c.byte[0]}.{c.byte[1]}"
        last["digits"][digit] = last["digits"].get(digit, 0) + 1
        self.layer_bytes[c.layer] = self.layer_bytes.get(c.layer, 0) + last["bytes"] // last["rows"]


@contextmanager
def watched() -> Iterator[Traffic]:
    """Wraps torch's collectives for as long as the block runs."""
    traffic, take = Traffic(), Cursor.take

    def counted(name: str, call: Callable[..., T]) -> Callable[..., T]:
        place, keyword = _INPUTS[name]

        @wraps(call)
        def wrapper(*args: Any, **named: Any) -> T:
            traffic.sent(name, args[place] if len(args) > place else named[keyword])
            return call(*args, **named)

        return wrapper

    def read(c: Cursor, *args: Any) -> None:
        traffic.read(c)
        take(c, *args)

    with ExitStack() as stack:
        for module in (dist, distributed_c10d):  # the second calls its own, as for objects
            for name in _INPUTS:
                stack.enter_context(mock.patch.object(module, name, counted(name, getattr(module, name))))
        stack.enter_context(mock.patch.object(Cursor, "take", read))
        yield traffic
