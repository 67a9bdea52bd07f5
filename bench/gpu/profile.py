"""The calls whose kernels a profiler looks at: a masked step, an update, an update with its step, of ResNet-50's layers."""

from __future__ import annotations

import argparse

import torch

from dstee import backends, ops
from dstee.encoding import bonus_table

from ..layers import ROUND, by_name, make_layers

__all__: list[str] = []  # a program: nothing to import


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.profile", description=__doc__)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", default="resnet50")
    options = parser.parse_args()
    shapes = list(by_name(options.shapes).values())
    state = make_layers(shapes, options.density, 0.3, device=options.device)
    bonus = bonus_table(1e-4, 1.0, 1000, ROUND + 1).to(options.device)
    rule = ops.SGDRule(0.1, 0.9, weight_decay=5e-4)
    with backends.use_backend("native"):
        ops.masked_sgd_(state.params, state.grads, state.momenta, state.mask_bits, sgd=rule)
        for round, (momenta, sgd) in enumerate(((None, None), (state.momenta, rule)), ROUND):
            ops.drop_grow_(
                state.params, state.grads, momenta, state.mask_bits, state.counts, state.k, bonus=bonus, round=round, sgd=sgd
            )
    if options.device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
