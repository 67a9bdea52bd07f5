"""What the CUDA kernels execute and move for one weight: counted in their PTX, which :mod:`predict` turns into times.

``cuda_counts.json``, written by ``tests/compile_checks/cuda_counts.py --write`` and held by ``make cuda-check``: ``how``, with
which compiler and of which ``commit`` it was counted, ``layers`` and ``weights`` of each; one of the ``entries`` for each op,
density and kernel. Figures are those of a weight, but for ``launches``, which is of a call.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstee._console import UsageError

__all__ = ["FILE", "Count", "Counts", "parse", "read"]

FILE = Path(__file__).with_name("cuda_counts.json")


@dataclass(frozen=True)
class Count:
    """One kernel of one op at one density.

    instructions: that a warp executes, in PTX. sectors: of 32 bytes, that a warp's loads, stores and atomics touch in global
    memory. wavefronts: turns that shared memory needs to serve them.
    """

    op: str
    density: float
    kernel: str
    launches: int
    instructions: float
    sectors: float
    wavefronts: float


@dataclass(frozen=True)
class Counts:
    """``weights``: of each of the ``layers`` that were counted. ``source``: how, and of which commit."""

    weights: int
    layers: int
    source: str
    entries: list[Count]

    def of(self, op: str, density: float) -> list[Count]:
        """The kernels of one call, in order.

        Raises:
            UsageError: nobody counted that density.
        """
        found = [entry for entry in self.entries if entry.op == op and entry.density == density]
        if not found:
            known = sorted({entry.density for entry in self.entries})
            raise UsageError(f"--density {density:g}: instructions were counted at {', '.join(f'{d:g}' for d in known)} only")
        return found


def read(path: Path = FILE) -> Counts:
    return parse(json.loads(path.read_text()))


def parse(data: dict[str, Any]) -> Counts:
    """Of the contents of ``cuda_counts.json``."""
    entries = [
        Count(
            e["op"],
            e["density"],
            e["kernel"],
            e["launches"],
            e["warp_instructions"],
            sum(e["sectors"].values()),
            e["wavefronts"],
        )
        for e in data["entries"]
    ]
    source = f"PTX of nvcc {data['nvcc']} for sm_{data['arch']}, {data['how']}; commit {data['commit']}"
    return Counts(data["weights"], data["layers"], source, entries)
