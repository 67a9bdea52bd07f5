"""Timing on the CPU: medians of interleaved repeats, with the machine's copy bandwidth measured in the same run."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dstee
from dstee import _native, ops
from dstee.testing import assert_same_bits


@dataclass
class Layers:
    """The state of a sparse model: one tensor per layer in each list."""

    params: list[Tensor]
    grads: list[Tensor]
    momenta: list[Tensor]
    masks: list[Tensor]
    mask_bits: list[Tensor]
    counts: list[Tensor]
    k: list[int]

    @property
    def n(self) -> int:
        return sum(p.numel() for p in self.params)

    def clone(self) -> Layers:
        copies = [[t.clone() for t in tensors] for tensors in list(vars(self).values())[:-1]]
        return Layers(*copies, list(self.k))


def make_layers(shapes: list[tuple[int, ...]], density: float, swap: float, seed: int = 0) -> Layers:
    """Random weights and gradients of every layer at one density; k is ``swap`` of its active weights."""
    generator = torch.Generator().manual_seed(seed)
    out = Layers([], [], [], [], [], [], [])
    for shape in shapes:
        mask = torch.rand(shape, generator=generator) < density
        out.masks.append(mask)
        out.params.append(torch.randn(shape, generator=generator) * mask * 0.05)
        out.grads.append(torch.randn(shape, generator=generator) * 1e-3)
        out.momenta.append(torch.randn(shape, generator=generator) * mask * 1e-3)
        out.mask_bits.append(ops.pack_mask(mask))
        out.counts.append(ops.encode_counts(mask.int(), mask, 0))
        out.k.append(int(swap * int(mask.sum())))
    return out


def lines_touched(mask_bits: list[Tensor], shapes: list[tuple[int, ...]], item: int) -> int:
    """64-byte cache lines of a tensor of ``item``-byte elements that hold at least one position of the mask."""
    total = 0
    for bits, shape in zip(mask_bits, shapes, strict=True):
        per_line = 64 // item
        mask = ops.unpack_mask(bits, shape).view(-1)
        padded = torch.zeros(-(-mask.numel() // per_line) * per_line, dtype=torch.bool)
        padded[: mask.numel()] = mask
        total += int(padded.view(-1, per_line).any(1).sum())
    return total


def interleaved(contenders: Mapping[str, tuple[Callable[[], Any], int]]) -> dict[str, list[float]]:
    """Seconds of each call; contenders take turns, forwards and backwards, so that drift hits all alike.

    Each is (function, repeats) and is called once before timing.
    """
    for run, _ in contenders.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        turn = 0
        while any(len(samples[name]) < repeats for name, (_, repeats) in contenders.items()):
            order = list(contenders) if turn % 2 == 0 else list(reversed(contenders))
            for name in order:
                run, repeats = contenders[name]
                if len(samples[name]) < repeats:
                    start = time.perf_counter()
                    run()
                    samples[name].append(time.perf_counter() - start)
            turn += 1
    finally:
        gc.enable()
    return samples


def copy_contender(n_bytes: int = 400_000_000) -> tuple[Callable[[], Any], int]:
    """torch's parallel copy of ``n_bytes`` (half read, half written, as counted below)."""
    source = torch.ones(n_bytes // 8)
    target = torch.zeros(n_bytes // 8)
    return (lambda: target.copy_(source)), 15


def stamp() -> dict[str, Any]:
    """What a figure is worth: machine, versions, commit."""

    def git(*args: str) -> str:
        result = subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True)
        return result.stdout.strip()

    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": model,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "dstee": dstee.__version__,
        "build": _native.build_info(),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)bench/results")),
    }


def quantiles(samples: list[float]) -> dict[str, float]:
    """Milliseconds: median, 20th and 80th percentile, and how many samples."""
    cut = statistics.quantiles(samples, n=10) if len(samples) > 1 else [samples[0]] * 9
    return {
        "median_ms": statistics.median(samples) * 1e3,
        "p20_ms": cut[1] * 1e3,
        "p80_ms": cut[7] * 1e3,
        "repeats": len(samples),
    }


def require_same(name: str, actual: Layers, expected: Layers) -> None:
    """The gate: no time is reported for a contender whose result differs."""
    for field in ("params", "momenta", "mask_bits", "counts"):
        assert_same_bits(getattr(actual, field), getattr(expected, field), f"{name}: {field}")


def write_json(path: str | None, result: dict[str, Any]) -> None:
    if path:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(f"written: {target}")
