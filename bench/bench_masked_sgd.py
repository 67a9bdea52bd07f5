"""The masked step of ResNet-50's layers on the CPU: dstee against torch's fused SGD followed by mask products.

SGD with momentum 0.9 and weight decay. The peer is what users write: ``torch.optim.SGD(fused=True)``, then ``w.mul_(mask)``
and ``momentum.mul_(mask)`` with float masks. The dense bound is torch's fused SGD alone, which forgets the masks.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from bench import harness
from bench.shapes import SHAPES
from dstee import backends, ops

RULE = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def run(density: float) -> dict:
    layers = harness.make_layers(list(SHAPES["resnet50"]().values()), density, 0.3)

    def step(state: harness.Layers) -> None:
        ops.masked_sgd_(state.params, state.grads, state.momenta, state.mask_bits, **RULE)

    with backends.use_backend("reference"):
        expected = layers.clone()
        step(expected)
    gate = layers.clone()
    step(gate)
    harness.require_same("native", gate, expected)

    native, peer = layers.clone(), layers.clone()
    masks = [mask.float() for mask in peer.masks]
    params = [torch.nn.Parameter(p) for p in peer.params]
    for p, g in zip(params, peer.grads, strict=True):
        p.grad = g
    optimizer = torch.optim.SGD(params, fused=True, **RULE)

    @torch.no_grad()
    def masked() -> None:
        optimizer.step()
        for p, mask in zip(params, masks, strict=True):
            p.mul_(mask)
            optimizer.state[p]["momentum_buffer"].mul_(mask)

    samples = harness.interleaved({
        "copy": harness.copy_contender(),
        "native": (lambda: step(native), 31),
        "torch fused + masks": (masked, 15),
        "torch fused, dense": (optimizer.step, 15),
    })  # fmt: skip
    median = {name: statistics.median(times) for name, times in samples.items()}
    return {
        "density": density,
        "n": layers.n,
        "copy_gb_s": 0.4 / median["copy"],
        "masks_over_native": median["torch fused + masks"] / median["native"],
        "dense_over_native": median["torch fused, dense"] / median["native"],
        **{name: harness.quantiles(times) for name, times in samples.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.10, 0.05, 0.02])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="file for all figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    result = {"bench": "masked_sgd", "stamp": harness.stamp(), "rows": []}
    print("density  copy GB/s  native ms  fused + masks  fused, dense")
    for density in options.densities:
        row = run(density)
        result["rows"].append(row)
        print(
            f"{density:7.2f}  {row['copy_gb_s']:9.1f}  {row['native']['median_ms']:9.2f}  "
            f"{row['masks_over_native']:12.1f}x  {row['dense_over_native']:11.1f}x",
            flush=True,
        )
    harness.write_json(options.json, result)


if __name__ == "__main__":
    main()
