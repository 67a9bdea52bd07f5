"""Layer budgets against hand-worked tables and an oracle in rational arithmetic; masks against a plain-Python hash."""

import hashlib
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.shapes import SHAPES, resnet50, resnet50_macs
from dstee.sparsity_distribution import erk, explicit, random_mask, seed64, uniform

SPARSITIES = st.one_of(st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.95, 0.98]), st.floats(0, 0.99))
SHAPE_LISTS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=12)


def named(shapes):
    return {f"layer{i}": tuple(shape) for i, shape in enumerate(shapes)}


def sizes(shapes):
    return {name: math.prod(shape) for name, shape in shapes.items()}


def erk_oracle(shapes, sparsity):
    """Real-valued shares by bisection: share = min(n, scale * sum(dims)); no list of dense layers is kept."""
    n, raw = sizes(shapes), {name: sum(shape) for name, shape in shapes.items()}
    target = (1 - Fraction(sparsity)) * sum(n.values())
    low, high = Fraction(0), Fraction(max(n.values()))
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(min(Fraction(n[name]), middle * raw[name]) for name in shapes)
        low, high = (middle, high) if total < target else (low, middle)
    return {name: min(Fraction(n[name]), high * raw[name]) for name in shapes}


# --- hand-worked tables --------------------------------------------------------------------------------------------------


def test_erk_table_without_a_dense_layer():
    # sums of dims 40, 30: 0.25 * (300 + 200) = 125 weights in the ratio 40 : 30 -> 71.43, 53.57
    assert erk({"a": (10, 30), "b": (10, 20)}, 0.75) == {"a": 71, "b": 54}


def test_erk_table_with_dense_fix_up():
    # p n = 200, 8, 110 and n = 10000, 16, 1000; budget 0.2 * 11016 = 2203.2. Scale 2203.2 / 318 = 6.93 would give b 55 > 16
    # weights: b is dense. Then 2187.2 / 310 = 7.055: a 1411.1, c 776.1, both below their sizes.
    assert erk({"a": (100, 100), "b": (4, 4), "c": (10, 100)}, 0.8) == {"a": 1411, "b": 16, "c": 776}


def test_erk_counts_kernel_dimensions():
    # sums of dims 8 + 4 + 3 + 3 = 18 and 8 + 4 + 1 + 1 = 14 against n = 288 and 32; budget 80: 45 and 35 > 32 -> 48 and 32
    assert erk({"k3": (8, 4, 3, 3), "k1": (8, 4, 1, 1)}, 0.75) == {"k3": 48, "k1": 32}


def test_erk_makes_all_tied_maxima_dense():
    counts = erk({"x": (4, 4), "big": (200, 200), "y": (4, 4), "z": (4, 4)}, 0.9)
    assert counts == {"x": 16, "big": round(0.1 * 40048) - 48, "y": 16, "z": 16}
    # 12 / 32 = 3 / 8 = 0.375 whatever the shape; equal scores from different shapes tie as well
    counts = erk({"x": (4, 8), "y": (2, 2, 2, 2), "big": (300, 300)}, 0.9)
    assert counts["y"] == 16 and counts["x"] == 32


def test_erk_power_zero_is_uniform_and_power_two_is_steeper():
    shapes = {"a": (100, 100), "b": (100, 50), "c": (50, 20)}
    assert erk(shapes, 0.9, power=0) == uniform(shapes, 0.9) == {"a": 1000, "b": 500, "c": 100}
    first, second = erk(shapes, 0.9), erk(shapes, 0.9, power=2)
    assert second["a"] < first["a"] and second["c"] > first["c"] and sum(second.values()) == 1600


def test_largest_remainder_by_hand():
    # shares 2.5, 2.5, 2.0 of budget 7: the first of the tied fractions gets the spare weight
    assert uniform({"a": (25,), "b": (25,), "c": (20,)}, 0.9) == {"a": 3, "b": 2, "c": 2}


def test_uniform_dense_first_keeps_the_total():
    # 10 stay dense, 110 - 10 = 100 of 1090 for the rest: 9.17 and 90.83
    assert uniform({"a": (10,), "b": (100,), "c": (990,)}, 0.9, dense_first=True) == {"a": 10, "b": 9, "c": 91}
    assert uniform({"only": (10,)}, 0.0, dense_first=True) == {"only": 10}
    # 2 stay dense, although then one layer gets nothing of the budget of 3
    assert uniform({"a": (2,), "b": (1,), "c": (3,)}, 0.5, dense_first=True) == {"a": 2, "b": 0, "c": 1}


def test_no_layer_is_left_empty():
    shapes = {"a": (1000,), "b": (3,), "c": (2,), "d": (0,)}
    assert uniform(shapes, 0.9) == {"a": 98, "b": 1, "c": 1, "d": 0}
    # three weights for four layers: a could have them all, gives two away, and the smallest share gets none
    assert uniform({"a": (300,), "x": (4,), "y": (6,), "z": (5,)}, 0.99) == {"a": 1, "x": 0, "y": 1, "z": 1}
    # two weights for three layers: the largest shares keep theirs
    assert uniform({"a": (50,), "b": (100,), "c": (60,)}, 0.99) == {"a": 0, "b": 1, "c": 1}


def test_empty_layers_and_scalars():
    assert erk({"none": (0, 5), "a": (10, 10)}, 0.5) == {"none": 0, "a": 50}
    assert erk({"scalar": (), "a": (10, 10)}, 0.5) == {"scalar": 1, "a": 49}
    assert erk({}, 0.5) == uniform({}, 0.5) == uniform({}, 0.5, dense_first=True) == explicit({}, {}) == {}
    assert erk({"none": (0,)}, 0.9) == {"none": 0}


def test_explicit():
    shapes = {"a": (10, 10), "b": (4,), "c": (0,)}
    assert explicit(shapes, {"c": 0.5, "b": 0.99, "a": 0.95}) == {"a": 5, "b": 1, "c": 0}


# --- ResNet-50 -----------------------------------------------------------------------------------------------------------


def test_shape_lists():
    count = {name: (len(shapes()), sum(sizes(shapes()).values())) for name, shapes in SHAPES.items()}
    assert count["resnet50"] == (54, 25_502_912)
    assert count["vgg19"] == (17, 20_070_080)
    assert count["mlp"] == (3, 784 * 300 + 300 * 100 + 100 * 10)


def test_resnet50_dense_layers():
    shapes, n = resnet50(), sizes(resnet50())
    at80, at90 = erk(shapes, 0.8), erk(shapes, 0.9)
    assert sum(at80.values()) == 5_100_582 and sum(at90.values()) == 2_550_291
    assert [name for name in shapes if at80[name] == n[name]] == [
        "layer1.0.conv1", "layer1.0.conv3", "layer1.0.downsample.0", "layer1.1.conv1", "layer1.1.conv3",
        "layer1.2.conv1", "layer1.2.conv3", "layer2.0.conv1",
    ]  # fmt: skip
    assert [name for name in shapes if at90[name] == n[name]] == ["layer1.0.conv1"]
    assert sorted(at90[name] / n[name] for name in shapes)[-2] == pytest.approx(0.96, abs=0.002)
    assert at90["fc"] / n["fc"] == pytest.approx(0.073, abs=5e-4)


@pytest.mark.parametrize(
    ("sparsity", "counts", "ratio"),
    [
        (0.8, erk, 0.414),
        (0.9, erk, 0.242),
        (0.8, lambda s, x: uniform(s, x, dense_first=True), 0.223),
        (0.9, lambda s, x: uniform(s, x, dense_first=True), 0.126),
        (0.9, uniform, 0.100),
    ],
)
def test_resnet50_inference_flops(sparsity, counts, ratio):
    n, macs = sizes(resnet50()), resnet50_macs()
    assert sum(macs.values()) == pytest.approx(4.089e9, rel=1e-3)
    nnz = counts(resnet50(), sparsity)
    assert sum(macs[name] * nnz[name] / n[name] for name in n) / sum(macs.values()) == pytest.approx(ratio, abs=5e-4)


# --- properties ----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(SHAPE_LISTS, SPARSITIES)
def test_counts_are_exact(shape_list, sparsity):
    shapes = named(shape_list)
    n = sizes(shapes)
    total = sum(n.values())
    budget = round((1 - sparsity) * total)
    shares_of = {erk: erk_oracle(shapes, sparsity), uniform: {name: (1 - Fraction(sparsity)) * n[name] for name in n}}
    for distribution, shares in shares_of.items():
        if budget == 0:
            with pytest.raises(ValueError, match="leaves none"):
                distribution(shapes, sparsity)
            continue
        counts = distribution(shapes, sparsity)
        assert list(counts) == list(shapes)
        assert sum(counts.values()) == budget
        assert all(0 <= counts[name] <= n[name] for name in n)
        if budget >= len(n):
            assert min(counts.values()) >= 1
        if min(shares.values()) >= 1:
            assert max(abs(counts[name] - shares[name]) for name in n) < 1 + Fraction(1, 10**9)


@settings(max_examples=100, deadline=None)
@given(SHAPE_LISTS, SPARSITIES)
def test_dense_first_is_exact_or_refused(shape_list, sparsity):
    shapes = named(shape_list)
    n = sizes(shapes)
    budget = round((1 - sparsity) * sum(n.values()))
    if n["layer0"] + (len(n) > 1) > budget:
        with pytest.raises(ValueError, match=r"budget|leaves none"):
            uniform(shapes, sparsity, dense_first=True)
    else:
        counts = uniform(shapes, sparsity, dense_first=True)
        assert counts["layer0"] == n["layer0"] and sum(counts.values()) == budget
        assert all(0 <= counts[name] <= n[name] for name in n)


# --- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_sparsity_outside_the_range(sparsity):
    shapes = {"a": (10, 10)}
    for call in (lambda: erk(shapes, sparsity), lambda: uniform(shapes, sparsity), lambda: explicit(shapes, {"a": sparsity})):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            call()


def test_other_refusals():
    with pytest.raises(ValueError, match=r"leaves none of the 10 weights: use at most 0\.9"):
        uniform({"a": (10,)}, 0.96)
    with pytest.raises(ValueError, match="'first' has 50 weights and the whole budget is 15"):
        uniform({"first": (50,), "b": (100,)}, 0.9, dense_first=True)
    with pytest.raises(ValueError, match="missing: b, c; unknown: x, y"):
        explicit({"a": (1,), "b": (1,), "c": (1,)}, {"x": 0.5, "a": 0.5, "y": 0.5})
    for power in (-1, 11, math.nan):
        with pytest.raises(ValueError, match="power"):
            erk({"a": (10,)}, 0.5, power=power)


# --- masks ---------------------------------------------------------------------------------------------------------------


def mask_oracle(n, nnz, seed, name):
    """The documented hash in plain integers: blake2b seeds a splitmix64 stream; the smallest values are active."""
    start = int.from_bytes(hashlib.blake2b(f"mask\0{seed}\0000\0{name}".encode(), digest_size=8).digest(), "little")

    def splitmix64(i):
        z = (start + (i + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    active = sorted(range(n), key=splitmix64)[:nnz]
    return torch.zeros(n, dtype=torch.bool).index_fill_(0, torch.tensor(active, dtype=torch.int64), True)


@pytest.mark.parametrize(("n", "nnz"), [(0, 0), (1, 0), (1, 1), (2, 1), (64, 63), (1000, 37), (4097, 2048)])
@pytest.mark.parametrize("seed", [0, 7, -1, 2**63])
def test_mask_equals_the_plain_hash(n, nnz, seed):
    assert torch.equal(random_mask(n, nnz, seed, "fc.weight"), mask_oracle(n, nnz, seed, "fc.weight"))


def test_mask_is_the_same_on_every_machine():
    digest = hashlib.blake2b(random_mask(100_000, 10_000, 3, "conv1.weight").numpy().tobytes(), digest_size=8).hexdigest()
    assert digest == "4f26d45b6eac47f2"


def test_masks_of_names_and_seeds_are_independent():
    n, nnz = 200_000, 20_000
    masks = [random_mask(n, nnz, seed, name) for seed in (0, 1) for name in ("a", "b", "a.weight")]
    expected, deviation = nnz * nnz / n, math.sqrt(nnz * 0.1 * 0.9 * 0.9)
    for i, a in enumerate(masks):
        assert int(a.sum()) == nnz
        for b in masks[:i]:
            assert abs(int((a & b).sum()) - expected) < 5 * deviation
    # Uniform over positions too: thousands of active weights in each tenth.
    assert all(abs(int(part.sum()) - nnz / 10) < 5 * math.sqrt(nnz / 10 * 0.9) for part in masks[0].chunk(10))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3000), st.data())
def test_mask_count_is_exact(n, data):
    nnz = data.draw(st.integers(0, n))
    mask = random_mask(n, nnz, data.draw(st.integers(0, 2**64)), data.draw(st.text(max_size=5)))
    assert mask.dtype == torch.bool and mask.shape == (n,) and int(mask.sum()) == nnz


def test_more_weights_only_add_to_the_mask():
    small, large = random_mask(5000, 100, 0, "a"), random_mask(5000, 1000, 0, "a")
    assert torch.equal(small & large, small)


@pytest.mark.parametrize("nnz", [-1, 11])
def test_mask_refuses_an_impossible_count(nnz):
    with pytest.raises(ValueError, match=r"nnz of 'w' must be in 0\.\.10"):
        random_mask(10, nnz, 0, "w")


def test_seed64_depends_on_every_argument():
    seeds = [
        seed64(purpose, seed, name, round)
        for purpose in ("mask", "grow")
        for seed in (0, 1, 10)
        for name in ("a", "b", "1")
        for round in (0, 1, 11)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(-(2**63) <= seed < 2**63 for seed in seeds) and min(seeds) < 0 < max(seeds)
