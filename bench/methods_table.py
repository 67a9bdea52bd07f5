"""All methods on the first 6,400 images of MNIST at several sparsities: ``python -m bench.methods_table``.

One ``dstee train --compare`` for each sparsity, all of the same protocol: 784-300-100-10, batches of 64, 6 epochs (600 steps),
SGD with Nesterov momentum 0.9, lr 0.1 cosine to 0, weight decay 5e-4, ERK, an update every 20 steps until 3/4 of the training,
drop 0.3 cosine, tested on all 10,000 images. Methods have their defaults; :data:`VARIANTS` are other settings of some, each a
run of its own. The results go to bench/results/methods/mnist.json, which ``dstee table`` reads, their table in Markdown to the
standard output. Runs that were stopped are continued where ``--runs`` names their folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from dstee import cli
from dstee.experiments.results.file import dump_rows
from dstee.experiments.results.rows import read_rows
from dstee.experiments.tables.formats import as_markdown
from dstee.experiments.tables.table import make_table

__all__ = ["PROTOCOL", "VARIANTS", "main", "measure"]

OUTPUT = Path(__file__).resolve().parent / "results" / "methods" / "mnist.json"
COMMAND = "python -m bench.methods_table"
PROTOCOL = {
    "data": "mnist", "train_limit": 6400, "hidden": [300, 100], "batch_size": 64, "epochs": 6, "lr": 0.1,
    "lr_schedule": "cosine", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "distribution": "erk", "every": 20,
    "drop_fraction": 0.3, "drop_schedule": "cosine", "drop_floor": 0.0, "stop_fraction": 0.75,
}  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {
    "SNIP per layer": {"method": "snip", "method_settings": {"scope": "layer"}},
    # Dense for half and two thirds of the training, not of its first three quarters.
    "one-shot (all steps)": {"method": "one-shot", "stop_fraction": 1.0},
    "ADMM (all steps)": {"method": "admm", "stop_fraction": 1.0},
    "ADMM global (all steps)": {"method": "admm", "method_settings": {"scope": "global"}, "stop_fraction": 1.0},
    "DST-EE (c_rel 0.1)": {"method": "dst-ee", "c_rel": 0.1},
    "MEST EM&S": {"method": "mest", "method_settings": {"soft": True}},
    "RigL-ITOP": {
        "method": "rigl", "order": "after", "every": 40, "drop_fraction": 0.5, "drop_floor": 0.005, "stop_fraction": 1.0,
    },
}  # fmt: skip
"""Label in the table -> settings on top of the protocol; the first column's name of all others is the method's."""


def measure(
    settings: dict[str, Any], sparsities: Sequence[float], runs: Path, data_dir: str | None, label: str | None = None
) -> None:
    """One run for each sparsity, in folders of ``runs``; ``label`` is its name in the table (None: the method's).

    Raises:
        SystemExit: with the status of a run that failed; it has said why.
    """
    runs.mkdir(parents=True, exist_ok=True)
    for sparsity in sparsities:
        file = runs / f"{sparsity:g}.json"
        file.write_text(json.dumps({**settings, "sparsity": sparsity, **({"label": label} if label else {})}))
        arguments = ["train", "--config", str(file), "--out", str(runs / f"{sparsity:g}"), "--resume"]
        with redirect_stdout(sys.stderr):
            status = cli.main([*arguments, *(["--data-dir", data_dir] if data_dir else [])])
        if status:
            raise SystemExit(status)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.methods_table", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-dir", metavar="DIR", help="folder of mnist.npz (default: $DSTEE_DATA)")
    parser.add_argument("--compare", default="all", metavar="all|KEY,KEY", help="which methods (default: all)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.98, 0.99], metavar="X")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep the runs there (default: a folder that goes again)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    args = parser.parse_args(argv)
    settings = {**PROTOCOL, "compare": args.compare, "seeds": args.seeds}
    with tempfile.TemporaryDirectory(prefix="dstee-methods-") as temporary:
        runs = args.runs or Path(temporary)
        measure(settings, args.sparsity, runs / "methods", args.data_dir)
        for i, (label, changed) in enumerate(VARIANTS.items() if args.compare == "all" else ()):
            single = {**PROTOCOL, **changed, "seeds": args.seeds}
            measure(single, args.sparsity, runs / f"variant{i}", args.data_dir, label)
        rows = read_rows([runs], curves=False)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_bytes(dump_rows(rows, COMMAND))
    print(as_markdown(make_table(rows)), end="")


if __name__ == "__main__":
    main()
