"""One small model with awkward sizes, laid over ranks in every way that people do, and what of it each rank holds.

Where a rank's values lie in the whole is not computed here: a second model whose weights are their own row-major indices is
laid out the same way, and torch says by its values what went where.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "LAYOUTS", "Layout", "Odd", "assemble", "gradient", "held", "inputs", "local", "named", "places", "replay", "reshard",
    "set_gradient",
]  # fmt: skip


class Shift(nn.Module):
    """A layer that has nothing but a bias."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Odd(nn.Module):
    """Weights [5, 2, 3, 3], 7x5 (tied to another), 8x7 (frozen), 13x8, 16x13, 33x16, 1x33 and 5x1: on two ranks and more,
    shards are uneven and some are empty. ``fourth`` is full of ties."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(2, 5, 3)
        self.first = nn.Linear(5, 7)
        self.frozen = nn.Linear(7, 8).requires_grad_(False)
        self.second = nn.Linear(8, 13)
        self.third = nn.Linear(13, 16)
        self.fourth = nn.Linear(16, 33)
        self.row = nn.Linear(33, 1)
        self.column = nn.Linear(1, 5)
        self.tied = nn.Linear(5, 7)
        self.tie()
        self.shift = Shift(7)
        with torch.no_grad():
            self.fourth.weight.mul_(8).round_().div_(8)

    def tie(self) -> None:
        """Torch's tensor parallelism unties what is tied."""
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(1)
        for layer in (self.first, self.frozen, self.second, self.third, self.fourth, self.row, self.column, self.tied):
            x = layer(x).tanh()
        return self.shift(x)


def inputs() -> Tensor:
    return torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(5))


# --- layouts ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """``lay(model, n)``: the model over ``n`` ranks, which may be one of ``ranks``; changed in place or wrapped."""

    name: str
    ranks: tuple[int, ...]
    lay: Callable[[Odd, int], nn.Module]

    def __str__(self) -> str:
        return self.name


def _flat(reshard_after_forward: bool = True, **options: object) -> Callable[[Odd, int], nn.Module]:
    def lay(model: Odd, n: int) -> nn.Module:
        mesh = init_device_mesh("cpu", (n,))
        return fully_shard(model, mesh=mesh, reshard_after_forward=reshard_after_forward, **options)  # type: ignore[arg-type]

    return lay


def _nested(model: Odd, n: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (n,))
    for layer in (model.conv, model.second, model.third, model.fourth, model.row):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _hsdp(model: Odd, n: int) -> nn.Module:
    return fully_shard(model, mesh=init_device_mesh("cpu", (2, n // 2), mesh_dim_names=("replicate", "shard")))


def _columns() -> ColwiseParallel:
    return ColwiseParallel(output_layouts=Replicate())


def _rows() -> RowwiseParallel:
    return RowwiseParallel(input_layouts=Replicate())


LINEAR = ("first", "frozen", "second", "third", "fourth", "tied", "row")


def _tensor_parallel(style: Callable[[], ColwiseParallel | RowwiseParallel]) -> Callable[[Odd, int], nn.Module]:
    def lay(model: Odd, n: int) -> nn.Module:
        parallelize_module(model, init_device_mesh("cpu", (n,)), {name: style() for name in LINEAR})
        model.tie()
        return model

    return lay


def _sharded_tensor_parallel(rows: Sequence[str]) -> Callable[[Odd, int], nn.Module]:
    """FSDP2 over tensor parallelism, both of which cut the rows of the layers ``rows``."""

    def lay(model: Odd, n: int) -> nn.Module:
        mesh = init_device_mesh("cpu", (n // 2, 2), mesh_dim_names=("data", "tensor"))
        plan = {name: _columns() if name in rows else _rows() for name in LINEAR}
        parallelize_module(model, mesh["tensor"], plan)
        model.tie()
        return fully_shard(model, mesh=mesh["data"])

    return lay


_ALL = (
    Layout("copies", (2,), lambda model, n: model),
    Layout("ddp", (2, 3), lambda model, n: DistributedDataParallel(model)),
    Layout("fsdp", (2, 3, 4, 8), _flat()),
    Layout("fsdp-kept", (2,), _flat(reshard_after_forward=False)),
    Layout("fsdp-nested", (2, 3, 4), _nested),
    Layout("fsdp-bf16", (2,), _flat(mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))),
    Layout("fsdp-offload", (2,), _flat(offload_policy=CPUOffloadPolicy(pin_memory=False))),
    Layout("hsdp", (4, 8), _hsdp),
    Layout("tp-columns", (2, 3, 4), _tensor_parallel(_columns)),
    Layout("tp-rows", (2, 3), _tensor_parallel(_rows)),
    Layout("fsdp-tp", (4, 8), _sharded_tensor_parallel(("third", "frozen"))),
    Layout("fsdp-tp-uneven", (4,), _sharded_tensor_parallel(LINEAR[:-1])),
)
LAYOUTS = {layout.name: layout for layout in _ALL}


# --- what a rank holds -----------------------------------------------------------------------------------------------------


def reshard(model: nn.Module) -> None:
    """A forward without backward leaves FSDP2's root gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the name that the model gives them, whatever wraps it; tied ones once."""
    return {name.removeprefix("module."): p for name, p in model.named_parameters()}


def local(t: Tensor) -> Tensor:
    """A rank's values, 1-D in row-major order: a copy."""
    return (t._local_tensor if isinstance(t, DTensor) else t).detach().clone(memory_format=torch.contiguous_format).view(-1)


def places(layout: Layout, n: int) -> dict[str, Tensor]:
    """The row-major indices, int64, of a rank's values of each parameter, in their order."""
    model = Odd()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.arange(p.numel()).view_as(p))
    return {name: local(p).long() for name, p in named(layout.lay(model, n)).items()}


def held(model: nn.Module) -> dict[str, Tensor]:
    """As :func:`places`, of a model that one process holds whole."""
    return {name: torch.arange(p.numel()) for name, p in named(model).items()}


def gradient(name: str, shape: Sequence[int], step: int) -> Tensor:
    """A whole parameter's gradient at a step, the same in every process; whole numbers for ``fourth``."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {step}".encode()))
    grad = torch.randn(tuple(shape), generator=generator)
    return grad.round() if name.startswith("fourth") else grad


def set_gradient(p: nn.Parameter, whole: Tensor, index: Tensor) -> None:
    """What this rank holds of a gradient, given as the parameter is. ``index``: of :func:`places`."""
    mine = whole.reshape(-1)[index].to(p.dtype)
    if not isinstance(p, DTensor):
        p.grad = mine.view(p.shape)
        return
    mine = mine.view(p._local_tensor.shape)
    p.grad = DTensor.from_local(mine, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def replay(model: nn.Module, where: Mapping[str, Tensor], step: int) -> None:
    """Replaces all gradients by those of ``step``."""
    for name, p in named(model).items():
        if p.requires_grad:
            set_gradient(p, gradient(name, p.shape, step), where[name])


def assemble(parts: Sequence[Mapping[str, Tensor]], where: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors, 1-D, from what the ranks hold of them, by name: the last word of a key is the parameter's.

    Raises:
        AssertionError: ranks that hold the same element differ in it, or nobody holds an element.
    """
    found = {}
    for key in parts[0]:
        name = key.split()[-1]
        total = 1 + max(int(of_rank[name].max()) for of_rank in where if of_rank[name].numel())
        whole, seen = torch.zeros(total, dtype=parts[0][key].dtype), torch.zeros(total, dtype=torch.bool)
        for rank, (mine, of_rank) in enumerate(zip(parts, where, strict=True)):
            index = of_rank[name]
            assert mine[key].shape == index.shape, f"rank {rank} holds {mine[key].numel()} values of {key}, not {index.numel()}"
            again = seen[index]
            assert torch.equal(whole[index][again], mine[key][again]), f"rank {rank} has another copy of {key}"
            whole[index], seen[index] = mine[key], True
        assert seen.all(), f"no rank holds {int((~seen).sum())} values of {key}"
        found[key] = whole
    return found
