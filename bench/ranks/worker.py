"""One rank: ``python -m bench.ranks.worker FOLDER RANK RANKS`` reads FOLDER/task.json, and writes a line for each update.

Weights and gradients are random by layer and step alone, so that any number of ranks trains the same model.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import dstee
from dstee.distributed.state import fingerprint
from dstee.distributed.where import local_part

from ..layers import DTYPES
from ..shapes import Shape
from .cases import METHODS, Task
from .traffic import watched

__all__ = ["updates"]

BLOCKS = 8  # of rows in which a layer's values are made, so that a rank need not make all
SWAP = 0.3  # of the active weights, as the schedule's default


class Values:
    """This rank's part of each layer's weights and gradients: rows as ``Shard(0)`` deals them; all of them without a mesh."""

    def __init__(self, dtype: torch.dtype, mesh: DeviceMesh | None) -> None:
        self.dtype = dtype
        self.mesh = mesh

    def make(self, name: str, shape: Shape, step: int, scale: float) -> Tensor:
        first, last = 0, shape[0]
        if self.mesh is not None:
            each = -(-shape[0] // self.mesh.size())
            first = min(self.mesh.get_local_rank() * each, shape[0])
            last = min(first + each, shape[0])
        part = torch.empty(last - first, *shape[1:])
        rows = -(-shape[0] // BLOCKS)
        for start in range(first // rows * rows, last, rows):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {step} {start}".encode()))
            block = torch.randn(min(rows, shape[0] - start), *shape[1:], generator=generator)
            from_, to = max(start, first), min(start + rows, last)
            part[from_ - first : to - first] = block[from_ - start : to - start]
        part = part.mul_(scale).to(self.dtype)
        if self.mesh is None:
            return part
        whole = torch.Size(shape)
        stride = torch.empty(whole, device="meta").stride()
        return DTensor.from_local(part, self.mesh, [Shard(0)], run_check=False, shape=whole, stride=stride)


def model_of(layers: list[tuple[str, Shape]], values: Values) -> nn.Module:
    """Modules without a forward that hold the weights under their names."""
    root = nn.Module()
    for name, shape in layers:
        parent = root
        *path, last = name.split(".")
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        module: nn.Module
        if len(shape) == 2:
            module = nn.Linear(shape[1], shape[0], bias=False, device="meta")
        else:
            module = nn.Conv2d(shape[1], shape[0], shape[2], bias=False, device="meta")
        module.weight = nn.Parameter(values.make(f"{name}.weight", shape, 0, 0.05))
        parent.add_module(last, module)
    return root


def updates(task: Task, method: str, mesh: DeviceMesh | None) -> Iterator[dict[str, Any]]:
    """Trains with an update at every step; of those after the warm-up what was sent and how long the step took, with
    the last its fingerprints."""
    values = Values(DTYPES[task["dtype"]], mesh)
    layers = [(name, tuple(shape)) for name, shape in task["layers"]]
    model = model_of(layers, values)
    last = task["warmup"] + task["updates"]
    schedule = dstee.UpdateSchedule(1, last + 1, dstee.ConstantDrop(SWAP))
    sparse = dstee.sparsify(
        model, 1 - task["density"], distribution="uniform", method=METHODS[method](), schedule=schedule, seed=0
    )
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    for step in range(1, last + 1):
        for name, layer in sparse.layers.items():
            layer.param.grad = values.make(name, tuple(layer.shape), step, 1e-3)
        if mesh is not None:
            dist.barrier()
        start = time.perf_counter()
        with watched() as traffic:
            sparse.step(optimizer)
        seconds = time.perf_counter() - start
        if step > task["warmup"]:
            sent = traffic.to_dict(len(layers))
            yield {
                "method": method,
                "seconds": seconds,
                "active": sparse.nnz,
                "prints": _prints(sparse) if step == last else [],
                **sent,
            }


def _prints(sparse: dstee.SparseModel) -> list[int]:
    """Fingerprints of this rank's masks and weights; those of all ranks add up to that of the whole."""
    found = []
    for layer in sparse.layers.values():
        for values in (layer.active(), local_part(layer.param)):
            found.append(fingerprint(values.detach().reshape(-1), layer.where))
    return found


def main() -> None:
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    task: Task = json.loads((folder / "task.json").read_text())
    torch.set_num_threads(task["threads"])
    mesh = None
    if ranks > 1:
        limit = timedelta(seconds=task["timeout"])
        dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=ranks, timeout=limit)
        mesh = init_device_mesh("cpu", (ranks,))
    with open(folder / f"{rank}.jsonl", "w", buffering=1) as out:
        for method in task["methods"]:
            for found in updates(task, method, mesh):
                out.write(json.dumps(found) + "\n")
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # torch's threads may outlive the group


if __name__ == "__main__":
    main()
