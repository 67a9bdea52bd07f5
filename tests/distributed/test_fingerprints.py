"""Fingerprints against Python's integers, over every way to cut a tensor, and with every single bit changed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from dstee.distributed import state
from dstee.distributed.state import fingerprint, fingerprints
from dstee.distributed.where import of_block, whole

WORD = 2**64 - 1


def mix(x: int) -> int:
    x = x + 0x9E3779B97F4A7C15 & WORD
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


def expected(values: list[int], indices: list[int]) -> int:
    total = sum(mix(mix(i) + v & WORD) for i, v in zip(indices, values, strict=True)) & WORD
    return total - 2**64 * (total >> 63)


def tensors(n: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return {
        "uint8": torch.randint(0, 4, (n,), generator=generator, dtype=torch.uint8),
        "int16": torch.randint(-(2**15), 2**15, (n,), generator=generator, dtype=torch.int16),
        "float32": torch.randn(n, generator=generator),
        "bool": torch.randint(0, 2, (n,), generator=generator, dtype=torch.bool),
        "bfloat16": torch.randn(n, generator=generator).bfloat16(),
    }


def integers(t: Tensor) -> list[int]:
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.bool: torch.uint8}
    return t.view(bits.get(t.dtype, t.dtype)).tolist()


@pytest.mark.parametrize("chunk", [1, 7, 1 << 15])
@pytest.mark.parametrize("kind", ["uint8", "int16", "float32", "bool", "bfloat16"])
def test_fingerprints_are_sums_of_mixes(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_CHUNK", chunk)
    for shape, offset, local in [((60,), (0,), (60,)), ((6, 10), (2, 0), (3, 10)), ((6, 10), (1, 4), (4, 3))]:
        where = of_block(shape, offset, local)
        t = tensors(where.n)[kind]
        assert fingerprint(t, where) == expected(integers(t), where.to_global(torch.arange(where.n)).tolist())
    assert fingerprint(tensors(0)[kind], whole(0)) == 0


def test_several_at_once_are_the_same_ones() -> None:
    given = list(tensors(1000).values())
    assert fingerprints(given, whole(1000)).tolist() == [fingerprint(t, whole(1000)) for t in given]
    assert fingerprints([], whole(1000)).tolist() == []


@pytest.mark.parametrize("shape", [(7, 9), (5, 4, 3), (1, 13), (6, 1, 2, 5)])
def test_shards_add_up_to_the_whole(shape: tuple[int, ...]) -> None:
    n = math.prod(shape)
    for t in tensors(n).values():
        all_of_it = fingerprint(t, whole(n))
        for ranks, d in itertools.product((1, 2, 3, 4, 8), range(len(shape))):
            step, total = -(-shape[d] // ranks), 0
            for rank in range(ranks):
                low, high = (min(r * step, shape[d]) for r in (rank, rank + 1))
                offset = [low if e == d else 0 for e in range(len(shape))]
                local = [high - low if e == d else s for e, s in enumerate(shape)]
                part = t.view(shape).narrow(d, low, high - low).reshape(-1)
                total += fingerprint(part, of_block(shape, offset, local))
            assert (total - all_of_it) % 2**64 == 0, (ranks, d)


@pytest.mark.parametrize("kind", ["uint8", "int16", "float32"])
def test_every_bit_counts(kind: str) -> None:
    t = tensors(40)[kind]
    seen = {fingerprint(t, whole(40))}
    raw = t.view(torch.uint8)
    for byte, bit in itertools.product(range(raw.numel()), range(8)):
        raw[byte] ^= 1 << bit
        seen.add(fingerprint(t, whole(40)))
        raw[byte] ^= 1 << bit
    assert len(seen) == 1 + 8 * raw.numel()
    assert fingerprint(t, whole(40)) in seen


def test_two_elements_in_each_others_places_show() -> None:
    t = torch.arange(50, dtype=torch.int16)
    seen = {fingerprint(t, whole(50))}
    for i, j in itertools.combinations(range(50), 2):
        u = t.clone()
        u[i], u[j] = t[j], t[i]
        seen.add(fingerprint(u, whole(50)))
    assert len(seen) == 1 + 50 * 49 // 2
