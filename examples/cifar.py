"""CIFAR-10 with a ResNet-20 that keeps a tenth of its weights: mixed precision, augmentation, checkpoints, resuming.

``python examples/cifar.py --data-dir DIR --out runs/cifar`` where DIR holds CIFAR-10's archive, for Python or binary;
``--data digits`` takes scikit-learn's digits, which are small. ``--resume`` goes on after the last epoch, to the last bit as if
it had not been interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import dstee
from dstee.experiments.data import load
from dstee.experiments.models import resnet20


def save(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all: a kill, or a full disk, leaves the last checkpoint as it was."""
    unfinished = path.with_suffix(".unfinished")
    with open(unfinished, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sparse training of a ResNet-20.")
    parser.add_argument("--data", default="cifar10", help="or cifar100, mnist, digits; your own as package.module:load")
    parser.add_argument("--data-dir", help="the folder with its files")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--out", type=Path, help="a folder for the checkpoint")
    parser.add_argument("--resume", action="store_true", help="from the checkpoint in --out")
    args = parser.parse_args()
    checkpoint = args.out / "checkpoint.pt" if args.out else None
    if (checkpoint is not None and checkpoint.exists()) != args.resume:
        parser.error(f"--resume is for an --out with a checkpoint.pt, and needed there: {checkpoint}")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    data = load(args.data, args.data_dir).to(device)
    per_epoch = data.size("train") // args.batch_size
    steps = args.epochs * per_epoch

    torch.manual_seed(0)
    model = resnet20(data.shape, data.classes).to(device)
    schedule = dstee.UpdateSchedule(every=max(1, per_epoch // 4), stop=3 * steps // 4)
    sparse = dstee.sparsify(model, args.sparsity, schedule=schedule)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=args.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler, "sparse": sparse}  # all that must be kept
    first = 0
    if args.resume:
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first = saved["epoch"]

    for epoch in range(first + 1, args.epochs + 1):
        model.train()
        order = torch.randperm(data.size("train"), generator=torch.Generator().manual_seed(epoch))
        losses = []
        for i in range(per_epoch):
            step = (epoch - 1) * per_epoch + i
            x, y = data.fetch(order[i * args.batch_size : (i + 1) * args.batch_size], noise=step)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            with torch.autocast(device.type, half):
                loss = cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            sparse.step(optimizer, scaler=scaler)  # an overflow changes nothing: no weight, no mask, no schedule
            scaler.update()
            losses.append(loss.detach())
        model.eval()
        with torch.no_grad():
            hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.batches_of("test", 1000))
        print(
            f"epoch {epoch}: loss {torch.stack(losses).mean():.4f}, accuracy {hits / data.size('test'):.1%}, "
            f"{sparse.nnz} of {sparse.numel} weights active after {sparse.round} updates",
            flush=True,
        )
        if checkpoint is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            save(checkpoint, {name: part.state_dict() for name, part in parts.items()} | {"epoch": epoch})


if __name__ == "__main__":
    main()
