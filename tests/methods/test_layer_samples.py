"""Observed layers: what they are given and give, and what takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dstee.methods.layer_samples import LayerSamples, observe, patches


def look(model: nn.Module, *batches: Tensor, samples: int = 1000) -> dict[str, LayerSamples]:
    def forward(x: Tensor) -> Callable[[], Any]:
        return lambda: model(x)

    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    return observe(model, weights, map(forward, batches), samples)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.drop, self.act = nn.Dropout(0.5), nn.ReLU(inplace=True)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.a(x)))
        y = self.b(x)
        y = F.relu(y) + y  # not relu alone
        z = self.c(y)
        assert z.shape[-1] == z.size(-1) == 4  # looking is not taking
        return self.d(torch.relu(z))


def test_what_layers_are_given_and_give() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(7, 6)
    model.drop.eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    seen = look(model, x)
    assert torch.equal(torch.get_rng_state(), before) and [m.training for m in model.modules()] == modes
    assert {name: layer.relu for name, layer in seen.items()} == {
        "a.weight": True, "b.weight": False, "c.weight": True, "d.weight": False,
    }  # fmt: skip
    h = model.a(x).detach()
    assert torch.equal(seen["a.weight"].inputs[0], x) and torch.equal(seen["a.weight"].outputs, h)
    assert torch.equal(seen["b.weight"].inputs[0], h.relu())
    for name, layer in seen.items():
        module: Any = model.get_submodule(name.removesuffix(".weight"))
        torch.testing.assert_close(module(layer.inputs[0]), layer.outputs)
        assert not module._forward_hooks


def test_enough_rows_are_enough() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    batches = torch.arange(60.0).view(4, 5, 3)
    assert torch.equal(look(model, *batches, samples=7)["0.weight"].inputs[0], batches.view(20, 3)[[0, 1, 2, 4, 5, 7, 8]])
    assert torch.equal(look(model, *batches, samples=2)["0.weight"].inputs[0], batches[0, [0, 2]])
    assert torch.equal(look(model, *batches)["0.weight"].inputs[0], batches.view(20, 3))
    nested = look(nn.Sequential(nn.Linear(3, 2)), batches)["0.weight"]
    assert torch.equal(nested.inputs[0], batches.view(20, 3)) and nested.outputs.shape == (20, 2)


def test_shared_and_other_weights_are_left_out() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Bilinear(4, 4, 4))
    tied[1].weight = tied[0].weight
    twice = nn.Sequential(tied[2], nn.ReLU(), tied[2], nn.ReLU())
    assert list(look(nn.Sequential(tied[0], tied[1], tied[2]), torch.randn(3, 4))) == ["2.weight"]
    seen = look(twice, torch.randn(3, 4))["0.weight"]
    assert seen.outputs.shape == (6, 4) and seen.relu, "called twice"


def test_an_exception_leaves_no_hook() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    with pytest.raises(RuntimeError):
        look(model, torch.randn(4, 5))
    assert not model[0]._forward_hooks and model[1].training


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(4, 6, 3, stride=2, padding=1, dtype=torch.float64),
        nn.Conv2d(4, 6, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1), groups=2, dtype=torch.float64),
        nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular", dtype=torch.float64),
        nn.Conv3d(2, 3, 2, dtype=torch.float64),
    ],
    ids=str,
)
def test_patches_are_what_the_convolution_multiplies(module: Any) -> None:
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(3, module.in_channels, *(7, 6, 5)[: len(module.kernel_size)], generator=generator, dtype=torch.float64)
    weights = module.weight.detach().chunk(module.groups)
    n = len(module(x).movedim(1, -1).flatten(0, -2))
    rows = [part @ w.flatten(1).T for part, w in zip(patches(module, x, torch.arange(n)), weights, strict=True)]
    expected = module(x).detach().movedim(1, -1)
    torch.testing.assert_close(torch.cat(rows, 1) + module.bias.detach(), expected.reshape(-1, module.out_channels))
    some = torch.tensor([n - 1, 0, 2])
    for part, whole in zip(patches(module, x, some), patches(module, x, torch.arange(n)), strict=True):
        assert torch.equal(part, whole[some])
    assert torch.equal(patches(module, x[0], some[2:])[0], patches(module, x[:1], some[2:])[0])
