"""Sparse training of a model that is cut among processes: torch's fully_shard (FSDP2), and checkpoints for any number of them.

``torchrun --nproc-per-node 2 examples/fsdp2.py`` uses a GPU for each process where there are as many, else the CPU;
``python examples/fsdp2.py`` is one process. ``--resume`` goes on after the last epoch in ``--out``, with as many processes as
there are now.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import dstee

BATCH = 96  # of all processes together


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def join() -> torch.device:
    """Joins the processes that torchrun started, or is alone. Returns where this one computes."""
    local, processes = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    on_gpu = torch.cuda.device_count() >= processes
    backend = "nccl" if on_gpu else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if on_gpu:
        torch.cuda.set_device(local)
    return torch.device("cuda", local) if on_gpu else torch.device("cpu")


def digits(rows: int, seed: int) -> TensorDataset:
    """Ten patterns of 8 x 8 pixels under noise, and which of them each row is."""
    patterns = torch.rand(10, 64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (rows,), generator=generator)
    return TensorDataset(patterns[labels] + 0.5 * torch.randn(rows, 64, generator=generator), labels)


def part(data: TensorDataset, epoch: int | None = None) -> DataLoader[tuple[Tensor, ...]]:
    """This rank's part, shuffled anew in each epoch."""
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(data, shuffle=epoch is not None)
    sampler.set_epoch(epoch or 0)
    return DataLoader(data, BATCH // dist.get_world_size(), sampler=sampler)


def mean(values: list[Tensor]) -> float:
    """Over all ranks."""
    total = torch.stack(values).double().mean()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def states(model: nn.Module, optimizer: torch.optim.Optimizer, sparse: dstee.SparseModel) -> dict[str, Any]:
    """What a checkpoint holds."""
    of_model, of_optimizer = get_state_dict(model, optimizer)
    return {"model": of_model, "optimizer": of_optimizer, "sparse": sparse}


def save(folder: Path, state: dict[str, Any]) -> None:
    """Each rank writes its part; the folder has its name when all is there."""
    unfinished = folder.with_name("unfinished")
    if dist.get_rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
    dist.barrier()
    dcp.save(state, checkpoint_id=unfinished)
    if dist.get_rank() == 0:
        unfinished.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sparse training under fully_shard.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--out", type=Path, help="a folder for checkpoints, one after each epoch")
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint in --out")
    args = parser.parse_args()
    found = sorted(args.out.glob("epoch-*")) if args.out else []
    if bool(found) != args.resume:
        parser.error(f"{args.out} has {len(found)} checkpoints: leave --resume out where there are none, and only there")
    device = join()
    train, test = digits(1920, seed=1), digits(480, seed=2)

    # The order: build, parallelise, make sparse, and the optimizer last.
    torch.manual_seed(0)  # the same weights on all ranks: each keeps its own part of them
    model = nn.Sequential(nn.Linear(64, 96), Block(96), Block(96), nn.Linear(96, 10)).to(device)
    for module in model:
        fully_shard(module)
    fully_shard(model)
    schedule = dstee.UpdateSchedule(every=10, stop=100)
    sparse = dstee.sparsify(model, args.sparsity, method=dstee.DSTEE(c_rel=0.1), schedule=schedule)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.3, momentum=0.9)

    if args.resume:
        state = states(model, optimizer, sparse)
        dcp.load(state, checkpoint_id=found[-1])
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])

    def report(text: str) -> None:
        with torch.no_grad():
            accuracy = mean([(model(x.to(device)).argmax(1) == y.to(device)).float().mean() for x, y in part(test)])
        if dist.get_rank() == 0:
            active = f"{sparse.nnz} of {sparse.numel} weights active after {sparse.round} updates"
            print(f"{text}, accuracy {accuracy:.1%}, {active}", flush=True)

    done = sparse.t * BATCH // len(train)
    if args.resume:
        report(f"resumed after epoch {done}")
    for epoch in range(done + 1, args.epochs + 1):
        losses = []
        for x, y in part(train, epoch):
            optimizer.zero_grad()
            loss = cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            sparse.step(optimizer)  # every rank calls it: in an update they agree on each one's part
            losses.append(loss.detach())
        report(f"epoch {epoch}: loss {mean(losses):.4f}")
        if args.out:
            save(args.out / f"epoch-{epoch:04}", states(model, optimizer, sparse))
    dist.barrier()  # nobody leaves while others still talk
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
