"""Two processes that see different halves of the data agree on the masks, by the mean of their gradients."""

from __future__ import annotations

import pytest
import torch
from support.processes import Launcher
from torch import Tensor, nn

import dstee
from dstee.compat import sparsimony
from dstee.compat.torch_ao import DSTEESparsifier
from dstee.distributed import ranks


def inputs() -> Tensor:
    return torch.randint(-9, 9, (2, 8, 16), generator=torch.Generator().manual_seed(1)).float()


def masks(rank: int) -> list[Tensor]:
    """What the rank ends with: a sparsifier's mask, a grower's by gradients, one at random, and the mean of the data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    sparsifier = DSTEESparsifier(0.75, "rigl", dstee.UpdateSchedule(every=1))
    sparsifier.prepare(model)
    x = inputs()
    (model(x[rank]) * torch.arange(1.0, 9.0)).sum().backward()
    sparsifier.step()
    torch.manual_seed(rank)
    mask = torch.zeros(8, 16)
    grown = sparsimony.UnstructuredGradientGrower.calculate_mask(0.75, mask, x[rank])
    drawn = sparsimony.UnstructuredRandomGrower.calculate_mask(0.75, mask)
    return [model[0].parametrizations.weight[0].mask, grown, drawn, ranks.mean([x[rank]])[0]]


@pytest.mark.long
def test_two_processes_agree(launcher: Launcher) -> None:
    first, second = launcher.run(2, masks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    x = inputs()
    mean = x.sum(0).div(2).abs().view(-1)
    order = torch.sort(mean, descending=True, stable=True).indices
    assert sorted(order[:32].tolist()) == first[1].view(-1).nonzero().view(-1).tolist()
    assert torch.equal(first[3], x.mean(0)) and int(first[0].sum()) == 32 and int(first[2].sum()) == 32
    magnitudes = x.abs().sum(0).view(-1)  # what sparsimony ranks: another choice
    assert sorted(torch.sort(magnitudes, descending=True, stable=True).indices[:32].tolist()) != sorted(order[:32].tolist())
