"""Small whole models for the view of a training step: name -> (model, batch, loss)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Job", "make_job", "mlp", "resnet50", "vgg19"]


@dataclass
class Job:
    """``inputs`` and ``target`` are fixed random data: what is timed does not depend on them."""

    model: nn.Module
    inputs: Tensor
    target: Tensor

    def loss(self) -> Tensor:
        return F.cross_entropy(self.model(self.inputs), self.target)


def vgg19(classes: int = 100) -> nn.Module:
    """VGG-19 with batch normalisation for 32 x 32 images: 16 convolutions, one linear layer."""
    layers: list[nn.Module] = []
    wide = 3
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            layers += [nn.Conv2d(wide, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            wide = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, classes))


class Bottleneck(nn.Module):
    def __init__(self, wide: int, narrow: int, stride: int) -> None:
        super().__init__()
        out = 4 * narrow
        self.body = nn.Sequential(
            nn.Conv2d(wide, narrow, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True),
            nn.Conv2d(narrow, narrow, 3, stride, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True),
            nn.Conv2d(narrow, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        short = [nn.Conv2d(wide, out, 1, stride, bias=False), nn.BatchNorm2d(out)]
        self.short = nn.Sequential(*short) if stride != 1 or wide != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.short(x))


def resnet50(classes: int = 100) -> nn.Module:
    """ResNet-50 with the 3 x 3 first convolution that 32 x 32 images get."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    wide = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            layers.append(Bottleneck(wide, 64 << stage, 2 if block == 0 and stage > 0 else 1))
            wide = 256 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, classes))


def mlp() -> nn.Module:
    """Four wide linear layers: most of its step is memory traffic of weights."""
    return nn.Sequential(
        nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)
    )


class GNN(nn.Module):
    """Two graph convolutions: a linear layer each, then the product with a sparse adjacency."""

    def __init__(self, adjacency: Tensor, features: int = 1433, hidden: int = 256, classes: int = 7) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.first = nn.Linear(features, hidden)
        self.second = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(torch.sparse.mm(self.adjacency, self.first(x)))
        return torch.sparse.mm(self.adjacency, self.second(hidden))


def random_graph(nodes: int, edges: int) -> Tensor:
    """Adjacency with self-loops, each entry 1/sqrt(degree * degree), as a COO matrix."""
    ends = torch.randint(nodes, (2, edges))
    index = torch.cat([ends, ends.flip(0), torch.arange(nodes).repeat(2, 1)], 1)
    degree = torch.bincount(index[0], minlength=nodes).float()
    values = (degree[index[0]] * degree[index[1]]).rsqrt()
    with torch.sparse.check_sparse_tensor_invariants(True):
        return torch.sparse_coo_tensor(index, values, (nodes, nodes)).coalesce()


def make_job(name: str, batch: int, device: str = "cpu") -> Job:
    """The same model and data at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "gnn":
            job = Job(GNN(random_graph(2708, 5278)), torch.rand(2708, 1433), torch.randint(7, (2708,)))
        elif name == "mlp":
            job = Job(mlp(), torch.randn(batch, 784), torch.randint(10, (batch,)))
        else:
            made: dict[str, Callable[[], nn.Module]] = {"vgg19": vgg19, "resnet50": resnet50}
            job = Job(made[name](), torch.randn(batch, 3, 32, 32), torch.randint(100, (batch,)))
    return Job(job.model.to(device), job.inputs.to(device), job.target.to(device))
