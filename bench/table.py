"""Rows as tables for the terminal."""

from __future__ import annotations

from typing import Any

from .results_file import Document, Row, best_of_ours, title


def milliseconds(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms" if value >= 0.1 else f"{value * 1000:.1f} us"


def megabytes(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value / 1e6:,.0f} MB" if value >= 1e7 else f"{value / 1e6:.1f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB"


def ratio(value: float) -> str:
    return f"{value:.0f}x" if value >= 10 else f"{value:.1f}x" if value >= 2 else f"{value:.2f}x"


def notes(one: dict[str, Any]) -> str:
    """What to know about a figure, in few words."""
    found = []
    if one["repeats"] < 30:
        found.append(f"{one['repeats']} repeats")
    if one.get("noisy"):
        found.append("noisy")
    if not one.get("digests_equal", True):
        found.append("result varies")
    if one.get("share_of_roof", 0) > 1.05:
        found.append("above the roof")
    if one.get("graph", {}).get("status") == "ok":
        found.append(f"graph {milliseconds(one['graph']['median_ms'])}")
    return ", ".join(found)


UPDATE = ("contender", "median", "p20 to p80", "ratio", "GB/s", "of roof", "first call", "extra memory", "per step", "notes")
STEPS = ("implementation", "forward", "backward", "optimizer", "masks", "update/step", "step", "sparse share", "peak memory")


def cells(row: Row) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and lines of one row's table; who has no number says why."""
    if row["key"]["op"] == "step":
        return STEPS, [_step_cells(name, one) for name, one in row["contenders"].items()]
    ours = best_of_ours(row)
    base = row["contenders"][ours]["median_ms"] if ours else None
    lines = []
    for name, one in row["contenders"].items():
        if one["status"] != "ok":
            lines.append((name, one["status"], *[""] * 7, one["reason"]))
            continue
        lines.append((
            name, milliseconds(one["median_ms"]), f"{milliseconds(one['p20_ms'])} to {milliseconds(one['p80_ms'])}",
            ratio(one["median_ms"] / base) if base else "", f"{one['gb_s']:.2f}", f"{one['share_of_roof']:.0%}",
            milliseconds(one.get("first_call_ms")), megabytes(one.get("peak_extra_bytes")),
            milliseconds(one.get("amortised_ms")), notes(one),
        ))  # fmt: skip
    return UPDATE, lines


def _step_cells(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    if one["status"] != "ok":
        return (name, one["status"], *[""] * 6, one["reason"])
    phases = one["phases_ms"]
    share = one.get("sparse_share")
    return (
        name, *(milliseconds(phases[p]) for p in ("forward", "backward", "optimizer", "masks")), milliseconds(one["update_ms"]),
        milliseconds(one["median_ms"]), "" if share is None else f"{share:.1%}", megabytes(one.get("peak_extra_bytes")),
    )  # fmt: skip


def caption(row: Row) -> str:
    """What was measured, in one line."""
    if "roof" not in row:
        return title(row)
    layers = f"{row['layers']} layer{'s' if row['layers'] > 1 else ''}"
    return (
        f"{title(row)}: {row['n']:,} weights in {layers}, {megabytes(row['bytes'])} to move; roof "
        f"{milliseconds(row['roof_ms'])} at {row['roof']['copy_gb_s']:.1f} GB/s copy ({row['roof']['read_gb_s']:.1f} read)"
    )


def show(row: Row, console: Any) -> None:
    """Prints one row."""
    from rich.markup import escape
    from rich.table import Table

    console.print("\n" + caption(row), markup=False, soft_wrap=True)
    if "error" in row:
        console.print(f"no figures: {row['error']}", markup=False, soft_wrap=True)
        return
    head, lines = cells(row)
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(head):
        grid.add_column(name, justify="left" if i == 0 or name == "notes" else "right", no_wrap=name != "notes")
    lost = [line for line in lines if line[1] in ("skipped", "wrong", "failed", "crashed", "timed out")]
    for line in lines:
        if line not in lost:
            grid.add_row(*map(escape, line))
    console.print(grid)
    for line in lost:
        console.print(f"{line[0]}: {line[1]}: {line[-1]}", markup=False, soft_wrap=True)


def show_all(document: Document, console: Any) -> None:
    for row in document["rows"]:
        show(row, console)
