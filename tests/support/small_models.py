"""Small models and steps that the tests of SparseModel and SparseSGD share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import dstee

EVERY_STEP = dstee.UpdateSchedule(every=1, drop=dstee.ConstantDrop(0.4))


def mlp(seed: int = 0) -> nn.Sequential:
    """12 -> 9 -> 5, with a norm between; sparse by default: 0.weight and 3.weight."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 5))


def convnet(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(16, 3))


def set_gradients(model: nn.Module, seed: int) -> None:
    """Random dense gradients, the same for the same seed and shapes."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype).contiguous(memory_format=torch.preserve_format)


def snapshot(sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that a step may change, copied: weights, optimizer state, masks, counters, t and round."""
    found = {f"weight {name}": p.detach().clone() for name, p in sparse.model.named_parameters()}
    for name, p in sparse.model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                found[f"{key} {name}"] = value.clone()
    for name, layer in sparse.layers.items():
        found[f"mask {name}"] = sparse.mask(name).clone()
        found[f"grown {name}"] = sparse.last_grown(name).clone()
        if layer.counts is not None:
            found[f"counter {name}"] = sparse.counter(name).clone()
    return found | {"t": torch.tensor(sparse.t), "round": torch.tensor(sparse.round)}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Keys under which two snapshots do not hold equal values."""
    return sorted(key for key in a.keys() | b.keys() if key not in a or key not in b or not torch.equal(a[key], b[key]))


def assert_invariant(sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Weights and parameter-shaped state are 0 outside the masks, and every layer has as many active weights as it says."""
    for name, layer in sparse.layers.items():
        mask = sparse.mask(name)
        assert int(mask.sum()) == layer.nnz, name
        assert not layer.param.detach()[~mask].any(), name
        for key, value in (optimizer.state.get(layer.param, {}) if optimizer else {}).items():
            if isinstance(value, Tensor) and value.shape == layer.param.shape:
                assert not value[~mask].any(), (name, key)


class Experts(nn.Module):
    """A mixture of experts: one parameter for all, [experts, in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up, self.down = nn.Parameter(torch.randn(4, 6, 10)), nn.Parameter(torch.randn(4, 5, 6))
        self.gate_up_bias = nn.Parameter(torch.zeros(4, 10))

    def forward(self, x: Tensor) -> Tensor:
        gate_up, down = self.gate_up, self.down
        if getattr(self, "is_transposed", True) is False:  # transformers' word for [experts, out, in]
            gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
        gate, up = torch.bmm(x, gate_up).add(self.gate_up_bias[:, None]).chunk(2, -1)
        return torch.bmm(gate.relu() * up, down)
