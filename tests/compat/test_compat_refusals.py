"""What refuses a model leaves nothing behind: no masks, hooks or marks; once it fits, the same objects take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.compat_originals import mlp, namespace
from torch import nn

from dstee.compat.rigl_torch import RigLScheduler
from dstee.compat.sparselearning import Masking
from dstee.compat.torch_ao import DSTEESparsifier

Take = Callable[[nn.Module, torch.optim.Optimizer], Any]


def masking(cls: type[Masking], **values: Any) -> Take:
    made: list[Masking] = []

    def take(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if not made:
            made.append(cls(optimizer, death_rate=0.3, growth_mode="gradient", args=namespace(**values)))
        made[0].add_module(model, density=0.3, sparse_init="ERK")

    return take


def sparsifier() -> Take:
    one = DSTEESparsifier()
    return lambda model, optimizer: one.prepare(model, [{"tensor_fqn": name} for name in matrices(model)])


TAKERS: dict[str, Callable[[], Take]] = {
    "Masking": lambda: masking(Masking),
    "RigLScheduler": lambda: (
        lambda model, optimizer: RigLScheduler(
            model, optimizer, dense_allocation=0.3, T_end=9, delta=3, ignore_linear_layers=False, sparsity_distribution="erk"
        )
    ),
    "DSTEESparsifier": sparsifier,
}


def matrices(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.dim() > 1]


def traces(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[object]:
    """All that a library may have hung on a model and its optimizer."""
    found: list[object] = [(name, sorted(vars(p)), p._backward_hooks) for name, p in model.named_parameters()]
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._state_dict_hooks)
        found.append((name, type(module), [len(h) for h in hooks], sorted(module._buffers), sorted(module._modules)))
    found.append((len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks), vars(optimizer).keys()))
    return found


@pytest.mark.parametrize("taker", TAKERS)
def test_a_refusal_leaves_nothing_behind(taker: str) -> None:
    model, take = mlp(), TAKERS[taker]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    last = model.get_submodule(matrices(model)[-1].removesuffix(".weight"))
    last.double()
    before, weights = traces(model, optimizer), [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TypeError, match=r"has dtype torch.float64"):
        take(model, optimizer)
    assert traces(model, optimizer) == before
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    last.float()
    take(model, optimizer)
    sparse = [model.state_dict()[name] for name in model.state_dict() if name.endswith(("weight", "original"))]
    assert any(bool((w == 0).any()) for w in sparse) or taker == "DSTEESparsifier"
