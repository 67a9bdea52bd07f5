"""Two processes that see different halves of the data agree on the masks, by the mean of their gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

RANK = """
import sys, torch
from torch import nn
import dstee
from dstee.compat import sparsimony
from dstee.compat.torch_ao import DSTEESparsifier
from dstee.distributed import ranks

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 8))
sparsifier = DSTEESparsifier(0.75, "rigl", dstee.UpdateSchedule(every=1))
sparsifier.prepare(model)
x = torch.randint(-9, 9, (2, 8, 16), generator=torch.Generator().manual_seed(1)).float()
weight = torch.arange(1.0, 9.0)
(model(x[rank]) * weight).sum().backward()
sparsifier.step()
torch.manual_seed(rank)
mask = torch.zeros(8, 16)
grown = sparsimony.UnstructuredGradientGrower.calculate_mask(0.75, mask, x[rank])
drawn = sparsimony.UnstructuredRandomGrower.calculate_mask(0.75, mask)
averaged = ranks.mean([x[rank]])[0]
torch.save([model[0].parametrizations.weight[0].mask, grown, drawn, averaged], f"{folder}/{rank}")
torch.distributed.destroy_process_group()
"""


def test_two_processes_agree(tmp_path):
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RANK]
    ranks = [subprocess.Popen([*command, str(r), str(tmp_path)], env=environment, cwd=root) for r in range(2)]
    assert [p.wait(120) for p in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / str(r), weights_only=True) for r in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    x = torch.randint(-9, 9, (2, 8, 16), generator=torch.Generator().manual_seed(1)).float()
    mean = x.sum(0).div(2).abs().view(-1)
    order = torch.sort(mean, descending=True, stable=True).indices
    assert sorted(order[:32].tolist()) == first[1].view(-1).nonzero().view(-1).tolist()
    assert torch.equal(first[3], x.mean(0)) and int(first[0].sum()) == 32 and int(first[2].sum()) == 32
    magnitudes = x.abs().sum(0).view(-1)  # what sparsimony ranks: another choice
    assert sorted(torch.sort(magnitudes, descending=True, stable=True).indices[:32].tolist()) != sorted(order[:32].tolist())
