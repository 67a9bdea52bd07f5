"""The README's speed tables, made from the committed results: ``python -m bench.readme_table`` rewrites them."""

from __future__ import annotations

from pathlib import Path

from . import results_file
from .results_file import Document, Result, best_of_ours, find
from .table import milliseconds, ratio, roof_words

__all__ = ["step_table", "table", "update_table", "with_table"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- speed -->\n", "<!-- /speed -->"


def _slower(contenders: dict[str, Result], name: str, base: float) -> str:
    one = contenders.get(name)
    return ratio(one["median_ms"] / base) if one is not None and one["status"] == "ok" else "-"


def update_table(document: Document, op: str) -> list[str]:
    """One line per density; columns: dstee, of the roof, then how many times as long each other one takes."""
    rows = [(row, best) for row in find(document, op=op) if (best := best_of_ours(row)) is not None]
    names: list[str] = []
    for row, best in rows:
        names += [n for n, one in row["contenders"].items() if one["status"] == "ok" and n not in names and n != best]
    what = "mask update" if op == "drop_grow" else "masked step"
    lines = [f"| density | {what}, dstee | of the roof | {' | '.join(names)} |", "|---" * (3 + len(names)) + "|"]
    for row, best in rows:
        ours = row["contenders"][best]
        others = " | ".join(_slower(row["contenders"], name, ours["median_ms"]) for name in names)
        lines.append(
            f"| {row['key']['density']:.0%} | {milliseconds(ours['median_ms'])} | {ours['share_of_roof']:.0%} | {others} |"
        )
    return lines


def step_table(document: Document) -> list[str]:
    """What a training step spends on being sparse, per model and implementation."""
    rows = [r for r in find(document, op="step") if "contenders" in r]
    names = [
        n for n in dict.fromkeys(n for r in rows for n, one in r["contenders"].items() if one["status"] == "ok") if n != "dense"
    ]
    lines = [f"| whole step | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for row in rows:
        shares = [row["contenders"].get(n, {}).get("sparse_share") for n in names]
        lines.append(f"| {row['key']['case']} | {' | '.join('-' if s is None else f'{s:.0%}' for s in shares)} |")
    return lines


def table(results: Path = RESULTS) -> str:
    ops = results_file.read(results / "cpu.json")
    parts = [update_table(ops, "drop_grow"), update_table(ops, "masked_sgd"), [f"The roof: {roof_words(ops['rows'])}."]]
    if (results / "cpu-steps.json").exists():
        parts.append(step_table(results_file.read(results / "cpu-steps.json")))
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def with_table(readme: str) -> str:
    head, rest = readme.split(BEGIN)
    return head + BEGIN + table() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text()))
