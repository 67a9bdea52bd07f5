"""What an ordinary step of SparseSGD costs in Python, and how it steps the parameters that are not sparse."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from support.small_models import set_gradients
from torch import nn

import dstee


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs)
        self.second, self.norm2 = nn.Conv2d(outputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs)


def resnet(blocks: int) -> nn.Module:
    """The weights of a CIFAR ResNet of 2 * blocks + 2 layers: as many sparse tensors, twice as many dense ones less one."""
    torch.manual_seed(0)
    widths = [16 << 3 * i // blocks for i in range(blocks)]
    pairs = zip([16, *widths], widths, strict=False)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), *(Block(*pair) for pair in pairs), nn.Linear(64, 10)
    )


def python_calls(step: Callable[[], Any]) -> int:
    """Calls of Python functions in ``step`` but for ``Tensor.__hash__``, which looking a tensor up in a dict calls."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_name != "__hash__"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("whole", [True, False])
def test_a_step_makes_no_python_call_for_each_tensor(whole: bool) -> None:
    counts = []
    for blocks in (3, 9):
        model = resnet(blocks)
        sparse = dstee.sparsify(model, 0.9, schedule=dstee.UpdateSchedule(every=1000))
        optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9, weight_decay=1e-4)
        for t in range(3):
            set_gradients(model, t)
            if t < 2:
                sparse.step(optimizer)

        def apart(sparse: dstee.SparseModel = sparse, optimizer: dstee.SparseSGD = optimizer) -> None:
            optimizer.step()
            sparse.update()

        apart()
        counts.append(python_calls(lambda s=sparse, o=optimizer: s.step(o)) if whole else python_calls(apart))
    # Six blocks more are 24 tensors more. A few calls may be of objects that happen to die then.
    assert abs(counts[0] - counts[1]) < 8 and max(counts) < (170 if whole else 210)


# --- dense parameters ----------------------------------------------------------------------------------------------------

RULES: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
    {"momentum": 0.5, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "maximize": True},
    {"weight_decay": 0.1, "maximize": True},
    {"momentum": 0.9, "weight_decay": torch.tensor(0.01)},
    {"momentum": 0.9, "lr": torch.tensor(0.1)},
    {"momentum": 0.9, "foreach": True},
    {"momentum": 0.9, "fused": True},
]


def odd_gradients(params: list[nn.Parameter], t: int) -> list[torch.Tensor | None]:
    """None at some steps, turned, negated by a flag: what torch takes."""
    generator = torch.Generator().manual_seed(t)
    grads: list[torch.Tensor | None] = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in params]
    grads[3] = None if t in (0, 2) else grads[3]
    grads[-1] = torch.randn(params[-1].shape[::-1], generator=generator).to(params[-1].dtype).t()
    grads[-2] = torch._neg_view(grads[-2])
    return grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rule", RULES)
def test_dense_parameters_are_stepped_to_the_bit_as_torch_does(rule: dict[str, Any], dtype: torch.dtype) -> None:
    if "fused" in rule and dtype is torch.bfloat16:
        pytest.skip("torch's own fused step computes wrong momenta there")
    torch.manual_seed(0)
    sizes = [*range(1, 35), 48, 64, 100, 4096, 5000]
    values = [*(torch.randn(n) for n in sizes), torch.randn(4, 8).expand(2, 4, 8)[0, ::2], torch.randn(64), torch.randn(8, 16)]
    ours, theirs = ([nn.Parameter(v.to(dtype)) for v in copy.deepcopy(values)] for _ in range(2))
    keeper = nn.Linear(8, 8)
    sparse = dstee.sparsify(keeper, 0.5)
    optimizer = dstee.SparseSGD([*keeper.parameters(), *ours], sparse, **{"lr": 0.1, **rule})
    expected = torch.optim.SGD(theirs, **{"lr": 0.1, **rule})
    for t in range(5):
        if rule.get("foreach") or rule.get("fused"):
            grads = [torch.randn(p.shape).to(dtype) for p in ours]
        else:
            grads = odd_gradients(ours, t)
        for a, b, g in zip(ours, theirs, grads, strict=True):
            a.grad, b.grad = g, None if g is None else g.clone()
        optimizer.step()
        expected.step()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(*(o.state[p].get("momentum_buffer", a.new_zeros(0)) for o, p in ((optimizer, a), (expected, b))))
            assert a.grad is None or torch.equal(a.grad, b.grad)


def test_sparse_gradients_of_dense_parameters_are_torchs_business() -> None:
    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(16, 4, sparse=True), nn.Linear(4, 4))
        sparse = dstee.sparsify(model, 0.5)
        everything = list(model.parameters())
        optimizer = dstee.SparseSGD(everything, sparse, lr=0.1) if ours else torch.optim.SGD(everything[:1], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model[0](torch.tensor([1, 2, 2])).square().sum().backward()
            optimizer.step()
        results.append(model[0].weight.detach())
    assert torch.equal(*results)
