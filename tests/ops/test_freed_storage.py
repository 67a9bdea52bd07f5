"""Every tensor of the native ops may have lost its memory: a refusal that names it, no crash. Also those between elements."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from dstee import backends, encoding, ops
from dstee.backends import native
from dstee.testing import assert_same_bits

pytestmark = pytest.mark.skipif(native.load()[0] is None, reason=native.load()[1] or "native is there")

# In a process of its own: where a refusal is missing, the kernel reads address 0.
CALLS = """
import torch
from dstee.backends import native

native.load()
f, n = torch.ops.dstee, 64

def freed(*shape, dtype):
    t = torch.ones(*shape, dtype=dtype)
    t.untyped_storage().resize_(0)
    return t

def bits():
    return torch.full((8,), 15, dtype=torch.uint8)

def step(**given):
    scalars = [given.get(name) for name in ("lr", "grad_scale", "found_inf")]
    f.masked_sgd_([torch.randn(n)], [torch.randn(n)], [], [bits()], [0.1, 0, 0, 0, 0, 0, 0], *scalars)

def update(**given):
    k, k_grow, scale, round, lr, found_inf = (given.get(x) for x in ("k", "k_grow", "bonus_scale", "round", "lr", "found_inf"))
    bonus = torch.ones(2, dtype=torch.float64) if scale is not None else given.get("bonus")
    f.drop_grow_([torch.randn(n)], [torch.randn(n)], [], [bits()], [torch.zeros(n, dtype=torch.int16)], [2], k, [], k_grow,
                 bonus, scale, 0, round, [], [], [], [], True, False, [0.1, 0, 0, 0, 0, 0, 0], lr, found_inf)

numbers, one = dict(dtype=torch.float32), dict(dtype=torch.int64)
for call in (
    lambda: step(lr=freed(1, **numbers)),
    lambda: step(grad_scale=freed(1, **numbers)),
    lambda: step(found_inf=freed(1, **numbers)),
    lambda: update(k=freed(1, **one)),
    lambda: update(k_grow=freed(1, **one)),
    lambda: update(bonus_scale=freed(1, **numbers)),
    lambda: update(bonus=freed(2, **numbers)),
    lambda: update(round=freed(1, **one)),
    lambda: update(lr=freed(1, **numbers)),
    lambda: update(found_inf=freed(1, **numbers)),
    lambda: f.pack_mask(freed(n, dtype=torch.bool)),
    lambda: f.unpack_mask(freed(8, dtype=torch.uint8), [n]),
    lambda: f.count_active([freed(8, dtype=torch.uint8)]),
    lambda: f.count_explored([freed(n, dtype=torch.int16)], [bits()]),
    lambda: f.decode_counts(freed(n, dtype=torch.int16), bits(), 1, [n]),
    lambda: f.encode_counts(freed(n, dtype=torch.int32), torch.ones(n, dtype=torch.bool), 1),
    lambda: f.encode_counts(torch.ones(n, dtype=torch.int32), freed(n, dtype=torch.bool), 1),
):
    try:
        call()
        print("no refusal", flush=True)
    except RuntimeError as error:
        print(str(error).splitlines()[0], flush=True)
"""
STEP = ["lr", "grad_scale", "found_inf"]
UPDATE = ["k", "k_grow", "bonus_scale", "bonus", "round", "lr", "found_inf"]
OTHERS = ["mask", "mask_bits", "mask_bits", "counts", "counts", "N", "mask"]


def test_freed_storage_is_refused_by_the_kernels() -> None:
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{done.stderr}after {lines}"
    for name, line in zip(STEP + UPDATE + OTHERS, lines, strict=True):
        assert line.endswith(f"dstee: the storage of {name} has been freed")


def unaligned(t: Tensor) -> Tensor:
    """The same values one byte off."""
    memory = bytearray(t.numel() * t.element_size() + 1)
    return torch.frombuffer(memory, dtype=t.dtype, offset=1).copy_(t)


@pytest.mark.parametrize("isa", native.build_info().get("cpu_features", []))
def test_unaligned_counters_and_tables(isa: str) -> None:
    torch.manual_seed(0)
    n, round = 40_009, 4
    mask = torch.rand(n) < 0.1
    N = torch.where(mask, torch.randint(1, 6, (n,)), torch.randint(0, 5, (n,)))
    given = {
        "params": torch.where(mask, torch.randn(n), torch.zeros(())), "grads": torch.randn(n), "momenta": torch.randn(n),
        "mask_bits": encoding.pack_bits(mask), "counts": encoding.flip_counts(N, mask, round).short(),
    }  # fmt: skip
    bonus, lr = encoding.bonus_table(1e-2, 1.0, 90, round), torch.tensor(0.1, dtype=torch.float64)
    results = []
    module = native.load()[0]
    assert module is not None
    module.force_isa(isa)
    try:
        for place in (Tensor.clone, unaligned):
            own = {name: [place(t)] for name, t in given.items()}
            with backends.use_backend("native"):
                ops.drop_grow_(**own, k=[900], bonus=place(bonus), round=round, sgd=ops.SGDRule(place(lr.view(1)), 0.9))
                counts = ops.decode_counts(own["counts"][0], own["mask_bits"][0], round + 1, (n,))
                results.append(
                    [*(t for list in own.values() for t in list), counts, ops.count_explored(own["counts"], own["mask_bits"])]
                )
    finally:
        module.force_isa("auto")
    assert_same_bits(results[1], results[0], "unaligned")
