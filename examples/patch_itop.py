"""A script for another library, one line longer: halfway its live object begins to compute on dstee's kernels.

``python examples/patch_itop.py`` takes ITOP's ``Masking`` (its sources on PYTHONPATH, and a GPU), ``--library rigl-torch`` its
``RigLScheduler``. Masks, optimizer, counters and checkpoints stay the library's own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dstee import compat

STEPS, EVERY, DENSITY = 390, 20, 0.1
Step = Callable[[], object]


def itop(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[object, Step]:
    """The live object, and what the script calls instead of ``optimizer.step()``."""
    from sparselearning.core import CosineDecay, Masking

    args = argparse.Namespace(fix=False, update_frequency=EVERY)
    decay = CosineDecay(0.5, STEPS)
    masking = Masking(
        optimizer, death_rate=0.5, death_rate_decay=decay, growth_mode="gradient", redistribution_mode="none", args=args
    )
    masking.add_module(model, sparse_init="ERK", density=DENSITY)
    return masking, masking.step


def rigl_torch(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[object, Step]:
    from rigl_torch.RigL import RigLScheduler

    pruner = RigLScheduler(model, optimizer, dense_allocation=DENSITY, T_end=STEPS + 1, delta=EVERY, ignore_linear_layers=False)
    return pruner, lambda: optimizer.step() if pruner() else None


LIBRARIES = {
    "itop": (itop, "git clone https://github.com/Shiweiliuiiiiiii/In-Time-Over-Parameterization, then PYTHONPATH=that folder"),
    "rigl-torch": (rigl_torch, "pip install rigl-torch, and a torchvision that fits this torch"),
}


def digits(rows: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ten patterns of 8 x 8 pixels under noise, and which of them each row is."""
    patterns = torch.rand(10, 64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (rows,), generator=generator)
    return (patterns[labels] + 0.5 * torch.randn(rows, 64, generator=generator)).to(device), labels.to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description="Another library's script on dstee's kernels.")
    parser.add_argument("--library", choices=LIBRARIES, default="itop")
    attach, install = LIBRARIES[parser.parse_args().library]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    try:
        live, step = attach(model, optimizer)
    except ImportError as error:
        sys.exit(f"{error}: {install}")

    x, y = digits(2048, 1, device)
    x_test, y_test = digits(512, 2, device)
    took: dict[str, list[float]] = {"its own code": [], "dstee's kernels": []}
    for t in range(1, STEPS + 1):
        if t == STEPS // 2:
            compat.patch(live)  # the one line; compat.unpatch(live) takes it back
        rows = slice(64 * t % 2048, 64 * t % 2048 + 64)
        optimizer.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if t % EVERY == 0:
            took["its own code" if t < STEPS // 2 else "dstee's kernels"].append(1000 * (time.perf_counter() - begin))
    for name, times in took.items():
        print(f"a step with a mask update by {name}: {sorted(times)[len(times) // 2]:.2f} ms, {len(times)} of them")
    accuracy = float((model(x_test).argmax(1) == y_test).float().mean())
    print(
        f"test accuracy {accuracy:.1%}, {sum(int(w.count_nonzero()) for w in model.parameters() if w.ndim > 1)} weights active"
    )


if __name__ == "__main__":
    main()
