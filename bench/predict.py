"""How long the CUDA kernels should take on a GPU, from what they execute and move: no GPU is needed, and nothing is measured.

A kernel takes as long as the most loaded part of the GPU: the schedulers that issue its instructions, the memory that carries
its bytes, or the units between multiprocessor and cache that serve its loads and stores. All at work at once is the best that
can happen, one after the other the worst: a prediction has both ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import cuda_traffic
from .cuda_counts import Count, Counts

__all__ = ["ASSUMPTIONS", "GPUS", "OPS", "Gpu", "Kernel", "kernels"]

OPS = ("masked_sgd", "drop_grow", "drop_grow with SGD")
SASS = 0.74  # instructions that the GPU executes for one of PTX
SCHEDULERS = 4  # of a multiprocessor; each issues one instruction a clock
SECTORS = 2  # that a multiprocessor loads or stores in a clock
GAP = 3e-6  # seconds
STREAMED, SCATTERED = 0.9, 0.6  # shares of the bandwidth
SWAP = 0.3
# Kernels with one block for each layer, of so many warps; one warp issues once in so many clocks.
LONE = {"sample": 16, "select_grow": 16}
LONE_CLOCKS = 6
SCATTERING = ("select_drop", "commit")  # which read and write where the swapped weights lie

ASSUMPTIONS = f"""\
instructions: {SASS} for one of PTX (measured on an earlier build), one a clock of each scheduler, {SCHEDULERS} a multiprocessor
a warp by itself issues one in {LONE_CLOCKS} clocks, which bounds the kernels with one block a layer: {", ".join(LONE)}
memory: {STREAMED:.0%} of the bandwidth, as copies reach (3.0 TB/s on an H100, 4.3 on an H200)
memory of {", ".join(SCATTERING)}, which go where swapped weights lie: {SCATTERED:.0%} (a guess)
bytes: by bench/cuda_traffic.py, masks scattered, {SWAP:.0%} swapped, none found in a cache; small layers count as large ones
load/store: {SECTORS} sectors and 1 turn of shared memory a clock of each multiprocessor; waits for memory are hidden
launch: {GAP * 1e6:g} us of start, end and gap (a guess)"""


@dataclass(frozen=True)
class Gpu:
    """clock: GHz that it sustains, bandwidth: TB/s of its memory, both by the data sheet."""

    name: str
    processors: int
    clock: float
    bandwidth: float

    def __str__(self) -> str:
        return f"{self.name}: {self.processors} multiprocessors at {self.clock:g} GHz, {self.bandwidth:g} TB/s"


GPUS = {"a100": Gpu("A100", 108, 1.41, 2.0), "h100": Gpu("H100", 132, 1.755, 3.35), "h200": Gpu("H200", 132, 1.755, 4.8)}


@dataclass(frozen=True)
class Kernel:
    """Seconds of one kernel in one call: what each part of the GPU needs, and launches."""

    name: str
    launches: int
    issue: float
    memory: float
    units: float

    @property
    def gap(self) -> float:
        return self.launches * GAP

    @property
    def best(self) -> float:
        return max(self.issue, self.memory, self.units) + self.gap

    @property
    def worst(self) -> float:
        return self.issue + self.memory + self.units + self.gap

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        parts = {"issue": self.issue, "memory": self.memory, "load/store": self.units, "launch": self.gap}
        return max(parts, key=lambda name: parts[name])


def kernels(counts: Counts, gpu: Gpu, op: str, sizes: Sequence[int], density: float) -> list[Kernel]:
    """The kernels of one call over layers of these ``sizes``, float32 with momentum.

    Raises:
        UsageError: nobody counted that density.
    """
    layers = [cuda_traffic.scattered(n, density, SWAP) for n in sizes]
    if op == "masked_sgd":
        moved = {"masked_sgd": cuda_traffic.masked_sgd(layers).moved}
    else:
        step = op == "drop_grow with SGD"
        planned = cuda_traffic.drop_grow(layers, step=step, momenta=step, blocks=4 * gpu.processors)
        moved = {name: part.moved for name, part in planned.items()}
    return [_kernel(counts, count, gpu, sizes, moved[count.kernel]) for count in counts.of(op, density)]


def _kernel(counts: Counts, count: Count, gpu: Gpu, sizes: Sequence[int], moved: float) -> Kernel:
    layers, busy, weights, rate = len(sizes), gpu.processors, sum(sizes), float(SCHEDULERS)
    if count.kernel in LONE:  # the work of one block does not grow with its layer
        busy, weights = min(layers, busy), counts.weights * layers // counts.layers
        rate = min(rate, LONE[count.kernel] / LONE_CLOCKS * layers / busy)
    clocks = busy * gpu.clock * 1e9  # a second, of all multiprocessors at work
    share = SCATTERED if count.kernel in SCATTERING else STREAMED
    return Kernel(
        count.kernel,
        count.launches,
        count.instructions * SASS * weights / (rate * clocks),
        moved / (gpu.bandwidth * 1e12 * share),
        (count.sectors / SECTORS + count.wavefronts) * weights / clocks,
    )
