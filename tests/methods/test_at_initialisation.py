"""SNIP, GraSP and SynFlow: masks as their definitions give them, exact numbers, resumed to the bit."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from support.scored_models import Batches, Masks, assert_same, convnet, data, deep, first, masks_of, net
from support.small_models import assert_invariant, differing, snapshot
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dstee
from dstee.methods import SNIP, GraSP, Method, SynFlow

METHODS = [SNIP(), SNIP(scope="layer"), GraSP(), SynFlow(), SynFlow(rounds=5, biases=True)]


# --- the definitions -----------------------------------------------------------------------------------------------------


def mask_gradients(model: nn.Module, batches: Batches) -> Masks:
    """abs(dL / dmask) at masks of 1, the gradients accumulated over the batches."""
    masks = {name: torch.ones_like(p, requires_grad=True) for name, p in model.named_parameters() if p.dim() > 1}
    for x, y in batches:
        masked = {name: model.get_parameter(name).detach() * mask for name, mask in masks.items()}
        cross_entropy(torch.func.functional_call(model, masked, (x,)), y).backward()
    return {name: mask.grad.abs() for name, mask in masks.items() if mask.grad is not None}


@pytest.mark.parametrize("batches", [1, 3])
def test_snip_keeps_the_largest_gradients_of_the_masks(batches: int) -> None:
    seen = data(10, batches=batches)
    scores = mask_gradients(net(), seen)
    assert_same(masks_of(net(), SNIP(), seen), first(scores, round(0.2 * 152)))
    budget = {name: int(mask.sum()) for name, mask in masks_of(net(), dstee.methods.Static(), None).items()}
    by_layer = masks_of(net(), SNIP(scope="layer"), seen)
    assert_same(by_layer, {name: first({name: x}, budget[name])[name] for name, x in scores.items()})


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_removes_the_largest_of_minus_w_times_hessian_times_gradient(temperature: float) -> None:
    """The product with the Hessian is a difference of gradients along the gradient, in float64."""
    model, seen = net().double(), [(x.double(), y) for x, y in data(10)]
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}

    def gradients(step: float, along: list[Tensor]) -> list[Tensor]:
        moved = {name: (p + step * v).detach().requires_grad_() for (name, p), v in zip(weights.items(), along, strict=True)}
        losses = [cross_entropy(torch.func.functional_call(model, moved, (x,)) / temperature, y) for x, y in seen]
        return list(torch.autograd.grad(torch.stack(losses).sum(), list(moved.values())))

    g = gradients(0.0, list(weights.values()))
    scale = 1e-5 / max(float(x.abs().max()) for x in g)
    products = [a - b for a, b in zip(gradients(scale, g), gradients(-scale, g), strict=True)]
    removed_last = {name: w.detach() * h for (name, w), h in zip(weights.items(), products, strict=True)}
    assert_same(masks_of(net(), GraSP(temperature=temperature), data(10)), first(removed_last, round(0.2 * 152)))


@pytest.mark.filterwarnings("ignore:a part of the network is dead")  # in one round
@pytest.mark.parametrize("rounds", [1, 30])
def test_synflow_is_the_product_of_absolute_matrices_round_after_round(rounds: int) -> None:
    weights = [p.detach().double().abs().numpy() for p in net(bias=False).parameters()]
    kept = [np.ones_like(w, dtype=bool) for w in weights]
    size, total = 152, round(0.1 * 152)
    for r in range(1, rounds + 1):
        w = [a * k for a, k in zip(weights, kept, strict=True)]
        h = [np.ones(10)]
        for a in w:
            h.append(np.tanh(a @ h[-1]))
        back, scores = np.ones(4), []
        for i in reversed(range(3)):
            back = back * (1 - h[i + 1] ** 2) if i < 2 else back
            scores.insert(0, back[:, None] * w[i] * h[i][None])
            back = w[i].T @ back
        k = total if r == rounds else int(np.ceil(size * (total / size) ** (r / rounds)))
        flat = np.concatenate([s.ravel() for s in scores])
        chosen = np.isin(np.arange(size), np.argsort(-flat, kind="stable")[:k])
        kept = [part.reshape(a.shape) for part, a in zip(np.split(chosen, [80, 128]), weights, strict=True)]
    expected = {f"{2 * i}.weight": torch.from_numpy(k) for i, k in enumerate(kept)}
    for biased in (False, True):  # biases count as 0
        model = net()
        for i in (0, 2, 4):
            model[i].weight.data.copy_(net(bias=False)[i].weight.data)  # type: ignore[union-attr]
        found = masks_of(model if biased else net(bias=False), SynFlow(rounds=rounds), data(10), 0.9)
        assert_same(found, expected)


def test_synflow_of_the_repository_makes_biases_and_buffers_absolute() -> None:
    model = convnet()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
    plain = copy.deepcopy(model).double().eval()
    for t in (*plain.parameters(), *plain.buffers()):
        t.data.abs_()
    plain(torch.ones(1, 3, 9, 9, dtype=torch.float64)).sum().backward()
    scores = {name: p.grad * p.detach() for name, p in plain.named_parameters() if p.dim() > 1 and p.grad is not None}
    total = round(0.2 * sum(x.numel() for x in scores.values()))
    assert_same(masks_of(model, SynFlow(rounds=1, biases=True), data(3, 9, 9)), first(scores, total))


def test_equal_scores_stay_by_layer_and_index_and_what_is_gone_stays_gone() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    for p in model.parameters():
        nn.init.constant_(p, -0.5)
    found = masks_of(model, SynFlow(rounds=1), data(4), 12 / 32)
    assert found["0.weight"].all() and found["1.weight"].view(-1).tolist() == [True] * 4 + [False] * 12


def test_what_is_pruned_does_not_come_back() -> None:
    """Eight units lose both of their inputs in the first of two rounds, so that the flow of their outputs is 0 as well."""
    model = nn.Sequential(nn.Linear(2, 9, bias=False), nn.Linear(9, 1, bias=False))
    model[0].weight.data = torch.tensor([[0.1, 0.1]] * 8 + [[1.0, 1.0]])
    nn.init.ones_(model[1].weight)  # type: ignore[arg-type]
    found = masks_of(model, SynFlow(rounds=2), data(2), 23 / 27)
    assert found["0.weight"].tolist() == [[False, False]] * 8 + [[True, True]]
    assert found["1.weight"].tolist() == [[True, *[False] * 7, True]]


@pytest.mark.parametrize("method", [SNIP(), SNIP(scope="layer"), GraSP(), SynFlow(rounds=1)])
def test_ties_do_not_depend_on_the_memory_format(method: Method) -> None:
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = nn.Sequential(nn.Conv2d(4, 4, 2), nn.Flatten())
        for p in model.parameters():
            nn.init.constant_(p, 0.5)
        model.to(memory_format=memory_format)
        found.append(masks_of(model, method, [(torch.ones(2, 4, 2, 2), torch.tensor([0, 0]))]))
    assert_same(*found)


def test_flows_beyond_single_precision() -> None:
    """A power of two less in every layer changes no order, but makes the flow smaller than any float32."""
    found = []
    for scale in (1.0, 2.0**-12):
        model = deep(16)
        for p in model.parameters():
            p.data *= scale
        found.append(masks_of(model, SynFlow(rounds=10), data(30)))
    assert_same(*found)


# --- numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:a part of the network is dead")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99, 0.999])
def test_totals_are_exact(method: Method, sparsity: float) -> None:
    for make, batches in ((convnet, data(3, 9, 9)), (lambda: deep(4), data(30))):
        sparse = dstee.sparsify(make(), sparsity, method=method, batches=batches)
        assert sparse.nnz == round((1 - sparsity) * sparse.numel) == sum(int(m.sum()) for m in sparse.masks().values())
        assert_invariant(sparse)
        if method == SNIP(scope="layer"):
            budget = dstee.sparsify(make(), sparsity)
            assert {name: x.nnz for name, x in sparse.layers.items()} == {name: x.nnz for name, x in budget.layers.items()}


@pytest.mark.parametrize(("make", "shape"), [(deep, (30,)), (convnet, (3, 9, 9))])
def test_synflow_empties_no_layer(make: Any, shape: tuple[int, ...]) -> None:
    """Not in few rounds either, and what is left is connected: down to 32 weights in 21 layers, 7 in 4."""
    for rounds in (1, 10, 100):
        model = make()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            masks = masks_of(model, SynFlow(rounds=rounds), data(*shape), 0.999)
        assert all(mask.any() for mask in masks.values())
        for name, p in model.named_parameters():
            p.data = p.data.abs() * ("bias" not in name)
        assert model.eval()(torch.ones(1, *shape)).sum() > 0, rounds


@pytest.mark.parametrize("method", [SNIP(), GraSP(), SynFlow(biases=True)])
def test_emptied_layers_are_named(method: Method) -> None:
    with pytest.warns(UserWarning, match="a part of the network is dead from the start") as caught:
        masks = masks_of(deep(), method, data(30), 0.999)
    empty = [name for name, mask in masks.items() if not mask.any()]
    assert (
        len(caught) == 1
        and f"{len(empty)} of {len(masks)} layers" in str(caught[0].message)
        and ", ".join(empty) in str(caught[0].message)
    )
    assert caught[0].filename.endswith("scored_models.py"), "who called sparsify"


def test_synflow_refuses_fewer_weights_than_layers() -> None:
    with pytest.raises(ValueError, match="2 active weights are fewer than the 3 layers: ask for a lower sparsity"):
        masks_of(net(), SynFlow(), data(10), 0.99)
    assert all(int(mask.sum()) == 1 for mask in masks_of(net(), SynFlow(), data(10), 0.98).values())


# --- training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_masks_stay_and_resuming_gives_the_same_bits(method: Method) -> None:
    def make(seed: int) -> tuple[nn.Module, dstee.SparseModel, dstee.SparseSGD]:
        model = net(seed)
        schedule = dstee.UpdateSchedule(every=2)
        sparse = dstee.sparsify(model, 0.8, method=method, batches=data(10), schedule=schedule, seed=seed)
        return model, sparse, dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)

    def train(model: nn.Module, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD, steps: range) -> None:
        for step in steps:
            x, y = data(10)[step % 2]
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            assert not sparse.step(optimizer)

    straight, broken, again = make(0), make(0), make(1)  # ``again`` has other masks, other numbers in its layers
    first_masks = dict(straight[1].masks())
    train(*straight, range(6))
    train(*broken, range(3))
    assert_same(dict(straight[1].masks()), first_masks)
    for old, new in zip(broken, again, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    train(*again, range(3, 6))
    assert differing(snapshot(*straight[1:]), snapshot(*again[1:])) == []
    assert again[1].method == method
