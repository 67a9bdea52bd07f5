"""How a weight is cut among ranks: its placements, where this rank's part lies, and who holds the others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dstee.distributed import ranks, where
from dstee.distributed.ranks import Ranks
from dstee.distributed.where import Where

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

__all__ = ["Sharding", "check_sizes", "everyone_of", "holders_of", "reshard", "sharding_of"]


@dataclass(frozen=True)
class Sharding:
    """Of one weight: ``shape`` and ``stride`` of the whole, ``local_shape`` and ``where`` of this rank's part.

    ``holders``: the ranks whose parts make up the whole, replicas left out; ``everyone``: all of its mesh.
    """

    mesh: DeviceMesh
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]
    local_shape: torch.Size
    where: Where
    holders: Ranks
    everyone: Ranks

    def fits(self, t: DTensor) -> bool:
        """Whether ``t``, a weight, a gradient or state of it, is cut as the weight is."""
        return t.device_mesh == self.mesh and tuple(t.placements) == self.placements and t.shape == self.shape

    def place(self, values: Tensor) -> DTensor:
        """``values``, this rank's part of something like the weight, as a DTensor placed as the weight is."""
        from torch.distributed.tensor import DTensor

        local = values.reshape(self.local_shape).contiguous()
        return DTensor.from_local(local, self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride)

    def cut(self, whole: Tensor) -> Tensor:
        """This rank's part of a plain tensor of the whole shape, in any memory order: a contiguous copy."""
        return self.where.cut(whole.detach().contiguous().view(-1)).reshape(self.local_shape).clone()

    def part_of(self, t: Tensor, what: str) -> Tensor:
        """What this rank holds of ``t``: a DTensor placed as the weight is, or a plain tensor of the whole shape, which is cut.

        Raises:
            ValueError: it is neither; ``what`` names it.
        """
        d = where.as_dtensor(t)
        if d is None and t.shape == self.shape:
            return self.cut(t)
        if d is not None and self.fits(d):
            return d._local_tensor
        got = f"{list(t.shape)}" if d is None else f"{list(t.shape)} placed {tuple(d.placements)} on {d.device_mesh}"
        raise ValueError(
            f"{what} is {got}, expected {list(self.shape)} placed {self.placements} on {self.mesh}, as the weight is: load "
            "what was saved elsewhere with torch.distributed.checkpoint"
        )

    def part_of_gradient(self, name: str, g: Tensor) -> Tensor:
        """What this rank holds of the gradient ``g``, which is placed as the weight first where it is not."""
        d = where.as_dtensor(g)
        if d is not None and not self.fits(d) and d.shape == self.shape and d.device_mesh == self.mesh:
            if any(p.is_partial() for p in d.placements):
                raise ValueError(f"the gradient of {name} has placements {d.placements}: it is not added up yet")
            d = g = d.redistribute(placements=self.placements)
        return self.part_of(g, f"the gradient of {name}")


def sharding_of(p: Tensor) -> Sharding | None:
    """How the weight ``p`` is cut; None for a plain tensor.

    Raises:
        ValueError: in a way that is not supported; the text goes behind the name of the parameter.
    """
    d = where.as_dtensor(p)
    if d is None:
        return None
    local = d._local_tensor
    row_major = torch.empty(d.shape, device="meta").stride()
    if tuple(d.stride()) != row_major or not local.is_contiguous():
        raise ValueError(f"has strides {tuple(d.stride())}, its shard {local.stride()}: sharded weights must be contiguous")
    lies = where.of_dtensor(d)
    return Sharding(
        d.device_mesh,
        tuple(d.placements),
        d.shape,
        row_major,
        local.shape,
        lies,
        ranks.of_mesh(d.device_mesh, where.shard_dims(d)),
        ranks.of_mesh(d.device_mesh),
    )


def everyone_of(p: Tensor) -> Ranks | None:
    """The ranks of the mesh on which a DTensor lies; None for a plain tensor, or on a rank outside of it."""
    d = where.as_dtensor(p)
    return None if d is None or d.device_mesh.get_coordinate() is None else ranks.of_mesh(d.device_mesh)


def holders_of(sharding: Sharding | None) -> Ranks | None:
    """The ranks whose parts make up the weight; None where it is whole."""
    return None if sharding is None else sharding.holders


def check_sizes(names: Sequence[str], cuts: Sequence[Sharding | None]) -> list[str]:
    """What is wrong with parts that do not add up to their whole; one all-reduce, the same on all ranks."""
    numbers = [0 if cut is None else cut.where.n for cut in cuts]
    found = ranks.sum_each(numbers, [None if cut is None else cut.holders for cut in cuts])
    return [
        f"{name} has {cut.where.total} weights, but the shards of its ranks have {n}: the metadata is wrong"
        for name, cut, n in zip(names, cuts, found, strict=True)
        if cut is not None and n != cut.where.total
    ]


def reshard(model: nn.Module) -> None:
    """Before anything looks at parameters: has FSDP2 put its shards back where it left gathered copies, as after a forward
    without backward, which would be taken for the weights.

    Raises:
        TypeError: the model is under FSDP1, whose parameters are slices of flat ones: no layer has its own there.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not (dist.is_available() and dist.is_initialized()):
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
        elif isinstance(module, fsdp.FullyShardedDataParallel):
            raise TypeError(
                "the model is wrapped in FullyShardedDataParallel (FSDP1), which cuts flat parameters across layers: use "
                "torch.distributed.fsdp.fully_shard"
            )
