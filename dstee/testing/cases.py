"""Cases shared by the tests and the bench: seeded inputs, many of them hostile.

Every tensor of a :class:`Case` lies inside a larger buffer whose margins hold a known value, so that a kernel that writes
outside its tensor is found, and starts either on a vector boundary or on an odd element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dstee import encoding, ops

__all__ = [
    "DTYPES",
    "FAMILIES",
    "LARGE_SIZES",
    "ROUNDS",
    "SIZES",
    "Case",
    "duplicate",
    "geometry",
    "make_case",
    "place",
    "random_counters",
    "random_mask",
    "values",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FAMILIES = (
    "normal", "equal", "zeros", "signed_zeros", "few_valued", "dead_units", "nonfinite", "denormal", "absorbed",
    "ascending", "descending", "structured", "clustered", "needles", "wide",
)  # fmt: skip
# Around a byte of mask bits, vector widths, and the powers of two at which kernels cut layers into tiles and chunks.
SIZES = (0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 4095, 4096, 4097)
LARGE_SIZES = (32767, 32768, 32769, 40009, 65535, 65536, 65537, 70001, 140009)
ROUNDS = (0, 1, 2, 14, 15, 16, 30, 31, 32, 100, 300, 32764, 32765)
MARGIN = 64


# --- memory --------------------------------------------------------------------------------------------------------------


def place(values: Tensor, like: Tensor | None = None, odd: int = 0) -> Tensor:
    """1-D ``values`` inside guarded margins, ``odd`` elements off the boundary, in the shape and strides of ``like``."""
    n, start = values.numel(), MARGIN + odd
    buffer = torch.full((start + n + MARGIN,), _guard(values.dtype), dtype=values.dtype)
    buffer[start : start + n] = values
    if like is None:
        return buffer[start : start + n]
    return buffer.as_strided(like.shape, like.stride(), start)


def _guard(dtype: torch.dtype) -> float | int:
    return {torch.uint8: 0xA5, torch.int16: -21931}.get(dtype, 7.5)


def _whole(t: Tensor) -> Tensor:
    return torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())


def duplicate(t: Tensor) -> Tensor:
    """A copy of ``t`` with its margins, at the same place in its buffer."""
    return _whole(t).clone().as_strided(t.shape, t.stride(), t.storage_offset())


def geometry(n: int, layout: str) -> Tensor:
    """An empty tensor with n elements in the memory order ``layout``: flat, matrix, transposed or channels_last."""
    if layout == "flat" or n == 0:
        return torch.empty(n)
    row = max(d for d in range(1, 65) if n % d == 0)
    if layout == "matrix":
        return torch.empty(n // row, row)
    if layout == "transposed":
        return torch.empty(row, n // row).t()
    channels = max(d for d in range(1, 9) if n % d == 0)
    width = max(d for d in range(1, 4) if n // channels % d == 0)
    return torch.empty(n // channels // width, channels, 1, width).to(memory_format=torch.channels_last)


# --- values --------------------------------------------------------------------------------------------------------------


def values(family: str, n: int, rng: np.random.Generator) -> Tensor:
    """n float32 numbers of one of the ``FAMILIES``."""
    x = rng.standard_normal(n, dtype=np.float32) * np.float32(1e-2)
    sign = rng.choice(np.array([-1, 1], dtype=np.float32), n)
    row = int(rng.choice([16, 64, 96, 128]))  # powers of two alias with regular sampling
    rows = (n + row - 1) // row
    if family == "equal":
        x = 0.25 * sign
    elif family == "zeros":
        x = np.zeros(n, dtype=np.float32)
    elif family == "signed_zeros":
        x = rng.choice(np.array([0.0, -0.0, 1e-45, -1e-45], dtype=np.float32), n)
    elif family == "few_valued":  # what bf16 gradients look like: few values, many ties at any threshold
        x = rng.choice(np.array([0, 0.5, 1, -1, 1.5, -2], dtype=np.float32), n)
    elif family == "dead_units":  # more swaps than non-zero gradients
        x *= np.repeat(rng.random(rows) < 0.1, row)[:n]
    elif family == "nonfinite":
        odd = np.array([np.nan, -np.nan, np.inf, -np.inf], dtype=np.float32)
        x = np.where(rng.random(n) < 0.1, rng.choice(odd, n), x)
    elif family == "denormal":
        x = rng.integers(0, 2**23, n, dtype=np.uint32).view(np.float32) * sign
    elif family in ("ascending", "descending"):
        x = np.sort(np.abs(x))[:: 1 if family == "ascending" else -1] * sign
    elif family == "structured":
        x *= np.repeat(np.exp(2 * rng.standard_normal(rows)), row)[:n] * np.tile(np.exp(2 * rng.standard_normal(row)), rows)[:n]
    elif family == "clustered":  # all that matters lies in one place, where a sample may not look
        start = int(rng.integers(0, n + 1))
        x[start : start + max(1, n // 50)] *= 1e4
    elif family == "needles":
        x = np.where(rng.random(n) < 0.01, x, 1e-3 * sign)
    elif family == "wide":  # every finite float32 magnitude
        x = rng.integers(0, 0x7F80_0000, n, dtype=np.uint32).view(np.float32) * sign
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def random_mask(n: int, active: int, rng: np.random.Generator, block: bool = False) -> Tensor:
    """bool [n] with exactly ``active`` True, scattered or in one block."""
    mask = np.zeros(n, dtype=bool)
    if block:
        start = int(rng.integers(0, n - active + 1))
        mask[start : start + active] = True
    else:
        mask[rng.permutation(n)[:active]] = True
    return torch.from_numpy(mask)


def random_counters(mask: Tensor, round: int, rng: np.random.Generator) -> Tensor:
    """int32 counters that ``round`` updates allow: 0..round where inactive, 1..round+1 where active."""
    n, kind = mask.numel(), int(rng.integers(0, 4))
    if kind == 0:  # mostly never active, actives long-lived
        N = np.where(rng.random(n) < 0.8, 0, rng.integers(0, round + 1, n))
        N[mask.numpy()] = round - rng.integers(0, min(round, 2) + 1, int(mask.sum()))
    elif kind == 1:  # around what 4 and 5 bits hold
        N = np.minimum(rng.choice([0, 14, 15, 16, 17, 30, 31, 32, 33], n), round)
    elif kind == 2:
        N = rng.integers(0, round + 1, n)
    else:  # all as old as can be
        N = np.full(n, round)
    return torch.from_numpy(N.astype(np.int32)) + mask.int()


# --- cases ---------------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """Arguments of one call of :func:`dstee.ops.drop_grow_` or :func:`dstee.ops.masked_sgd_`, one list entry per layer.

    ``N``: int32 [n] counters in storage order, the plain form of ``counts``. ``options``: further keywords of drop_grow_.
    """

    description: str
    params: list[Tensor]
    grads: list[Tensor] | None
    momenta: list[Tensor] | None
    mask_bits: list[Tensor]
    counts: list[Tensor] | None
    N: list[Tensor]
    k: list[int] | Tensor
    bonus: Tensor | None = None
    round: int = 0
    sgd: ops.SGDRule | None = None
    grad_scale: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def clone(self) -> Case:
        """A deep copy that keeps margins and offsets; a tensor given in two places stays one tensor."""
        done: dict[int, Tensor] = {}

        def copy(value: Any) -> Any:
            if isinstance(value, Tensor):
                if id(value) not in done:
                    done[id(value)] = duplicate(value)
                return done[id(value)]
            if isinstance(value, list):
                return [copy(v) for v in value]
            return {key: copy(v) for key, v in value.items()} if isinstance(value, dict) else value

        return replace(self, **{f.name: copy(getattr(self, f.name)) for f in fields(self)})

    def drop_grow_(self) -> None:
        ops.drop_grow_(
            self.params, self.grads, self.momenta, self.mask_bits, self.counts, self.k,
            bonus=self.bonus, round=self.round, sgd=self.sgd, **self.options,
        )  # fmt: skip

    def masked_sgd_(self) -> None:
        assert self.sgd is not None and self.grads is not None
        ops.masked_sgd_(
            self.params, self.grads, self.momenta, self.mask_bits,
            sgd=self.sgd, grad_scale=self.grad_scale, found_inf=self.options.get("found_inf"),
            packed_momenta=self.options.get("packed_momenta", False),
        )  # fmt: skip

    def masks(self) -> list[Tensor]:
        """bool [n] per layer, storage order."""
        return [encoding.unpack_bits(b, p.numel()) for b, p in zip(self.mask_bits, self.params, strict=True)]

    def lists(self) -> dict[str, list[Tensor]]:
        """The per-layer lists that are present, by argument name."""
        found = {name: getattr(self, name) for name in ("params", "grads", "momenta", "mask_bits", "counts")}
        found |= {name: self.options.get(name) for name in ("drop_scores", "grow_signal")}
        return {name: tensors for name, tensors in found.items() if tensors}

    def assert_margins(self) -> None:
        """Nothing was written beside a tensor."""
        for name, tensors in self.lists().items():
            for i, t in enumerate(tensors):
                whole, start = _whole(t), t.storage_offset()
                beside = torch.cat([whole[:start], whole[start + t.numel() :]])
                assert bool((beside == _guard(t.dtype)).all()), f"memory beside {name}[{i}] was written ({self.description})"


def make_case(
    seed: int,
    sizes: Sequence[int],
    *,
    family: str = "normal",
    dtype: torch.dtype = torch.float32,
    density: float = 0.1,
    swap: float = 0.3,
    round: int = 0,
    layout: str = "flat",
    odd: bool = False,
    counted: bool = True,
    sgd: ops.SGDRule | None = None,
    **options: Any,
) -> Case:
    """A case of one family: ``density`` active weights, of which ceil(``swap`` * active) are swapped in each layer."""
    rng = np.random.default_rng(seed)
    text = f"seed {seed}, {family}, {dtype}, sizes {list(sizes)}, density {density}, round {round}, {layout}, odd {odd}"
    case = Case(text, [], [], [], [], [] if counted else None, [], [], round=round, sgd=sgd, options=options)
    for n in sizes:
        active = min(n, math.ceil(density * n))
        mask = random_mask(n, active, rng, block=bool(rng.integers(0, 2)))
        like = geometry(n, layout)
        first = sgd is not None and sgd.first_step
        momentum = torch.full((n,), math.nan) if first else values("normal", n, rng)  # on a first step nobody may read it
        for tensors, x in (
            (case.params, values(family, n, rng).masked_fill(~mask, 0)),
            (case.grads, values(family, n, rng)),
            (case.momenta, momentum.masked_fill(~mask, 0)),
        ):
            assert tensors is not None
            tensors.append(place(x.to(dtype), like, _odd(odd, rng)))
        case.mask_bits.append(place(encoding.pack_bits(mask), odd=_odd(odd, rng)))
        case.N.append(random_counters(mask, round, rng))
        if case.counts is not None:
            stored = encoding.flip_counts(case.N[-1], mask, round).to(torch.int16)
            case.counts.append(place(stored, odd=_odd(odd, rng)))
        assert isinstance(case.k, list)
        case.k.append(math.ceil(swap * active))
    if counted:
        # "absorbed": c*ln(t)/eps a thousand to a billion times the gradients, so that the sums swallow them and tie
        choices, eps = ([1.5e-6, 1.5], 1e-6) if family == "absorbed" else ([1e-5, 1e-3, 0.1], 1.0)
        case.bonus = encoding.bonus_table(float(rng.choice(choices)), eps, 1000, round)
    return case


def _odd(odd: bool, rng: np.random.Generator) -> int:
    return int(rng.choice([1, 3, 5])) if odd else 0
