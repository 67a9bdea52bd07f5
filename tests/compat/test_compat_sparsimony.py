"""sparsimony's pruners and growers by hand-worked tables, and beside the original where it is installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from support.digits_batches import batches, loss, mlp, one_thread  # noqa: F401
from torch import Tensor, nn

import dstee
from dstee.compat import sparsimony as ours

INSTALLED = importlib.util.find_spec("sparsimony") is not None
original = pytest.mark.skipif(not INSTALLED, reason="sparsimony is not installed")
nan, inf = float("nan"), float("inf")


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


# --- tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "mask", "weights", "expected"),
    [
        (0.5, (1, 1, 1, 1), (3, -1, 2, -4), (1, 0, 0, 1)),
        (0.5, (1, 0, 1, 0), (3, 0, -2, 0), (1, 0, 0, 0)),
        (0.34, (1, 1, 1, 0), (3, 1, 2, 0), (1, 0, 1, 0)),  # int(3 * 0.34) = 1
        (0.33, (1, 1, 1, 0), (3, 1, 2, 0), (1, 1, 1, 0)),  # int(0.99) = 0
        (0.5, (1, 1, 1, 1), (2, 2, -2, 2), (0, 0, 1, 1)),  # ties: lowest index
        (0.25, (1, 1, 1, 1), (0, 5, nan, 1), (1, 1, 0, 1)),  # NaN goes first
        (1.0, (1, 0, 1, 1), (2, 9, 1, 3), (0, 0, 0, 0)),
        (0.0, (1, 0, 1, 1), (2, 9, 1, 3), (1, 0, 1, 1)),
        (0.5, (0, 0, 0, 0), (2, 9, 1, 3), (0, 0, 0, 0)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_magnitude_pruner(ratio, mask, weights, expected, dtype):
    mask, weights = row(*mask).to(dtype), row(*weights)
    before = mask.clone(), weights.clone()
    found = ours.UnstructuredMagnitudePruner.calculate_mask(ratio, mask, weights)
    assert found.tolist() == [list(expected)] and found.dtype is dtype
    assert torch.equal(mask, before[0]) and torch.equal(weights.nan_to_num(), before[1].nan_to_num())


@pytest.mark.parametrize(
    ("sparsity", "mask", "grads", "expected"),
    [
        (0.5, (1, 0, 0, 0), (9, 1, -3, 2), (1, 0, 1, 0)),
        (0.25, (1, 0, 0, 0), (9, 1, -3, 2), (1, 0, 1, 1)),
        (0.5, (1, 0, 0, 0), (9, 2, -2, 2), (1, 1, 0, 0)),  # ties: lowest index
        (0.5, (1, 0, 0, 0), (9, 0, 0, 0), (1, 1, 0, 0)),  # no gradient: still one grows, and not the active one
        (0.5, (0, 0, 0, 0), (inf, nan, 1, 2), (1, 0, 0, 1)),
        (0.25, (0, 0, 0, 0), (inf, nan, 1, nan), (1, 1, 1, 0)),
        (0.4, (1, 1, 0, 0), (9, 1, 2, 3), (1, 1, 0, 0)),  # int(4 * 0.6) = 2: nothing to do
        (0.0, (1, 0, 0, 1), (9, 1, 2, 3), (1, 1, 1, 1)),
    ],
)
def test_gradient_grower(sparsity, mask, grads, expected):
    assert ours.UnstructuredGradientGrower.calculate_mask(sparsity, row(*mask), row(*grads)).tolist() == [list(expected)]


def test_dst_ee_grower():
    """c = 1, t = e^2, eps = 1: bonus 2 for N = 0, 1 for N = 1, 2/3 for N = 2; scores 2.5, 2.75, 2.66."""
    mask, grads, counts = row(1, 0, 0, 0), row(9, 0.5, 1.75, 2.0), torch.tensor([[5, 0, 1, 2]])
    step = 7  # ln 7 = 1.9459: 2.4459, 2.72, 2.6486
    grow = ours.UnstructuredDSTEEGrower.calculate_mask
    assert grow(0.5, mask, grads, counts, step, c=1.0).tolist() == [[1, 0, 1, 0]]
    assert grow(0.25, mask, grads, counts, step, c=1.0).tolist() == [[1, 0, 1, 1]]
    assert grow(0.5, mask, grads, counts, step, c=100.0).tolist() == [[1, 1, 0, 0]]  # never active comes first
    assert grow(0.5, mask, grads, counts, step, c=0.0).tolist() == [[1, 0, 0, 1]]
    assert counts.tolist() == [[5, 0, 1, 2]]


def test_random_masks_are_exact_and_seeded():
    mask = (torch.arange(4000) % 4 == 0).float().view(40, 100)
    pruner, grower = ours.UnstructuredRandomPruner, ours.UnstructuredRandomGrower
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        pruned = pruner.calculate_mask(0.3, mask)
        grown = grower.calculate_mask(0.6, mask)
        assert int(pruned.sum()) == 700 and not (pruned > mask).any()
        assert int(grown.sum()) == 1600 and not (grown < mask).any()
        assert torch.equal(ours.UnstructuredGradientGrower.calculate_mask(0.75, mask, None), mask)
        results.append((pruned, grown))
    assert all(torch.equal(a, b) for a, b in zip(*results[:2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(*results[1:], strict=True))
    halves = results[0][1].view(2, -1).sum(1)
    assert (halves - 800).abs().max() < 80  # four standard deviations


def test_wrong_arguments():
    mask = row(1, 1, 0, 0)
    prune, grow = ours.UnstructuredMagnitudePruner.calculate_mask, ours.UnstructuredGradientGrower.calculate_mask
    with pytest.raises(RuntimeError, match=r"2 weights are active, the target is 1"):
        grow(0.75, mask, mask)
    cases = [
        (lambda: prune(1.5, mask, mask), ValueError, r"prune_ratio must be in \[0, 1\], got 1.5"),
        (lambda: grow(-1, mask, mask), ValueError, r"sparsity must be in \[0, 1\]"),
        (lambda: prune(0.5, mask.bool(), mask), TypeError, "floating-point tensor of 0 and 1"),
        (lambda: prune(0.5, mask / 2, mask), ValueError, "other values than 0 and 1"),
        (lambda: prune(0.5, mask, row(1, 2)), ValueError, r"weights must be a tensor of shape \[1, 4\]"),
        (lambda: prune(0.5, mask, mask.double()), TypeError, "weights has dtype torch.float64"),
        (lambda: grow(0.25, mask, mask.double()), TypeError, "grads has dtype torch.float64"),
        (lambda: ours.UnstructuredDSTEEGrower.calculate_mask(0.25, mask, mask, mask, 5), ValueError, "counts must be integers"),
        (lambda: ours.accelerate(nn.Linear(1, 1)), TypeError, "RigL and SET, not Linear"),
        (lambda: ours.undo(nn.Linear(1, 1)), RuntimeError, "not accelerated"),
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()


# --- beside the original -------------------------------------------------------------------------------------------------


@original
def test_the_classes_select_what_the_originals_do():
    from sparsimony.pruners import unstructured as theirs

    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        mask = (torch.rand(30, 41, generator=generator) < 0.3).float()
        values = torch.randn(30, 41, generator=generator)
        for ratio in (0.0, 0.1, 0.35, 1.0):
            pruned = theirs.UnstructuredMagnitudePruner.calculate_mask(ratio, mask, values)
            assert torch.equal(ours.UnstructuredMagnitudePruner.calculate_mask(ratio, mask, values), pruned)
        for sparsity in (0.0, 0.2, 0.5):
            grown = theirs.UnstructuredGradientGrower.calculate_mask(sparsity, mask, values)
            assert torch.equal(ours.UnstructuredGradientGrower.calculate_mask(sparsity, mask, values), grown)
            assert theirs.UnstructuredRandomGrower.calculate_mask(sparsity, mask).sum() == grown.sum()
            assert ours.UnstructuredRandomGrower.calculate_mask(sparsity, mask).sum() == grown.sum()
        for cls in (theirs.UnstructuredGradientGrower, ours.UnstructuredGradientGrower):
            with pytest.raises(RuntimeError, match=r"in grow mask"):
                cls.calculate_mask(0.9, mask, values)


def prepared(kind: str = "RigL", distribution: str = "ERKDistribution", sparsity: float = 0.8, seed: int = 0, **arguments):
    """A sparsimony training in the style of its own documentation."""
    from sparsimony.distributions import base as distributions
    from sparsimony.dst.rigl import RigL
    from sparsimony.dst.set import SET
    from sparsimony.schedulers.base import CosineDecayScheduler

    model = mlp(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    sparsifier = {"RigL": RigL, "SET": SET}[kind](
        CosineDecayScheduler(0.3, t_end=60, delta_t=3),
        getattr(distributions, distribution)(),
        optimizer,
        sparsity=sparsity,
        init_method=None,
        **arguments,
    )
    sparsifier.prepare(model, [{"tensor_fqn": f"{i}.weight"} for i in (0, 2, 4)])
    return model, optimizer, sparsifier


def train(model, optimizer, sparsifier, steps: int, start: int = 0) -> list[list[tuple[Tensor, Tensor]]]:
    """Masks and masked weights after each update."""
    history = []
    for t, batch in enumerate(batches(start + steps)):
        if t < start:
            continue
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
        if sparsifier.step():
            history.append([(model[i].parametrizations.weight[0].mask.clone(), model[i].weight.detach()) for i in (0, 2, 4)])
    return history


def differing(a, b) -> list[tuple[int, int]]:
    return [(t, i) for t, (x, y) in enumerate(zip(a, b, strict=True)) for i in range(3)
            if not all(torch.equal(p, q) for p, q in zip(x[i], y[i], strict=True))]  # fmt: skip


@original
@pytest.mark.parametrize("distribution", ["ERKDistribution", "UniformDistribution"])
@pytest.mark.parametrize("init", [0.0, 0.01])
def test_an_accelerated_rigl_trains_as_the_original(distribution, init):
    """Masks and masked weights, ==, at each of 16 updates, the whole training and where it is switched on and off midway."""
    theirs = train(*prepared(distribution=distribution, grown_weights_init=init), 48)
    assert len(theirs) == 16
    model, optimizer, sparsifier = prepared(distribution=distribution, grown_weights_init=init)
    assert ours.accelerate(sparsifier) is sparsifier
    assert not differing(theirs, train(model, optimizer, sparsifier, 48))

    model, optimizer, sparsifier = prepared(distribution=distribution, grown_weights_init=init)
    history = train(model, optimizer, sparsifier, 16)
    ours.accelerate(sparsifier)
    history += train(model, optimizer, sparsifier, 16, start=16)
    ours.undo(sparsifier)
    assert "_step" not in vars(sparsifier) and "update_mask" not in vars(sparsifier)
    assert not differing(theirs, history + train(model, optimizer, sparsifier, 16, start=32))


@original
def test_quirk_the_share_is_rounded_in_the_dtype_of_the_mask():
    """100 * 0.29 is 29 in float32, and 28 with Python's floats, which would leave another weight standing."""
    from sparsimony.distributions.base import UniformDistribution
    from sparsimony.dst.rigl import RigL
    from sparsimony.schedulers.base import ConstantScheduler

    found = []
    for fast in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        arguments = {"sparsity": 0.5, "init_method": None}
        sparsifier = RigL(ConstantScheduler(0.29, 9, 1), UniformDistribution(), optimizer, **arguments)
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
        if fast:
            ours.accelerate(sparsifier)
        before = model[0].parametrizations.weight[0].mask.clone()
        weights = model[0].weight.detach().abs()
        model(torch.ones(1, 20)).sum().backward()  # all gradients tie: the dropped ones of the lowest index come back
        sparsifier.step()
        kept = model[0].weight.detach() != 0
        assert int(before.sum()) == 100 and int(kept.sum()) == 71
        assert torch.equal(weights[kept].sort().values, weights[before.bool()].sort().values[29:])
        found.append(kept)
    assert torch.equal(*found) and int(100 * 0.29) == 28


@original
def test_quirk_original_keeps_values_of_dropped_weights():
    for fast in (False, True):
        model, optimizer, sparsifier = prepared()
        if fast:
            ours.accelerate(sparsifier)
        pointer = model[0].parametrizations.weight.original.data_ptr()
        train(model, optimizer, sparsifier, 3)
        p = model[0].parametrizations.weight
        assert bool((p.original * (1 - p[0].mask)).any()) == (not fast)
        assert (p.original.data_ptr() == pointer) == fast  # the original binds new storage at every update


@original
def test_quirk_set_of_sparsimony_0_1_0_stops_at_its_first_update():
    """It counts each step twice, so an even delta_t never updates; an odd one runs into an assertion about the wrong count."""
    with pytest.raises(AssertionError):
        train(*prepared("SET"), 6)
    model, optimizer, sparsifier = prepared("SET")
    ours.accelerate(sparsifier)
    before = [model[i].parametrizations.weight[0].mask.clone() for i in (0, 2, 4)]
    assert len(train(model, optimizer, sparsifier, 30)) == 10 and sparsifier._step_count == 30
    for i, group, old in zip((0, 2, 4), sparsifier.groups, before, strict=True):
        mask = model[i].parametrizations.weight[0].mask
        assert int(mask.sum()) == int(mask.numel() * (1 - group["sparsity"]))
        assert group["sparsity"] == 0 or not torch.equal(mask, old)


@original
def test_dst_ee_grows_in_a_sparsimony_training():
    """c = 0 is RigL, mask for mask; a huge c explores: what was never active comes first."""
    theirs = train(*prepared(), 48)
    model, optimizer, sparsifier = prepared()
    ours.accelerate(sparsifier, dstee.DSTEE(c=0.0))
    assert not differing(theirs, train(model, optimizer, sparsifier, 48))
    explored = []
    for method in (None, dstee.DSTEE(c=1e3)):
        model, optimizer, sparsifier = prepared()
        ours.accelerate(sparsifier, method)
        ever = model[0].parametrizations.weight[0].mask.clone()
        for masks in train(model, optimizer, sparsifier, 48):
            ever = torch.maximum(ever, masks[0][0])
        explored.append(int(ever.sum()))
    p = model[0].parametrizations.weight[0]
    assert explored[1] > explored[0] and int(p.rounds) == 16
    counter = dstee.ops.decode_counts(p.counts, dstee.ops.pack_mask(p.mask.bool()), 16, p.mask.shape)
    assert int((counter > 0).sum()) == explored[1] and int(counter.max()) <= 17
    assert "0.parametrizations.weight.0.counts" in model.state_dict()
    ours.undo(sparsifier)
    assert "0.parametrizations.weight.0.counts" not in model.state_dict()


@original
def test_wrong_uses_of_accelerate():
    from sparsimony.dst.rigl import RigL

    _, _, sparsifier = prepared()
    with pytest.raises(TypeError, match=r"must be a dstee\.DSTEE"):
        ours.accelerate(sparsifier, dstee.SET())
    ours.accelerate(sparsifier)
    with pytest.raises(RuntimeError, match="accelerated already"):
        ours.accelerate(sparsifier)
    with pytest.raises(TypeError, match="SET does not keep"):
        ours.accelerate(prepared("SET")[2], dstee.DSTEE())
    with pytest.raises(RuntimeError, match="prepare"):
        ours.accelerate(RigL(None, None, None))
