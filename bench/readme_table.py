"""The README's speed table, made from the committed results: ``python -m bench.readme_table`` rewrites it."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- speed -->\n", "<!-- /speed -->"


def table() -> str:
    results = ROOT / "bench" / "results"
    update = json.loads((results / "drop_grow-cpu.json").read_text())["rows"]
    step = json.loads((results / "masked_sgd-cpu.json").read_text())["rows"]
    lines = [
        "| density | mask update | over the roof | `torch.topk` | ITOP's sorts | masked step | torch's fused SGD, then masks |",
        "|---|---|---|---|---|---|---|",
    ]
    for u, s in zip(update, step, strict=True):
        lines.append(
            f"| {u['density']:.0%} | {u['native']['median_ms']:.1f} ms | {u['native_over_roof']:.2f}x | "
            f"{u['topk_over_native']:.0f}x slower | {u['sort_over_native']:.0f}x slower | "
            f"{s['native']['median_ms']:.1f} ms | {s['masks_over_native']:.1f}x slower |"
        )
    return "\n".join(lines) + "\n"


def with_table(readme: str) -> str:
    head, rest = readme.split(BEGIN)
    return head + BEGIN + table() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text()))
