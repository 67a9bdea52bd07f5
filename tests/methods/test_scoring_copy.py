"""Methods that score weights before training: a model that stays as it was, whatever its kind, and what they refuse."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from support.scored_models import ONE_EACH, assert_same, convnet, data, deep, first, masks_of, net
from support.small_models import differing
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dstee
from dstee.methods import SNIP, GraSP, Method, SynFlow

# --- the model stays as it was -------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """With everything that a forward may change: BatchNorm, dropout, a counter, a buffer, generators; raises where it is told
    to."""

    def __init__(self, raise_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.calls, self.raise_at = convnet(), 0, raise_at
        self.register_buffer("seen", torch.zeros(()))
        self.body[3].weight.requires_grad_(False)
        self.body[4].eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.calls == self.raise_at:
            raise RuntimeError("the model's own error")
        self.calls += 1
        self.seen += 1
        return self.body(x) + 1e-3 * (torch.rand(()) + random.random() + np.random.rand())


def everything(model: Counting) -> dict[str, Tensor]:
    found = {f"state {name}": t.detach().clone() for name, t in model.state_dict().items()}
    found |= {f"gradient {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    found |= {f"trains {name}": torch.tensor(p.requires_grad) for name, p in model.named_parameters()}
    found |= {f"mode {name}": torch.tensor(module.training) for name, module in model.named_modules()}
    others = torch.tensor(np.random.get_state()[1].astype(np.int64)), torch.tensor(random.getstate()[1])
    return found | {"calls": torch.tensor(model.calls), "rng": torch.get_rng_state(), "numpy": others[0], "python": others[1]}


@pytest.mark.parametrize("raise_at", [-1, 0, 1])
@pytest.mark.parametrize("method", ONE_EACH)
def test_nothing_of_the_model_changes(method: Method, raise_at: int) -> None:
    model = Counting(raise_at)
    model.body[0].weight.grad = torch.ones_like(model.body[0].weight)  # type: ignore[assignment,arg-type]
    torch.manual_seed(5)
    before = everything(model)
    if raise_at < 0:
        sparse = dstee.sparsify(model, 0.7, method=method, batches=data(3, 9, 9), include=["body.3.weight"])
        assert "body.3.weight" in sparse.layers, "a frozen layer may be scored"
        for name, mask in sparse.masks().items():
            before[f"state {name}"] *= mask
        assert differing(everything(model), before) == []
    else:
        with pytest.raises(RuntimeError, match="the model's own error"):
            masks_of(model, method, data(3, 9, 9), exclude=["body.3.weight"])
        assert differing(everything(model), before) == []
        model.raise_at = -1
        masks_of(model, method, data(3, 9, 9), exclude=["body.3.weight"])


@pytest.mark.parametrize("method", ONE_EACH)
def test_masks_depend_on_the_seed_alone(method: Method) -> None:
    """Not on the generators' states, whatever dropout and the order of a loader draw."""
    x, y = (torch.cat(parts) for parts in zip(*data(3, 9, 9, batches=4), strict=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16, shuffle=True)
    found = []
    for state, seed in ((1, 0), (2, 0), (2, 1)):
        model = convnet()
        torch.manual_seed(state)
        found.append(masks_of(model, method, loader, seed=seed))
    assert_same(found[0], found[1])
    assert isinstance(method, SynFlow) or any(not torch.equal(found[1][name], mask) for name, mask in found[2].items())


# --- kinds of models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ONE_EACH)
def test_half_precision_is_scored_in_full(method: Method, dtype: torch.dtype) -> None:
    batches = [(x.to(dtype), y) for x, y in data(10)]
    model = net().to(dtype)
    found = masks_of(model, method, batches)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert_same(found, masks_of(net().to(dtype).float(), method, [(x.float(), y) for x, y in batches]))


@pytest.mark.parametrize("method", ONE_EACH)
def test_under_autocast_and_without_gradients_the_masks_are_the_same(method: Method) -> None:
    expected = masks_of(deep(3), method, data(30))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert_same(masks_of(deep(3), method, data(30)), expected)


@pytest.mark.parametrize("method", ONE_EACH)
def test_wrappers_change_nothing(method: Method) -> None:
    expected = masks_of(net(), method, data(10))
    for wrapped in (nn.DataParallel(net()), torch.compile(net(), backend="eager")):
        assert_same(masks_of(wrapped, method, data(10)), expected)


def test_a_tied_weight_is_scored_by_all_its_uses() -> None:
    def tied() -> nn.Sequential:
        torch.manual_seed(0)
        a = nn.Linear(8, 8)
        b = nn.Linear(8, 8)
        b.weight = a.weight
        return nn.Sequential(a, nn.Tanh(), b, nn.Tanh(), nn.Linear(8, 4))

    for method in ONE_EACH:
        masks = masks_of(tied(), method, data(8))
        assert list(masks) == ["0.weight", "4.weight"] and sum(int(m.sum()) for m in masks.values()) == round(0.2 * 96)
    model = tied()
    cross_entropy(model(data(8)[0][0]), data(8)[0][1]).backward()
    scores = {name: (p * p.grad).detach().abs() for name, p in model.named_parameters() if p.dim() > 1 and p.grad is not None}
    assert_same(masks_of(tied(), SNIP(), data(8)[:1]), first(scores, round(0.2 * 96)))


@pytest.mark.parametrize("method", ONE_EACH)
def test_layers_that_are_left_out_stay_dense(method: Method) -> None:
    sparse = dstee.sparsify(net(), 0.8, method=method, batches=data(10), exclude=["2.weight"])
    assert list(sparse.layers) == ["0.weight", "4.weight"] and sparse.nnz == round(0.2 * 104)
    assert sparse.model[2].weight.count_nonzero() == 48  # type: ignore[index,union-attr,operator]


class Attention(nn.Module):
    """Arguments by name, integers, attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.block = nn.Embedding(9, 8), nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        return self.head(self.block(self.embedding(tokens) * scale[:, None, None]).mean(1))


@pytest.mark.parametrize("method", ONE_EACH)
@pytest.mark.parametrize("kind", ["mapping", "tuple"])
def test_batches_of_several_inputs(method: Method, kind: str) -> None:
    tokens, scale, y = torch.arange(20).view(4, 5) % 9, torch.rand(4), torch.arange(4)
    inputs = {"tokens": tokens, "scale": scale} if kind == "mapping" else (tokens, scale)
    sparse = dstee.sparsify(Attention(), 0.5, method=method, batches=[(inputs, y)])
    assert sparse.nnz == round(0.5 * sparse.numel)


# --- what is refused -----------------------------------------------------------------------------------------------------


class Broken(nn.Module):
    """A model with a layer that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.unused = nn.Linear(10, 4), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


def infinite(output: Tensor, _: Tensor) -> Tensor:
    return output.sum() * float("inf")


class Tupled(Broken):
    def forward(self, x: Tensor) -> Any:
        return self.a(x), self.unused(x)


class Uncopied(Broken):
    def __deepcopy__(self, memo: object) -> Uncopied:
        raise TypeError("it holds a socket")


@pytest.mark.parametrize("method", ONE_EACH)
def test_without_batches(method: Method) -> None:
    with pytest.raises(ValueError, match=f"{method.name} looks at data: pass batches="):
        dstee.sparsify(net(), method=method)
    with pytest.raises(ValueError, match=f"{method.name}.*batches are empty"):
        masks_of(net(), method, [])


@pytest.mark.parametrize("method", ONE_EACH)
def test_models_that_cannot_be_scored(method: Method) -> None:
    with pytest.raises(ValueError, match=rf"{method.name}.* unused\.weight.*exclude= leaves it dense"):
        masks_of(Broken(), method, data(10))
    with pytest.raises(ValueError, match=r"copy\.deepcopy of Uncopied fails: it holds a socket"):
        masks_of(Uncopied(), method, data(10))
    if not isinstance(method, SNIP):
        with pytest.raises(TypeError, match=f"{method.name} .*expected a tensor, got tuple; wrap the model"):
            masks_of(Tupled(), method, data(10), loss_fn=lambda output, y: cross_entropy(output[0], y))


@pytest.mark.parametrize("method", [SNIP(), GraSP()])
def test_losses_that_cannot_be_differentiated(method: Method) -> None:
    with pytest.raises(ValueError, match=rf"{method.name}: the loss of batch 1 is -?(inf|nan)"):
        masks_of(net(), method, data(10), loss_fn=infinite)
    with pytest.raises(ValueError, match=rf"{method.name}: loss_fn returned a tensor \[12\], expected one number"):
        masks_of(net(), method, data(10), loss_fn=lambda output, y: cross_entropy(output, y, reduction="none"))
    with pytest.raises(ValueError, match=f"{method.name} has no gradient for 0.weight, 2.weight, 4.weight"):
        masks_of(net(), method, data(10), loss_fn=lambda output, y: output.detach().sum())
    with pytest.raises(ValueError, match=r"gradients of 0\.weight.* are not finite"):
        masks_of(net(), method, data(10), loss_fn=lambda output, y: (output * 0).sum().sqrt())


def test_flows_that_cannot_be_ranked() -> None:
    dead, huge = net(), net()
    nn.init.zeros_(dead[2].weight)  # type: ignore[arg-type]
    nn.init.constant_(huge[4].weight, 3e38)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the highest score of round 1 of 10 is 0\.0, .* no path of weights"):
        masks_of(dead, SynFlow(rounds=10), data(10))
    huge = nn.Sequential(*[nn.Linear(4, 4) for _ in range(9)])
    for p in huge.parameters():
        nn.init.constant_(p, 1e38)
    with pytest.raises(ValueError, match=r"round 1 of 10 is (inf|nan), .* beyond float64"):
        masks_of(huge, SynFlow(rounds=10), data(4))
