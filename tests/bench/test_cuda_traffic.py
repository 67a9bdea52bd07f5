"""The byte model of the benchmark against the bytes that the host harness counts while the kernels run."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from cuda_host import build
from cuda_host.backend import HostConfiguration

from bench import cuda_traffic
from dstee import ops
from dstee.encoding import bonus_table, pack_bits, unpack_bits
from dstee.testing import DTYPES, Case, random_counters, random_mask, values

needs_harness = pytest.mark.skipif(bool(build.why_not()), reason=build.why_not() or "there is a compiler")
RULE = ops.SGDRule(lr=0.1, momentum=0.9, weight_decay=5e-4)
PROCESSORS, RESIDENT = 4, 8  # of the pretended GPU, and the blocks that it holds
WITHIN = 0.1


def scattered_case(seed: int, sizes: list[int], density: float, step: bool, dtype: torch.dtype = torch.float32) -> Case:
    """Random masks, gradients and old counters, as in a training; make_case prefers hostile values."""
    rng = np.random.default_rng(seed)
    case = Case("scattered", [], [], [], [], [], [], [], round=5, sgd=RULE if step else None)
    assert case.grads is not None and case.momenta is not None and case.counts is not None and isinstance(case.k, list)
    for n in sizes:
        mask = random_mask(n, math.ceil(density * n), rng)
        case.params.append((values("normal", n, rng) * mask).to(dtype))
        case.grads.append(values("normal", n, rng).to(dtype))
        case.momenta.append((values("normal", n, rng) * mask).to(dtype))
        case.mask_bits.append(pack_bits(mask))
        N = random_counters(mask, 5, rng)
        case.counts.append(torch.where(mask, 6 - N, N).to(torch.int16))
        case.k.append(math.ceil(0.3 * int(mask.sum())))
    case.bonus = bonus_table(1e-6, 1.0, 1000, 5)  # small: the growth looks at hardly more weights than it lists
    return case


def counted(module: ModuleType) -> dict[str, dict[str, int]]:
    """By kernel, without template arguments."""
    return {name.split("_kernel")[0].rpartition(":")[2]: row for name, row in module.traffic().items()}


def requested(row: dict[str, int]) -> int:
    return sum(row[kind] for kind in ("loaded", "stored", "gathered", "scattered"))


@needs_harness
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("step", [False, True], ids=["update", "fused"])
@pytest.mark.parametrize("density", [0.02, 0.05, 0.10])
def test_drop_grow_moves_what_the_model_says(density: float, step: bool, dtype: torch.dtype) -> None:
    case = scattered_case(1, [300_000, 700_001, 12_000], density, step, dtype)
    before = [unpack_bits(b, p.numel()) for b, p in zip(case.mask_bits, case.params, strict=True)]
    module = build.load(build.PLAIN)
    with HostConfiguration(seed=1, processors=PROCESSORS).active():
        module.clear_traffic()
        case.drop_grow_()
        found = counted(module)
    assert isinstance(case.k, list)
    item = case.params[0].element_size()
    layers = [cuda_traffic.of_masks(*masks, item=item) for masks in zip(before, case.masks(), case.k, strict=True)]
    expected = cuda_traffic.drop_grow(layers, step=step, blocks=RESIDENT)
    assert expected.keys() == found.keys()
    whole, n = cuda_traffic.total(expected), sum(p.numel() for p in case.params)
    text = "; ".join(
        f"{name} {requested(row) / n:.3f}, model {expected[name].requested / n:.3f}" for name, row in found.items()
    )
    assert sum(map(requested, found.values())) == pytest.approx(whole.requested, rel=WITHIN), text
    assert requested(found["sweep"]) == pytest.approx(expected["sweep"].requested, rel=WITHIN), text
    assert requested(found["sample"]) == pytest.approx(expected["sample"].requested, rel=WITHIN), text
    # What the two load depends on how often a warp's list is full, which at some densities is a matter of chance.
    assert found["select_drop"]["stored"] == pytest.approx(expected["select_drop"].stored, rel=WITHIN), text
    for kind in ("gathered", "scattered"):
        assert found["commit"][kind] == pytest.approx(getattr(expected["commit"], kind), rel=WITHIN), text
    assert requested(found["select_grow"]) < 0.2 * n, text


@needs_harness
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("density", [0.02, 0.05, 0.10])
def test_masked_sgd_moves_what_the_model_says(density: float, dtype: torch.dtype) -> None:
    case = scattered_case(2, [300_000, 12_000], density, True, dtype)
    module = build.load(build.PLAIN)
    with HostConfiguration(seed=2).active():
        module.clear_traffic()
        case.masked_sgd_()
        found = counted(module)
    model = cuda_traffic.masked_sgd([cuda_traffic.of_masks(mask, item=case.params[0].element_size()) for mask in case.masks()])
    assert list(found) == ["masked_sgd"] and requested(found["masked_sgd"]) == pytest.approx(model.requested, rel=0.01)


@needs_harness
@pytest.mark.parametrize("step", [False, True], ids=["update", "fused"])
def test_small_layers_move_what_the_model_says(step: bool) -> None:
    case = scattered_case(3, [12_000, 600, 16_384], 0.05, step)
    before = case.masks()
    module = build.load(build.PLAIN)
    with HostConfiguration(seed=3).active():
        module.clear_traffic()
        case.drop_grow_()
        found = counted(module)
    layers = [cuda_traffic.of_masks(*masks) for masks in zip(before, case.masks(), case.k, strict=True)]
    model = cuda_traffic.drop_grow(layers, step=step, blocks=RESIDENT)
    assert list(found) == list(model) == ["sample"]
    assert requested(found["sample"]) == pytest.approx(model["sample"].requested, rel=0.02)


@pytest.mark.parametrize("density", [0.02, 0.05, 0.10])
def test_the_expectation_is_that_of_random_masks(density: float) -> None:
    n = 400_000
    mask = random_mask(n, math.ceil(density * n), np.random.default_rng(4))
    for item in (2, 4):
        expected, found = cuda_traffic.scattered(n, density, item=item), cuda_traffic.of_masks(mask, item=item)
        for name in ("n", "active", "groups", "sectors"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=0.02), name


def test_facts_of_masks() -> None:
    before, after = torch.zeros(2, 50, dtype=torch.bool), torch.zeros(2, 50, dtype=torch.bool)
    before[0, [0, 7, 8, 49]] = True
    after[0, [0, 7]] = after[1, [48, 49]] = True
    assert cuda_traffic.of_masks(before, after, 3) == cuda_traffic.Layer(100, 4, 3, 3, 3, 2, 4)
    assert cuda_traffic.of_masks(before, item=2).sectors == 2


def test_extremes_of_the_model_nothing_swapped_and_a_dense_layer() -> None:
    n = 1 << 20
    idle = cuda_traffic.drop_grow([cuda_traffic.scattered(n, 0.05, swap=0.0)], step=True)
    assert idle["commit"].moved == 0 and idle["select_grow"].moved == 0 and idle["select_drop"].moved == 0
    dense = cuda_traffic.masked_sgd([cuda_traffic.scattered(n, 1.0)])
    assert dense.moved == dense.requested == n * (20 + 1 / 8)
    update = cuda_traffic.drop_grow([cuda_traffic.scattered(n, 1.0, swap=0.0)], step=True)["sweep"]
    assert update.moved == dense.moved
    assert cuda_traffic.drop_grow([cuda_traffic.scattered(n, 0.05, swap=0.0)], step=False)["sweep"].moved == 0
