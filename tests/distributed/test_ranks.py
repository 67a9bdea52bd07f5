"""What ranks agree on: by two processes, and by one alone."""

from __future__ import annotations

import torch
from support.processes import Launcher
from torch import Tensor

from dstee.distributed import ranks

CPU = torch.device("cpu")


def values(rank: int) -> list[Tensor]:
    """One contiguous tensor, one in another memory order."""
    generator = torch.Generator().manual_seed(rank)
    return [
        torch.randn(5, generator=generator),
        torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last),
    ]


def agree(rank: int) -> list[Tensor]:
    torch.manual_seed(rank)
    given = values(rank)
    in_place = [given[0].clone()]
    ranks.mean_(in_place)
    found = [*ranks.mean(given), *in_place, *(ranks.broadcast(t) for t in given)]
    unchanged = all(torch.equal(a, b) for a, b in zip(given, values(rank), strict=True))
    seeds = torch.tensor([ranks.shared_seed(CPU), ranks.shared_seed(CPU, -(2**63), 2**63 - 1)])
    return [*found, seeds, torch.tensor(unchanged)]


def test_two_ranks_agree(launcher: Launcher) -> None:
    first, second = launcher.run(2, agree)
    assert len(first) == len(second) == 7 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    vector, image, in_place, sent_vector, sent_image, seeds, unchanged = first
    for mean, a, b in zip((vector, image), values(0), values(1), strict=True):
        assert torch.equal(mean, (a + b) / 2)
    assert torch.equal(in_place, vector) and unchanged
    assert all(torch.equal(a, b) for a, b in zip((sent_vector, sent_image), values(0), strict=True))
    torch.manual_seed(0)  # the first rank's
    assert seeds.tolist() == [int(torch.randint(0, 2**62, ())), int(torch.randint(-(2**63), 2**63 - 1, ()))]


def test_one_rank_sends_nothing() -> None:
    given = values(0)
    assert all(a is b for a, b in zip(ranks.mean(given), given, strict=True)) and ranks.broadcast(given[0]) is given[0]
    ranks.mean_(given)
    assert all(torch.equal(a, b) for a, b in zip(given, values(0), strict=True))
    torch.manual_seed(3)
    seed = ranks.shared_seed(CPU)
    torch.manual_seed(3)
    assert seed == ranks.shared_seed(CPU) and 0 <= seed < 2**62
