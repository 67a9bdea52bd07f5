"""Cases over layers of many shapes, and the parts of them that ranks hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from support.lockstep import Traffic, lockstep
from torch import Tensor

from dstee import encoding, ops
from dstee.distributed.agree import Ranked, Rounds, shares
from dstee.distributed.where import Where, of_block
from dstee.testing import FAMILIES, Case, assert_same_bits, make_case, values

SIGNALS = ("gradient", "signal", "bonus", "scaled bonus", "scaled signal", "seeds")
TYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1,), (1, 1), (1, 8), (7, 5), (13,), (3, 2, 3, 3), (16, 33), (5, 1), (2, 3, 1), (40, 17), (9, 4, 5))
LARGE = (83, 7, 31)  # more weights than growth_scale samples
STATE = ("params", "momenta", "mask_bits", "counts")
CUTS = ("rows", "uneven rows", "columns", "grid")


def adversarial(seed: int, tiny: bool = False) -> tuple[Case, list[tuple[int, ...]]]:
    """A case of ties, special values and full or empty masks, and the shapes of its layers; ``tiny``: below 100 weights."""
    rng = np.random.default_rng(seed)
    choices = [shape for shape in SHAPES if not tiny or math.prod(shape) < 100]
    shapes = [choices[int(rng.integers(len(choices)))] for _ in range(int(rng.integers(1, 4)))]
    growth, round = str(rng.choice(SIGNALS)), int(rng.choice([0, 1, 5, 300]))
    if growth.startswith("scaled") and not tiny and rng.random() < 0.05:
        shapes[0] = LARGE
    sizes = [math.prod(shape) for shape in shapes]
    case = make_case(
        seed, sizes, family=str(rng.choice(FAMILIES)), dtype=TYPES[int(rng.integers(4))], round=round,
        density=float(rng.choice([0, 0.02, 0.1, 0.5, 0.9, 1])), swap=float(rng.choice([0, 0.1, 0.3, 0.5, 1])),
        counted="bonus" in growth or growth == "scaled signal", regrow=bool(rng.random() < 0.6),
        reset_regrown=bool(rng.random() < 0.3),
    )  # fmt: skip
    demand(case, growth, rng)
    return case, shapes


def demand(case: Case, growth: str, rng: np.random.Generator) -> None:
    """What the update ranks besides weights and gradients, and how much it grows where that is not what it drops."""
    sizes = [p.numel() for p in case.params]
    if growth == "seeds":
        case.options["grow_seeds"] = [int(x) for x in rng.integers(-(2**63), 2**63 - 1, len(sizes))]
    if growth.endswith("signal"):
        case.options["grow_signal"] = [values(str(rng.choice(["few_valued", "nonfinite", "normal"])), n, rng) for n in sizes]
    if rng.random() < 0.2:
        case.options["drop_scores"] = [values("few_valued", n, rng) for n in sizes]
    if rng.random() < 0.4:
        room = [int((~mask).sum()) + case.options["regrow"] * k for mask, k in zip(case.masks(), case.k, strict=True)]
        case.options["k_grow"] = [int(rng.choice([0, most, rng.integers(0, most + 1)])) for most in room]
    if growth.startswith("scaled"):
        case.bonus = encoding.bonus_table(0.1, 1.0, 500, case.round, dtype=torch.float64)
        signals = case.options.get("grow_signal", case.grads)
        case.options["bonus_scale"] = ops.growth_scale(signals, case.mask_bits, case.options.get("k_grow", case.k), case.round)


def cut_layers(shapes: Sequence[Sequence[int]], ranks: int, rng: np.random.Generator) -> list[list[Where]]:
    """Where the parts of layers lie, by rank, each layer cut in a way of its own."""
    layers = [cut(shape, ranks, str(rng.choice(CUTS)), rng) for shape in shapes]
    return [list(parts) for parts in zip(*layers, strict=True)]


def cut(shape: Sequence[int], ranks: int, how: str, rng: np.random.Generator) -> list[Where]:
    """Where the parts of a layer lie. Some may be empty."""
    if how == "uneven rows":
        edges = np.sort(rng.integers(0, shape[0] + 1, ranks - 1)) if ranks > 1 else []
        edges = [0, *map(int, edges), shape[0]]
        blocks = [([low, *[0] * (len(shape) - 1)], [high - low, *shape[1:]]) for low, high in itertools.pairwise(edges)]
        return [of_block(shape, *block) for block in blocks]
    parts = [1] * len(shape)
    if how == "columns" and len(shape) > 1:
        parts[1] = ranks
    elif how == "grid" and len(shape) > 1 and ranks % 2 == 0:
        parts[0], parts[int(rng.integers(1, len(shape)))] = ranks // 2, 2
    else:
        parts[0] = ranks
    found = []
    for place in np.ndindex(*parts):
        chunks = [_chunk(size, n, at) for size, n, at in zip(shape, parts, place, strict=True)]
        found.append(of_block(shape, [low for low, _ in chunks], [high - low for low, high in chunks]))
    return found


def _chunk(size: int, parts: int, at: int) -> tuple[int, int]:
    """As torch.chunk deals."""
    step = -(-size // parts)
    return min(at * step, size), min((at + 1) * step, size)


def local(tensors: Any, where: Sequence[Where]) -> Any:
    """The parts of ``tensors`` of whole layers, flat; of no tensors none."""
    return tensors and [place.cut(encoding.flat(t)).clone().view(-1) for t, place in zip(tensors, where, strict=True)]


@dataclass
class Part:
    """What one rank holds of a case."""

    case: Case
    where: list[Where]

    @classmethod
    def of(cls, case: Case, where: list[Where]) -> Part:
        def parts(tensors: list[Tensor] | None) -> list[Tensor] | None:
            return tensors and [
                place.cut(encoding.flat(t)).reshape(-1).clone() for t, place in zip(tensors, where, strict=True)
            ]

        bits = [encoding.pack_bits(mask) for mask in parts(case.masks()) or []]
        options = {k: parts(v) if k in ("drop_scores", "grow_signal") else v for k, v in case.options.items()}
        own = {name: parts(getattr(case, name)) for name in ("params", "grads", "momenta", "counts")}
        return cls(replace(case, **own, mask_bits=bits, options=options), where)

    def update(self, k: list[int], k_grow: list[int], scale_k: list[int]) -> Rounds[None]:
        """This rank's part of the update of the whole case."""
        c, places = self.case, self.where
        options = {name: x for name, x in c.options.items() if name not in ("reset_regrown", "k_grow", "bonus_scale")}
        ranked = Ranked(
            c.params,
            c.mask_bits,
            places,
            grads=c.grads,
            counts=c.counts,
            bonus=c.bonus,
            round=c.round,
            scale_k=scale_k,
            **options,
        )
        drop, grow, scale = yield from shares(ranked, k, k_grow)
        here = [i for i, place in enumerate(places) if place.n]

        def of(values):
            return values and [values[i] for i in here]

        options |= {name: of(options.get(name)) for name in ("drop_scores", "grow_signal", "grow_seeds")}
        ops.drop_grow_(
            of(c.params), of(c.grads), of(c.momenta), of(c.mask_bits), of(c.counts), of(drop), k_grow=of(grow), bonus=c.bonus,
            bonus_scale=None if scale is None else scale[here], round=c.round, where=[places[i].place for i in here],
            reset_regrown=c.options.get("reset_regrown", False), **options,
        )  # fmt: skip


def update(case: Case, where: Sequence[list[Where]], replicas: int = 1, traffic: Traffic | None = None) -> list[Part]:
    """The parts of all ranks after the update of ``case``: ``where`` the layers' parts lie, by rank."""
    parts = [Part.of(case, list(places)) for places in where]
    k, k_grow = list(case.k), case.options.get("k_grow")
    scale_k = k if k_grow is None else k_grow
    if k_grow is None and not case.options.get("regrow", True):
        k = [min(x, int((~mask).sum())) for x, mask in zip(k, case.masks(), strict=True)]
    lockstep([part.update(k, k if k_grow is None else k_grow, scale_k) for part in parts], replicas, traffic)
    return parts


def assert_same_parts(got: Sequence[Part], case: Case, where: Sequence[Sequence[Where]]) -> None:
    """The parts hold what the whole ``case`` does."""
    for rank, part in enumerate(got):
        expected = Part.of(case, where[rank]).case
        for name in STATE:
            what = f"{name} of rank {rank} of {len(got)}, {case.description}, {where[rank]}"
            assert_same_bits(getattr(part.case, name), getattr(expected, name), what)


def check(seed: int, tiny: bool = False) -> None:
    """Some number of ranks, with replicas or without, update a case as one does."""
    case, shapes = adversarial(seed, tiny)
    rng = np.random.default_rng([seed, 1])
    ranks, replicas = int(rng.choice([1, 2, 3, 4, 8])), int(rng.choice([1, 1, 1, 2]))
    where = cut_layers(shapes, ranks, rng) * replicas
    got = update(case, where, replicas)
    case.drop_grow_()
    assert_same_parts(got, case, where)
