"""The README's speed tables, made from the committed results: ``python -m bench.readme_table`` rewrites them.

Three small tables, one unit each: a mask update and a masked step in milliseconds, and what being sparse adds to a whole
training step in percent. The README holds them between two comments, and nothing else of it is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from . import results_file
from .results_file import Document, Environment, Result, best_of_ours, find

__all__ = ["BEGIN", "END", "network", "number", "table", "with_table"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- speed -->\n", "<!-- /speed -->"
NONE = "-"

Columns = dict[str, tuple[str, ...]]
"""Of a table: what its head says, and the contenders of which the fastest stands there."""

UPDATE: Columns = {
    "PyTorch": ("torch.topk", "kthvalue", "torch.compile"), "ITOP": ("ITOP Masking",), "rigl-torch": ("rigl-torch",),
    "sparsimony": ("sparsimony",),
}  # fmt: skip
STEP: Columns = {
    "PyTorch": ("SGD foreach + masks", "SGD fused + masks"), "ITOP": ("ITOP apply_mask",), "rigl-torch": ("rigl-torch",),
    "dense SGD": ("SGD fused, dense",),
}  # fmt: skip
TRAINING: Columns = {
    "PyTorch": ("by hand",), "ITOP": ("ITOP Masking",), "rigl-torch": ("rigl-torch",), "sparsimony": ("sparsimony",),
}  # fmt: skip
NETWORKS = {"mlp": "MLP", "gnn": "graph network", "vgg19": "VGG-19", "resnet50": "ResNet-50", "vit-b": "ViT-B", "gpt2": "GPT-2"}


def number(value: float) -> str:
    """Three figures: ``9.44``, ``13.2``, ``444``, ``2,347``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def network(case: str, n: int, batch: int = 0) -> str:
    """``VGG-19, 20.1 M weights, batch 16``."""
    size = f"{n / 1e6:.1f} M" if n >= 1e6 else f"{n / 1e3:.0f} k"
    return f"{NETWORKS.get(case, case)}, {size} weights" + (f", batch {batch}" if batch else "")


def _percent(value: float) -> str:
    text = f"{100 * value:.0f}"
    return "0" if text == "-0" else text


def _filled(first: str, columns: Columns, rows: Sequence[tuple[str, str, Callable[[str], str | None]]]) -> list[str]:
    """A table of Markdown with those columns in which somebody has a figure. A row: its name, dstee's cell, and what gives
    the cell of a column."""
    used = [name for name in columns if any(cell(name) is not None for _, _, cell in rows)]
    lines = [f"| {first} | dstee | {' | '.join(used)} |", "|---" + "|---:" * (1 + len(used)) + "|"]
    for name, ours, cell in rows:
        lines.append(f"| {name} | **{ours}** | {' | '.join(cell(column) or NONE for column in used)} |")
    return lines


def _cell(contenders: dict[str, Result], columns: Columns, show: Callable[[Result], str | None]) -> Callable[[str], str | None]:
    def cell(column: str) -> str | None:
        ok = [one for name in columns[column] if (one := contenders.get(name, {})).get("status") == "ok"]
        return show(min(ok, key=lambda one: one["median_ms"])) if ok else None

    return cell


def _times(document: Document, op: str, columns: Columns) -> list[str]:
    """A row for each density."""
    rows = []
    for row in find(document, op=op):
        best = best_of_ours(row)
        if best is not None:
            cell = _cell(row["contenders"], columns, lambda one: number(one["median_ms"]))
            rows.append((f"{100 * row['key']['density']:g} %", number(row["contenders"][best]["median_ms"]), cell))
    return _filled("active weights", columns, rows) if rows else []


def _shares(document: Document) -> list[str]:
    """A row for each network."""

    def share(one: Result) -> str | None:
        return _percent(one["sparse_share"]) if "sparse_share" in one else None

    rows = []
    for row in find(document, op="step"):
        best = best_of_ours(row)
        ours = None if best is None else share(row["contenders"][best])
        if ours is not None:
            name = network(row["key"]["case"], row["n"], int(row["key"].get("batch", 0)))
            rows.append((name, ours, _cell(row["contenders"], TRAINING, share)))
    return _filled("network", TRAINING, rows) if rows else []


def _machine(stamp: Environment) -> str:
    threads = stamp["threads"]
    return f"{stamp['cpu']}, {threads} thread{'s' if threads != 1 else ''}, torch {stamp['torch']}"


def _captioned(text: str, lines: list[str]) -> list[str]:
    missing = f" ({NONE} : not measured)" if any(f"| {NONE} " in line for line in lines[2:]) else ""
    return [f"{text}{missing}:", "", *lines, ""] if lines else []


def table(results: Path = RESULTS) -> str:
    """All tables and what is said above them, from ``cpu.json`` and, where it is there, ``cpu-steps.json``.

    Raises:
        UsageError: a file cannot be read.
    """
    ops = results_file.read(results / "cpu.json")
    row = ops["rows"][0]
    swap = f"{100 * ops['options'].get('swap', 0.3):g} %"
    out = [
        f"Medians on {_machine(ops['stamp'])}; float32, cold cache; {network(row['key']['case'], row['n'])} in {row['layers']} "
        "layers. PyTorch: the fastest of the usual ways to write it by hand.", "",
        *_captioned(f"**Mask update**, milliseconds, {swap} of the active weights swapped", _times(ops, "drop_grow", UPDATE)),
        *_captioned(
            "**Masked SGD step**, milliseconds; dense SGD is torch's own fused step, which forgets the masks",
            _times(ops, "masked_sgd", STEP),
        ),
    ]  # fmt: skip
    if (results / "cpu-steps.json").exists():
        steps = results_file.read(results / "cpu-steps.json")
        where = "" if _machine(steps["stamp"]) == _machine(ops["stamp"]) else f" on {_machine(steps['stamp'])}"
        every = steps["options"].get("every", 100)
        density = ", ".join(f"{100 * d:g} %" for d in dict.fromkeys(r["key"]["density"] for r in find(steps, op="step")))
        out += _captioned(
            f"**Whole training step**{where}: percent of it spent on being sparse at {density} active weights (masked step "
            f"and, every {every} steps, an update, beyond dense SGD)",
            _shares(steps),
        )
    return "\n".join(out).rstrip("\n") + "\n"


def with_table(readme: str) -> str:
    """The text with the tables between its two comments.

    Raises:
        ValueError: it does not hold both comments, once each.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"expected {BEGIN.strip()} and {END} once each, on lines of their own")
    head, rest = readme.split(BEGIN)
    return head + BEGIN + table() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text()))
