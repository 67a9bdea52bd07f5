"""The options of ``dstee reproduce``, and what there is to reproduce."""

from __future__ import annotations

import argparse
from pathlib import Path

from dstee.experiments.sweep.command import add_shared_options

__all__ = ["EXPERIMENTS", "PROTOCOLS", "add_options"]

EXPERIMENTS = ("table1", "table2", "table3", "table4", "figure1", "figure3")
PROTOCOLS = ("full", "lite")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train what a table or figure of the paper shows, and make it. First of all it says what differs from the paper, and "
        "about how long it will take."
    )
    parser.add_argument("experiment", choices=EXPERIMENTS, help="of the paper")
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="lite",
        help="full: the paper's epochs, batches and schedule; lite: minutes to hours on two cores (default: lite)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs (default: runs/EXPERIMENT-PROTOCOL)")
    add_shared_options(parser)
