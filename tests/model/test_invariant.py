"""Weights are 0 outside the masks whoever has written to them: noticed, masked again with a warning, or refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.small_models import assert_invariant, mlp, set_gradients, snapshot
from torch import nn
from torch.optim.swa_utils import AveragedModel

import dstee

SCHEDULE = dstee.UpdateSchedule(every=3, drop=dstee.ConstantDrop(0.4))
WARNED = r"weights outside the masks were written and are 0 again: 0.weight \(\d+\)"
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SparseSGD": lambda model, sparse: dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9),
    "SGD": lambda model, sparse: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "AdamW": lambda model, sparse: torch.optim.AdamW(model.parameters(), lr=0.01),
}


def trained(kind: str = "SparseSGD", steps: int = 4, **options: Any) -> tuple[nn.Sequential, dstee.SparseModel, Any]:
    model = mlp()
    sparse = dstee.sparsify(model, 0.7, schedule=SCHEDULE, **options)
    optimizer = OPTIMIZERS[kind](model, sparse)
    for t in range(steps):
        set_gradients(model, t)
        sparse.step(optimizer)
    return model, sparse, optimizer


def dense_state(model: nn.Module) -> None:
    model.load_state_dict({name: torch.ones_like(t) for name, t in model.state_dict().items()})


def average_back(model: nn.Module) -> None:
    """As EMA and SWA hand their copies back."""
    average = AveragedModel(mlp(1))
    with torch.no_grad():
        for p, q in zip(model.parameters(), average.parameters(), strict=True):
            p.copy_(q)


def other_memory(model: nn.Module) -> None:
    model[0].weight.data = torch.ones(9, 12)


def low_rank_merge(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight += torch.ones(9, 1) @ torch.ones(1, 12)


def another_module(model: nn.Module) -> None:
    model[0] = nn.Linear(12, 9)


def behind_the_version_counter(model: nn.Module) -> None:
    model[0].weight.data.copy_(torch.ones(9, 12))


WRITES = [dense_state, average_back, other_memory, low_rank_merge]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("write", WRITES)
def test_the_next_step_masks_again_and_says_so(write: Callable[[nn.Module], None], kind: str) -> None:
    model, sparse, optimizer = trained(kind)
    write(model)
    set_gradients(model, 9)
    with pytest.warns(UserWarning, match=WARNED) as caught:
        sparse.step(optimizer)
    assert len(caught) == 1
    assert_invariant(sparse, optimizer)
    set_gradients(model, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse.step(optimizer)  # once
    assert_invariant(sparse, optimizer)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_update_finds_what_no_version_counter_tells(kind: str) -> None:
    model, sparse, optimizer = trained(kind, steps=4)
    behind_the_version_counter(model)
    for t in (4, 5):  # the second of them updates
        set_gradients(model, t)
        if t == 5 and kind == "SparseSGD":
            with pytest.warns(UserWarning, match=WARNED):
                assert sparse.step(optimizer)
        else:  # the others mask after each step
            sparse.step(optimizer)
    assert_invariant(sparse, optimizer)


@pytest.mark.parametrize("write", [*WRITES, another_module, behind_the_version_counter])
@pytest.mark.parametrize("look", ["summary", "density", "export"])
def test_who_looks_sees_what_is_so(look: str, write: Callable[[nn.Module], None]) -> None:
    model, sparse, _ = trained()
    write(model)
    with pytest.warns(UserWarning, match=WARNED):
        getattr(sparse, look)()
    assert_invariant(sparse)
    assert sparse.density() == sparse.nnz / 153


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_weights_of_other_masks_are_refused(kind: str) -> None:
    """A run that goes on without its sparse state would lose what it has learned."""
    trained_model, _, trained_optimizer = trained(kind, steps=30)
    model, sparse, optimizer = trained(kind, steps=0)
    model.load_state_dict(trained_model.state_dict())
    optimizer.load_state_dict(copy.deepcopy(trained_optimizer.state_dict()))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    set_gradients(model, 0)
    with pytest.raises(ValueError, match=r"0.weight.* sparse, but not where the masks are.*load_state_dict|not from the same"):
        sparse.step(optimizer)
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]), name
    assert sparse.t == 0


def test_the_sparse_state_makes_them_belong_together() -> None:
    from_model, from_sparse, from_optimizer = trained(steps=30)
    model, sparse, optimizer = trained(steps=0)
    model.load_state_dict(from_model.state_dict())
    optimizer.load_state_dict(copy.deepcopy(from_optimizer.state_dict()))
    sparse.load_state_dict(from_sparse.state_dict())
    for m, s, o in ((model, sparse, optimizer), (from_model, from_sparse, from_optimizer)):
        set_gradients(m, 1)
        s.step(o)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), from_model.parameters(), strict=True))


def test_writes_inside_the_masks_are_nobodys_business() -> None:
    model, sparse, optimizer = trained()
    with torch.no_grad():
        model[0].weight.mul_(0.5)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    set_gradients(model, 5)
    sparse.step(optimizer)
    assert_invariant(sparse, optimizer)


# --- copies, clipping, layers that leave ---------------------------------------------------------------------------------


def test_masks_for_a_copy() -> None:
    model, sparse, _ = trained()
    average = AveragedModel(model)
    dense_state(average.module)
    sparse.apply_masks(average)
    for name, mask in sparse.masks().items():
        assert torch.equal(average.module.get_parameter(name), mask.float())
    assert not torch.equal(model[0].weight, average.module[0].weight), "the model is left alone"
    with pytest.raises(ValueError, match=r"other_model has no parameter of this name and shape: 3.weight"):
        sparse.apply_masks(nn.Sequential(nn.Linear(12, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 6)))


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_clipping_by_what_is_stepped(norm_type: float) -> None:
    model, sparse, _ = trained()
    set_gradients(model, 1)
    with torch.no_grad():
        model[0].weight.grad[~sparse.mask("0.weight")] = 100.0  # moves nothing
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    kept = [torch.where(sparse.mask(n), g, 0) if n in sparse.layers else g for n, g in plain.items()]
    expected = torch.linalg.vector_norm(torch.cat([g.flatten() for g in kept]), norm_type)
    total = sparse.clip_grad_norm_(0.5, norm_type)
    torch.testing.assert_close(total, expected)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, plain[name] * (0.5 / (expected + 1e-6)))


def test_a_norm_that_is_not_finite_can_be_an_error() -> None:
    model, sparse, _ = trained()
    set_gradients(model, 1)
    model[0].bias.grad[0] = float("nan")
    with pytest.raises(RuntimeError, match="non-finite"):
        sparse.clip_grad_norm_(1.0, error_if_nonfinite=True)


def test_layers_that_leave() -> None:
    model, sparse, optimizer = trained()
    with pytest.raises(KeyError, match="no sparse layer 'head', expected one of"):
        sparse.remove("3.weight", "head")
    assert list(sparse.layers) == ["0.weight", "3.weight"]
    sparse.remove("3.weight")
    dense_state(model[3])
    for t in range(4):
        set_gradients(model, t)
        sparse.step(optimizer)
    assert list(sparse.layers) == ["0.weight"] and bool((model[3].weight != 0).all())
    assert_invariant(sparse, optimizer)


# --- other objects under a name ------------------------------------------------------------------------------------------


def test_a_new_module_is_adopted() -> None:
    model, sparse, old = trained()
    model[3] = nn.Linear(9, 5)
    set_gradients(model, 4)
    message = r"does not hold these sparse weights of the model: 3.weight \(3.weight: another parameter than the optimizer's"
    with pytest.raises(ValueError, match=message):
        sparse.step(old)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
    with pytest.warns(UserWarning, match=r"are 0 again: 3.weight"):
        sparse.step(optimizer)
    assert_invariant(sparse, optimizer)
    before = snapshot(sparse, optimizer)
    for t in range(5, 9):
        set_gradients(model, t)
        sparse.step(optimizer)
    assert not torch.equal(before["mask 3.weight"], sparse.mask("3.weight")), "its masks move on"
    assert torch.equal(sparse.export()["3.weight"], model[3].weight)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Linear(9, 6), r"3.weight has shape \[6, 9\], it was \[5, 9\].*sparse.remove\('3.weight'\)"),
        (nn.ReLU(), r"3.weight is no parameter of its module any more.*sparse.remove\('3.weight'\)"),
        (nn.Linear(9, 5).double(), r"3.weight has dtype torch.float64"),
    ],
)
def test_a_module_that_does_not_fit_is_named(head: nn.Module, message: str) -> None:
    model, sparse, optimizer = trained()
    model[3] = head
    set_gradients(model, 4)
    with pytest.raises((RuntimeError, TypeError), match=message):
        sparse.step(optimizer)
    sparse.remove("3.weight")
    sparse.step(optimizer)
    assert_invariant(sparse, optimizer)


def test_a_whole_part_of_the_model_is_replaced() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 6)), nn.Linear(6, 2))
    sparse = dstee.sparsify(model, 0.5)
    model[0] = nn.Sequential(nn.Linear(6, 6))
    assert sparse.layers["0.0.weight"].param is model[0][0].weight
    del model[0]
    with pytest.raises(RuntimeError, match="is no parameter of its module any more"):
        sparse.density()


def test_a_model_is_made_sparse_once() -> None:
    model = mlp()
    sparse = dstee.sparsify(model, 0.7)
    for again in (model, nn.parallel.DataParallel(model), nn.Sequential(model)):
        with pytest.raises(ValueError, match=r"0.weight is sparse already: go on with the SparseModel that masks it"):
            dstee.sparsify(again, 0.5)
    twin = copy.deepcopy(model)
    dstee.sparsify(twin, 0.5)
    both = copy.deepcopy([model, sparse])
    with pytest.raises(ValueError, match="is sparse already"):
        dstee.sparsify(both[0], 0.5)
    sparse.remove(*sparse.layers)
    assert dstee.sparsify(model, 0.5).nnz == 76
    del sparse
    fresh = mlp()
    dstee.sparsify(fresh, 0.5)  # nobody holds the keeper
    dstee.sparsify(fresh, 0.5)


# --- given masks ---------------------------------------------------------------------------------------------------------


def test_given_masks() -> None:
    model = mlp()
    masks = {"0.weight": torch.arange(108).view(9, 12) % 3 == 0}
    sparse = dstee.sparsify(model, masks=masks)
    assert list(sparse.layers) == ["0.weight"] and torch.equal(sparse.mask("0.weight"), masks["0.weight"])


def test_masks_of_a_pruned_model() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[model[0].weight.abs() < 0.2] = 0
    before = model[0].weight.detach().clone()
    sparse = dstee.sparsify(model, masks="nonzero")
    assert torch.equal(sparse.mask("0.weight"), before != 0) and torch.equal(model[0].weight, before)
    assert sparse.layers["3.weight"].nnz == 45


def test_masks_of_the_largest_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -3.0, 2.0, 0.5], [-2.0, 2.0, float("nan"), 0.0]]))
    sparse = dstee.sparsify(model, 0.5, masks="magnitude", method=dstee.RigL())
    #                                              3, then 2, -2, 2 in the order of their index; NaN is the last
    assert sparse.mask("0.weight").tolist() == [[False, True, True, False], [True, True, False, False]]
    model = mlp()
    sparse = dstee.sparsify(model, 0.7, masks="magnitude")
    assert {name: layer.nnz for name, layer in sparse.layers.items()} == {
        name: layer.nnz for name, layer in dstee.sparsify(mlp(), 0.7).layers.items()
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masks": "largest"}, "masks must be a dict from parameter name to mask, 'nonzero' or 'magnitude', got 'largest'"),
        ({"masks": "nonzero", "sparsity": 0.5}, "sparsity and masks are both given"),
        ({"masks": {}, "sparsity": 0.5}, "sparsity and masks are both given"),
        ({"masks": {"0.weight": torch.ones(9, 12)}, "exclude": "3"}, "masks name the layers"),
    ],
)
def test_masks_that_are_not(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dstee.sparsify(mlp(), **arguments)


def test_a_failed_step_does_not_excuse_what_comes_later() -> None:
    """What it left is masked without a word, once; weights of other masks are refused afterwards as ever."""
    other, _, _ = trained("AdamW", steps=30)
    model, sparse, optimizer = trained("AdamW", steps=2)

    def fail(*args: object) -> None:
        raise ZeroDivisionError

    handle = optimizer.register_step_post_hook(fail)
    set_gradients(model, 2)
    with pytest.raises(ZeroDivisionError):
        sparse.step(optimizer)
    handle.remove()
    sparse.density()
    model.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="sparse, but not where the masks are"):
        sparse.density()
