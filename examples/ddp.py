"""Sparse training on several processes, each with the whole model: torch's DistributedDataParallel.

``torchrun --nproc-per-node 2 examples/ddp.py`` uses a GPU for each process where there are as many, else the CPU;
``python examples/ddp.py`` is one process. Masks need no word of yours: all ranks see the same mean gradients, and choose alike.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import dstee

BATCH = 96  # of all processes together


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Sparse training under DistributedDataParallel.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--checkpoint", type=Path, help="a file, written after each epoch and resumed from where it exists")
    args = parser.parse_args()
    device = join()
    train, test = digits(1920, seed=1), digits(480, seed=2)

    # The order: build, parallelise, make sparse, and the optimizer last.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
    ddp = DistributedDataParallel(model)
    schedule = dstee.UpdateSchedule(every=10, stop=100)
    sparse = dstee.sparsify(ddp, args.sparsity, method=dstee.DSTEE(c_rel=0.1), schedule=schedule)
    optimizer = dstee.SparseSGD(ddp.parameters(), sparse, lr=0.3, momentum=0.9)

    first = 0
    if args.checkpoint and args.checkpoint.exists():
        saved = torch.load(args.checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        sparse.load_state_dict(saved["sparse"])
        first = saved["epoch"]

    for epoch in range(first + 1, args.epochs + 1):
        losses = []
        for x, y in part(train, epoch):
            optimizer.zero_grad()
            loss = cross_entropy(ddp(x.to(device)), y.to(device))
            loss.backward()
            sparse.step(optimizer)  # every rank calls it; an update sends nothing, since all have the same gradients
            losses.append(loss.detach())
        with torch.no_grad():
            hits = [(model(x.to(device)).argmax(1) == y.to(device)).float().mean() for x, y in part(test)]
        loss_of_all, accuracy = mean(losses), mean(hits)
        if dist.get_rank() > 0:
            continue
        print(
            f"epoch {epoch}: loss {loss_of_all:.4f}, accuracy {accuracy:.1%}, "
            f"{sparse.nnz} of {sparse.numel} weights active after {sparse.round} updates",
            flush=True,
        )
        if args.checkpoint:  # one rank's is everybody's
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "sparse": sparse.state_dict(full=True)}
            unfinished = args.checkpoint.with_suffix(".unfinished")
            torch.save(states | {"epoch": epoch}, unfinished)
            os.replace(unfinished, args.checkpoint)
    dist.barrier()  # nobody leaves while others still talk
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
