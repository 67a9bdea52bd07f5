"""The options of ``dstee sweep`` and ``dstee reproduce``."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from dstee._console import UsageError

__all__ = ["SweepOptions", "add_shared_options", "add_sweep_options", "options_of"]


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is made; nothing here decides a bit of it.

    Attributes:
        out: the folder of the runs. data_dir: that of the data, None for ``$DSTEE_DATA``.
        jobs: processes at once; None: as many as the cores hold, or the GPUs.
        gpus: those that are used, by the numbers of CUDA_VISIBLE_DEVICES; None: all.
        keep_final_states: of a finished run weights and masks stay (``final.dst``), for pictures of them.
        again: the command that continues it.
    """

    out: Path
    data_dir: str | None = None
    jobs: int | None = None
    gpus: tuple[str, ...] | None = None
    dry_run: bool = False
    keep_final_states: bool = True
    again: str = "run the same command again to continue"


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    parser.description = "Make all trainings of a grid file. Finished ones are left as they are, interrupted ones go on."
    parser.add_argument("grid", type=Path, metavar="GRID.toml", help="methods, settings and seeds (see docs/sweep.md)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the runs, one folder each")
    add_shared_options(parser)


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """What both commands take."""
    parser.add_argument("--jobs", type=int, metavar="N", help="trainings at once (default: one a core, or one a GPU)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where all are trained (default: as the grid says, else cpu)")
    parser.add_argument("--gpus", metavar="0,1", help="GPUs that are used, one training each (default: all)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data (default: $DSTEE_DATA)")
    parser.add_argument(
        "--drop-checkpoints", action="store_true",
        help="keep nothing of a finished run but its numbers; otherwise the weights and masks of each training stay, final.dst",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, and stop")


def options_of(args: argparse.Namespace) -> SweepOptions:
    """Raises UsageError: one is out of range."""
    if args.jobs is not None and not 1 <= args.jobs <= 1024:
        raise UsageError(f"--jobs must be in 1..1024, got {args.jobs}")
    gpus = None if args.gpus is None else tuple(part.strip() for part in args.gpus.split(","))
    if gpus is not None and ("" in gpus or len(set(gpus)) != len(gpus)):
        raise UsageError(f"--gpus must be a list of different GPUs as 0,1, got {args.gpus!r}")
    return SweepOptions(
        args.out, args.data_dir, args.jobs, gpus, args.dry_run, not args.drop_checkpoints,
        f"continue with: dstee {shlex.join(sys.argv[1:])}" if sys.argv[1:] else SweepOptions.again,
    )  # fmt: skip
