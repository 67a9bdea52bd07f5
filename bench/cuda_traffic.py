"""How many bytes the CUDA kernels of masked_sgd_ and drop_grow_ move: functions of facts about the layers, nothing is measured.

Two sums, since a GPU's memory moves sectors of 32 bytes:
  requested  the bytes that threads load and store, and the sectors of those that go to scattered places, but not what a whole
             warp reads from one place. The host harness of the tests counts these, and the tests hold the one to the other.
  moved      what global memory has to carry. A store to part of a sector costs the sector, a flipped mask bit a sector read
             and one written; what all threads of a block read is read once. No sum exceeds the whole tensor it touches.
State of a layer, bins and layer tables are left out: a few KB for each block, which stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from .layers import Layers, runs_of

__all__ = ["Bytes", "Layer", "by_kernel", "drop_grow", "masked_sgd", "of_masks", "scattered", "total"]

SECTOR, GROUP = 32, 8  # bytes that memory moves; weights that a thread of the update handles at a time
SMALL = 1 << 14  # weights of a layer that one block updates
TILE, WARPS = 1 << 14, 8  # of the sweep: weights at a time, warps of a block
LEAST_SAMPLED, MOST_SAMPLED, BINS, SPANS = 1 << 11, 1 << 13, 256, 4
ENTRY, CHUNK, UNDECIDED, STATE = 8, 16, 16, 10_272  # bytes
STAGED = 96  # entries that a warp has when it writes them out


@dataclass(frozen=True)
class Bytes:
    """Of one kernel, or of several."""

    loaded: float = 0
    stored: float = 0
    gathered: float = 0
    scattered: float = 0
    moved: float = 0

    @property
    def requested(self) -> float:
        return self.loaded + self.stored + self.gathered + self.scattered

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def total(kernels: dict[str, Bytes]) -> Bytes:
    return sum(kernels.values(), Bytes())


@dataclass(frozen=True)
class Layer:
    """What the sums depend on. Weights: n in all, ``active`` before the update, k dropped and k grown; ``gone`` of them are
    inactive afterwards, the others were dropped and grown at once. ``groups`` of 8 neighbours and ``sectors`` of the weights
    hold an active one. ``item``: bytes of a weight, of its gradient and momentum."""

    n: int
    active: float
    groups: float
    sectors: float
    k: float = 0
    gone: float = 0
    item: int = 4

    @property
    def is_small(self) -> bool:
        return self.n <= SMALL


def of_masks(before: Tensor, after: Tensor | None = None, k: int = 0, item: int = 4) -> Layer:
    """From the masks of a layer, bool of any shape in memory order."""
    gone = 0 if after is None else int((before & ~after).sum())
    return Layer(before.numel(), int(before.sum()), runs_of(before, GROUP), runs_of(before, SECTOR // item), k, gone, item)


def scattered(n: int, density: float, swap: float = 0.3, returned: float = 0.0, item: int = 4) -> Layer:
    """The expectation for a random mask; ``returned`` is the share of the dropped that grows again."""

    def runs(size: int) -> float:
        return n / size * (1 - (1 - density) ** size)

    k = swap * density * n
    return Layer(n, density * n, runs(GROUP), runs(SECTOR // item), k, k * (1 - returned), item)


def by_kernel(op: str, before: Layers, masks_after: Sequence[Tensor], processors: int) -> dict[str, float]:
    """Bytes that each kernel moves for one call of a benchmark's op, on a GPU with that many processors."""
    item = before.params[0].element_size()
    layers = [of_masks(*layer, item) for layer in zip(before.masks, masks_after, before.k, strict=True)]
    if op == "masked_sgd":
        return {"masked_sgd": masked_sgd(layers).moved}
    kernels = drop_grow(layers, step=False, momenta=False, blocks=4 * processors)
    return {name: part.moved for name, part in kernels.items()}


# --- masked_sgd_ ---------------------------------------------------------------------------------------------------------


def masked_sgd(layers: Sequence[Layer], momentum: bool = True) -> Bytes:
    """One launch: of active weights w, gradient and momentum; w and momentum back."""
    out, written = Bytes(), 1 + momentum
    for layer in layers:
        out += Bytes(
            loaded=layer.n / 8 + layer.item * layer.active * (1 + written),
            stored=layer.item * layer.active * written,
            moved=layer.n / 8 + SECTOR * layer.sectors * (1 + 2 * written),
        )
    return out


# --- drop_grow_ ----------------------------------------------------------------------------------------------------------


def sampled(n: int) -> int:
    return min(max(n // 64, LEAST_SAMPLED), MOST_SAMPLED) // GROUP * GROUP


def sample_rank(n: int, k: float) -> int:
    """How many of the sampled weights may be selected, almost surely."""
    mean = k * sampled(n) / n
    return int(1.25 * mean + 10 * math.sqrt(mean) + 16)


def listed(n: int, candidates: float, k: float) -> float:
    """Weights of one side, drop or growth, that the sweep lists."""
    return min(candidates, sample_rank(n, k) * n / sampled(n))


def sectors_of(n: int, scattered: float, item: int) -> float:
    """Sectors that hold one of so many scattered elements."""
    size = SECTOR // item
    return n / size * (1 - (1 - scattered / n) ** size)


def undecided(n: int, entries: float, k: float) -> float:
    """Those of the k-th key's bin. A bin that is met by a point is twice as wide as one that is drawn."""
    return 2 * entries / min(sample_rank(n, k), BINS * 3 // 4)


def tiles_of_span(layers: Sequence[Layer], blocks: int) -> int:
    """Neighbouring tiles that a block of the sweep takes at a time."""
    tiles = sum(math.ceil(layer.n / TILE) for layer in layers if not layer.is_small)
    return math.ceil(tiles / (SPANS * min(tiles, blocks))) if tiles else 1


def chunks(n: int, entries: float, span: int) -> float:
    """Pieces in which the sweep writes a layer's list: one a span of tiles, and one whenever a warp has too many entries."""
    spans = math.ceil(n / TILE / span)
    of_warp, window = entries / (spans * WARPS), 32 * GROUP * entries / n
    spread, flushes, needed = math.sqrt(2 * of_warp), 0.0, STAGED + 0.5
    while needed < of_warp + 4 * spread:
        flushes += 0.5 * math.erfc((needed - of_warp) / spread)
        needed += STAGED + window / 2
    return spans * (1 + WARPS * flushes)


def drop_grow(
    layers: Sequence[Layer],
    *,
    step: bool,
    momenta: bool = True,
    counted: bool = True,
    regrow: bool = True,
    blocks: int = 528,
) -> dict[str, Bytes]:
    """By kernel, in the order of their launches. The growth ranks the gradient.

    step: SGD is fused, with momentum if there are momenta. counted: with counters and a bonus. blocks: that the GPU holds at
    once, about 4 on each of the 132 processors of an H100.
    """
    span, out = tiles_of_span(layers, blocks), {"sample": Bytes()}
    for layer in layers:
        if layer.is_small:
            out["sample"] += _small(layer, step, momenta, counted, regrow)
            continue
        for name, part in _large(layer, step, momenta, counted, regrow, span).items():
            out[name] = out.get(name, Bytes()) + part
    return out


def _step_alone(layer: Layer, momenta: bool) -> Bytes:
    """The step of a layer that swaps nothing: whole groups are read."""
    loaded = layer.n / 8 + GROUP * layer.item * layer.groups * (2 + momenta)
    return replace(masked_sgd([layer], momenta), loaded=loaded)


def _large(layer: Layer, step: bool, momenta: bool, counted: bool, regrow: bool, span: int) -> dict[str, Bytes]:
    n, item, k = layer.n, layer.item, layer.k
    if k == 0:
        touched, moved = SECTOR * layer.active, masked_sgd([layer], momenta).moved
        sweep = Bytes(n / 8, 0, touched * (2 + momenta), touched * (1 + momenta), moved) if step else Bytes()
        return {"sample": Bytes(stored=8 * BINS, moved=8 * BINS), "sweep": sweep, "select_drop": Bytes(), "commit": Bytes(),
                "select_grow": Bytes()}  # fmt: skip
    drop, grow = listed(n, layer.active, k), listed(n, n - layer.active, k)
    undecided_drop, undecided_grow = undecided(n, drop, k), undecided(n, grow, k)
    pieces = chunks(n, drop + grow, span)
    counters = SECTOR * counted
    written = (1 + momenta) * step

    lists = ENTRY * (drop + grow) + CHUNK * pieces
    dense = n / 8 + item * n
    # Of candidates of the growth, signal and counter once more; of active weights those, if they may grow again, and w, with a
    # step gradient, w and momentum. Signals and gradients are in the cache. A bonus that is large against the signals makes
    # the growth look at more weights than it lists.
    looked = grow + layer.active * regrow
    sweep = Bytes(
        loaded=dense,
        stored=lists,
        gathered=(SECTOR + counters) * looked + SECTOR * layer.active * (1 + written),
        scattered=SECTOR * layer.active * written,
        moved=dense + sectors_of(n, looked, 2) * counters + SECTOR * layer.sectors * max(2 * written, 1) + lists,
    )

    again = k * grow / (n - layer.active) + undecided_drop / 2 if regrow else 0.0  # dropped, and looked at for the growth
    read, marked = SECTOR * undecided_drop + (SECTOR + counters) * again, ENTRY * k + UNDECIDED * undecided_drop
    select_drop = Bytes(
        loaded=ENTRY * drop,
        stored=marked,
        gathered=read,
        moved=ENTRY * drop + CHUNK * pieces + marked + read,
    )

    changed, tensors = 2 * layer.gone, 1 + momenta
    flips, zeros = counters * changed, SECTOR * layer.gone * tensors
    commit = Bytes(
        loaded=ENTRY * (drop + grow),
        stored=UNDECIDED * undecided_grow,
        gathered=flips + (SECTOR + counters) * undecided_grow,
        scattered=flips + zeros,
        moved=lists
        + (UNDECIDED + SECTOR + counters) * undecided_grow
        + 2 * min(flips, 2 * n)
        + min(zeros, item * n * tensors)
        + 2 * min(SECTOR * changed, n / 8),
    )
    looks = UNDECIDED * undecided_grow * 4  # three digits of the keys, then the selected
    select_grow = Bytes(loaded=looks, moved=looks)
    return {"sample": _sample(layer, step, momenta, counted), "sweep": sweep, "select_drop": select_drop, "commit": commit,
            "select_grow": select_grow}  # fmt: skip


def _sample(layer: Layer, step: bool, momenta: bool, counted: bool) -> Bytes:
    groups, busy = sampled(layer.n) / GROUP, layer.groups / (layer.n / GROUP)
    values = layer.item * GROUP
    touched = 1 + busy * (1 + (1 + momenta) * step)  # gradient; of groups with an active weight w, with a step momentum too
    return Bytes(
        loaded=groups * (1 + values * (touched + busy * step) + 16 * counted),  # the step reads the gradient anew
        stored=STATE,
        moved=groups * SECTOR * (1 + touched + counted) + STATE,
    )


def _small(layer: Layer, step: bool, momenta: bool, counted: bool, regrow: bool) -> Bytes:
    n, item, k = layer.n, layer.item, layer.k
    written = (1 + momenta) * step
    stepped = Bytes(
        loaded=GROUP * item * layer.groups * (step + written),
        stored=item * layer.active * written,
        moved=SECTOR * layer.sectors * 2 * written,
    )
    if k == 0:
        return _step_alone(layer, momenta) if step else Bytes(loaded=n / 8, moved=n / 8)
    changed, tensors = 2 * layer.gone, 1 + momenta
    changed_groups = n / GROUP * (1 - (1 - changed / n) ** GROUP)
    dense = n / 8 + item * n + 2 * n * counted
    flips, zeros = min(SECTOR * changed, 2 * n) * counted, min(SECTOR * layer.gone, item * n) * tensors
    return stepped + Bytes(
        loaded=dense + GROUP * item * layer.groups + 16 * changed_groups * counted,
        stored=changed_groups + 2 * changed * counted + item * layer.gone * tensors,
        gathered=SECTOR * (1 + counted) * k * regrow,
        moved=dense + SECTOR * layer.sectors * (not step) + flips + zeros + min(SECTOR * changed_groups, n / 8),
    )
