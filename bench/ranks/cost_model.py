"""A model of what mask updates cost in training on many GPUs: formulas and assumptions, nothing measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["ALGORITHMS", "LINKS", "Link", "Machine", "Model", "Sent", "all_reduce_seconds", "share", "step_seconds",
           "update_seconds"]  # fmt: skip

ALGORITHMS = ("tree", "ring")
COUNT_BYTES = 7  # read for each weight and row of counts: score 4, counter 2, mask 1/8, rounded up
SWAP_BYTES = 12  # of drop_grow_ itself for each weight, see bench/README.md
ROW = 1024  # bytes of one row of counts


@dataclass(frozen=True)
class Link:
    """``latency`` of one hop in seconds, ``bandwidth`` of one rank's link in bytes a second; reaches ``most`` ranks."""

    name: str
    latency: float
    bandwidth: float
    most: int = 1 << 30


LINKS = (Link("nvlink", 3e-6, 300e9, 72), Link("infiniband", 6e-6, 40e9), Link("ethernet", 30e-6, 10e9))


@dataclass(frozen=True)
class Machine:
    """Of each rank: sustained ``flops``, ``memory`` in bytes a second; seconds on the host for each collective (launch, copy of
    the sums, wait) and for each row of counts (search in it)."""

    flops: float = 4e14
    memory: float = 2e12
    host_collective: float = 1e-4
    host_row: float = 1e-5


@dataclass(frozen=True)
class Model:
    """``parameters`` of the sparse layers, of which there are ``layers``."""

    name: str
    parameters: int
    layers: int


@dataclass(frozen=True)
class Sent:
    """Of one update: ``collectives`` in all, and payload ``layer_bytes`` of a layer."""

    collectives: int
    layer_bytes: float


def all_reduce_seconds(size: float, ranks: int, link: Link, algorithm: str) -> float:
    """Of ``size`` bytes. ring: 2 (R - 1) hops, and 2 (R - 1) / R times the size through each link; tree: up and down its
    log2 R levels, in chunks, so that the size goes twice through each link.

    Raises:
        ValueError: there is no such algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm is {algorithm!r}, expected {' or '.join(ALGORITHMS)}")
    if ranks == 1:
        return 0.0
    if algorithm == "ring":
        return 2 * (ranks - 1) * (link.latency + size / ranks / link.bandwidth)
    return 2 * math.ceil(math.log2(ranks)) * link.latency + 2 * size / link.bandwidth


def update_seconds(
    model: Model, sent: Sent, ranks: int, link: Link, algorithm: str = "tree", machine: Machine | None = None
) -> float:
    """One update: its collectives, what the host does for them, each row's sweep of its layer, and the swap itself."""
    m = Machine() if machine is None else machine
    c, rows = sent.collectives, sent.layer_bytes / ROW
    network = c * all_reduce_seconds(model.layers * sent.layer_bytes / c, ranks, link, algorithm) if c else 0.0
    host = c * m.host_collective + model.layers * rows * m.host_row
    return network + host + model.parameters / ranks * (rows * COUNT_BYTES + SWAP_BYTES) / m.memory


def step_seconds(model: Model, tokens: float, ranks: int, machine: Machine | None = None) -> float:
    """A training step of ``tokens`` over all ranks: 6 N tokens / (R flops)."""
    return 6 * model.parameters * tokens / (ranks * (Machine() if machine is None else machine).flops)


def share(update: float, step: float, every: int) -> float:
    """Of training time, with an update every ``every`` steps."""
    return update / (every * step + update)
