"""One mask update of ResNet-50's layers (topology only) on the CPU: dstee, torch.topk, and the sort recipe of ITOP.

Bytes that must move, per update (fp32; lines are the 64 bytes that memory moves):
  read     gradient 4 n, counter 2 n, mask n/8, and the lines of w that hold an active weight
  written  the lines of counters and mask of swapped weights, the lines of w of dropped ones
The roof is the time that torch's parallel copy takes for as many bytes, measured in turn with the contenders.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor

from bench import harness
from bench.shapes import SHAPES
from dstee import backends, ops
from dstee.state import bonus_table


def topk_update(layers: harness.Layers, N: list[Tensor], bonus: Tensor) -> None:
    """The update as one writes it with torch.topk: no defined order among ties."""
    for w, g, mask, count, k in zip(layers.params, layers.grads, layers.masks, N, layers.k, strict=True):
        w, g, mask, count = w.view(-1), g.view(-1), mask.view(-1), count.view(-1)
        drop = torch.topk(w.abs().masked_fill(~mask, torch.inf), k, largest=False).indices
        mask[drop] = False
        score = (g.abs() + bonus[count]).masked_fill(mask, -torch.inf)
        grow = torch.topk(score, k).indices
        mask[grow] = True
        w.mul_(mask)
        count.add_(mask)


def sort_update(layers: harness.Layers) -> None:
    """The recipe of the ITOP code base: a full sort of |w| to drop, a full sort of |g| to grow."""
    for w, g, mask, k in zip(layers.params, layers.grads, layers.masks, layers.k, strict=True):
        w, g, mask = w.view(-1), g.view(-1), mask.view(-1)
        inactive = mask.numel() - int(mask.sum())
        order = torch.sort(w.abs()).indices
        mask[order[: inactive + k]] = False
        order = torch.sort((g * ~mask).abs(), descending=True).indices
        mask[order[:k]] = True
        w.mul_(mask)


def bytes_to_move(before: harness.Layers, after: harness.Layers) -> int:
    shapes = [tuple(p.shape) for p in before.params]
    changed = [a ^ b for a, b in zip(before.mask_bits, after.mask_bits, strict=True)]
    dropped = [c & b for c, b in zip(changed, before.mask_bits, strict=True)]
    n = before.n
    read = 6 * n + n // 8 + 64 * harness.lines_touched(before.mask_bits, shapes, 4)
    lines_of_bits = sum(int((c.view(-1) != 0).sum()) for c in changed)  # at most one line each
    written = 64 * (harness.lines_touched(changed, shapes, 2) + harness.lines_touched(dropped, shapes, 4))
    return read + written + min(64 * lines_of_bits, n // 8)


def run(density: float, swap: float, slow_repeats: int) -> dict:
    layers = harness.make_layers(list(SHAPES["resnet50"]().values()), density, swap)
    bonus = bonus_table(1e-4, 1.0, 1000, 0)

    def update(state: harness.Layers, round: int) -> None:
        table = bonus_table(1e-4, 1.0, 1000, round)
        ops.drop_grow_(state.params, state.grads, None, state.mask_bits, state.counts, state.k, bonus=table, round=round)

    with backends.use_backend("reference"):
        expected = layers.clone()
        update(expected, 0)
    gate = layers.clone()
    update(gate, 0)
    harness.require_same("native", gate, expected)

    native, topk, sort = layers.clone(), layers.clone(), layers.clone()
    topk_counts = [mask.int() for mask in topk.masks]
    round = iter(range(10_000))
    samples = harness.interleaved({
        "copy": harness.copy_contender(),
        "native": (lambda: update(native, next(round)), 31),
        "torch.topk": (lambda: topk_update(topk, topk_counts, torch.cat([bonus, bonus[-1:].expand(64)])), slow_repeats),
        "ITOP sort": (lambda: sort_update(sort), slow_repeats),
    })  # fmt: skip
    moved = bytes_to_move(layers, expected)
    copy = statistics.median(samples["copy"]) / 400_000_000
    median = {name: statistics.median(times) for name, times in samples.items()}
    return {
        "density": density,
        "n": layers.n,
        "swapped": sum(layers.k),
        "bytes": moved,
        "copy_gb_s": 1e-9 / copy,
        "roof_ms": moved * copy * 1e3,
        "native_over_roof": median["native"] / (moved * copy),
        "topk_over_native": median["torch.topk"] / median["native"],
        "sort_over_native": median["ITOP sort"] / median["native"],
        **{name: harness.quantiles(times) for name, times in samples.items()},
    }


def list_overhead() -> dict:
    """Microseconds of one call for 54 layers of 8 weights: everything but the sweep."""
    layers = harness.make_layers([(8,)] * 54, 0.5, 0.3)
    step = {"lr": 0.1, "momentum": 0.9}
    samples = harness.interleaved({
        "masked_sgd_": (
            lambda: ops.masked_sgd_(layers.params, layers.grads, layers.momenta, layers.mask_bits, **step), 501
        ),
        "count_active": (lambda: ops.count_active(layers.mask_bits), 501),
    })  # fmt: skip
    return {name: statistics.median(times) * 1e6 for name, times in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.10, 0.05, 0.02])
    parser.add_argument("--swap", type=float, default=0.3, help="share of the active weights that one update swaps")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--slow-repeats", type=int, default=5, help="repeats of the PyTorch contenders")
    parser.add_argument("--json", help="file for all figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    result = {"bench": "drop_grow", "stamp": harness.stamp(), "call_overhead_us": list_overhead(), "rows": []}
    print(f"{options.threads} threads; one call for 54 tiny layers: {result['call_overhead_us']}")
    print("density  copy GB/s  roof ms  native ms  over roof  torch.topk  ITOP sort")
    for density in options.densities:
        row = run(density, options.swap, options.slow_repeats)
        result["rows"].append(row)
        print(
            f"{density:7.2f}  {row['copy_gb_s']:9.1f}  {row['roof_ms']:7.2f}  {row['native']['median_ms']:9.2f}  "
            f"{row['native_over_roof']:8.2f}x  {row['topk_over_native']:9.0f}x  {row['sort_over_native']:8.0f}x",
            flush=True,
        )
    harness.write_json(options.json, result)


if __name__ == "__main__":
    main()
