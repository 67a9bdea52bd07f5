"""Options of ``bench ranks``. Importing this costs nothing."""

from __future__ import annotations

import argparse

from .cost_model import ALGORITHMS, Machine

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("ranks and the model of their cost")
    own.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], metavar="R", help="processes (default: 1 2 4)")
    own.add_argument(
        "--methods", nargs="+", default=None, metavar="NAME",
        help="DST-EE, DST-EE(c=1e-3), RigL(regrow=False), SET (default: all)",
    )  # fmt: skip
    own.add_argument("--updates", type=int, default=3, help="that count, after one that does not (default: 3)")
    own.add_argument("--model-only", action="store_true", help="the model of the cost alone, for the bounds of the traffic")
    own.add_argument(
        "--link", nargs=3, action="append", default=None, metavar=("NAME", "US", "GB_S"),
        help="of the model: microseconds of a hop and GB/s of a rank's link (default: nvlink, infiniband and ethernet)",
    )  # fmt: skip
    own.add_argument("--all-reduce", choices=ALGORITHMS, default="tree", help="of the model (default: tree)")
    own.add_argument("--tokens", type=float, default=4e6, help="of the model: tokens a step over all ranks (default: 4e6)")
    own.add_argument("--flops", type=float, default=Machine.flops, help="of the model: sustained by a rank (default: 4e14)")
    own.add_argument(
        "--step-seconds", type=float, default=None, metavar="S", help="of the model: a training step takes S, whatever R"
    )
