"""Tries an installed dstee, outside the checkout, with torch and numpy alone; package_check.py runs it.

Argument: the folder that all of dstee must come from.
"""

from __future__ import annotations

import importlib.resources
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import dstee

FILES = ("py.typed", "bench/report.html.j2", "bench/cuda_counts.json", "experiments/reproduce/protocols/table1-lite.toml")
STEPS = 60


def train(backend: str) -> tuple[list[float], list[torch.Tensor], int]:
    """Losses, weights and the number of updates of a small training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    schedule = dstee.UpdateSchedule(every=10, stop=STEPS, drop=dstee.CosineDrop(0.3))
    sparse = dstee.sparsify(model, sparsity=0.9, method=dstee.DSTEE(), schedule=schedule, seed=0)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    x = torch.randn(256, 64)
    y = x[:, :10].argmax(1)
    losses, updates = [], 0
    active = sum(int(mask.sum()) for mask in sparse.masks().values())
    with dstee.use_backend(backend):
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            updates += bool(sparse.step(optimizer))
            losses.append(float(loss))
    assert active == sum(int(mask.sum()) for mask in sparse.masks().values()), "the number of active weights changed"
    return losses, [p.detach() for p in model.parameters()], updates


def command(*arguments: str) -> str:
    isolated = ["-I"] if sys.flags.isolated else []
    command = [sys.executable, *isolated, "-m", "dstee", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main(folder: Path) -> None:
    missing = [name for name in FILES if not importlib.resources.files(dstee).joinpath(name).is_file()]
    assert not missing, f"not installed: {missing}"
    told = command("info")
    assert any(line.split()[:4] == ["native", "cpu", "can", "run"] for line in told.splitlines()), told
    command("bench", "--help")
    losses, weights, updates = train("native")
    other_losses, other_weights, _ = train("reference")
    assert losses == other_losses, "the kernels and the reference differ"
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True)), "the kernels and the reference differ"
    assert losses[-1] < 0.7 * losses[0] and updates >= 4, (losses[0], losses[-1], updates)
    loaded = {name: Path(module.__file__) for name, module in sys.modules.items() if getattr(module, "__file__", None)}
    elsewhere = [name for name, file in loaded.items() if name.split(".")[0] == "dstee" and folder not in file.parents]
    assert "dstee._C" in loaded and not elsewhere and not {"bench", "kernels"} & loaded.keys(), elsewhere
    print(
        f"Python {sys.version.split()[0]}, torch {torch.__version__}: native runs, {updates} updates in {STEPS} steps, "
        f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, the reference's bits"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
