"""Rows as tables of plain text, and what their figures look like."""

from __future__ import annotations

from collections.abc import Sequence

from .results_file import Document, Result, Row, best_of_ours, title

__all__ = [
    "aligned",
    "caption",
    "cells",
    "document_text",
    "kernel_line",
    "megabytes",
    "milliseconds",
    "notes",
    "printable",
    "ratio",
    "roof_words",
    "row_text",
]


def milliseconds(value: float | None) -> str:
    """A time of so many milliseconds in three figures, in s, ms or us; nothing of None."""
    if value is None:
        return ""
    if value >= 1000:
        return f"{value / 1000:.1f} s" if value >= 10_000 else f"{value / 1000:.2f} s"
    return (
        f"{value:.0f} ms"
        if value >= 100
        else f"{value:.1f} ms"
        if value >= 10
        else f"{value:.2f} ms"
        if value >= 0.1
        else f"{value * 1000:.1f} us"
    )


def megabytes(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value / 1e6:,.0f} MB" if value >= 1e7 else f"{value / 1e6:.1f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB"


def ratio(value: float) -> str:
    return f"{value:.0f}x" if value >= 10 else f"{value:.1f}x" if value >= 2 else f"{value:.2f}x"


def notes(one: Result) -> str:
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
    if "graph" in one and one["graph"]["status"] == "ok":
        found.append(f"graph {milliseconds(one['graph']['median_ms'])}")
    return ", ".join(found)


def printable(text: str) -> str:
    """Without line breaks and control characters, which names and reasons may hold."""
    return "".join(c if c.isprintable() else " " for c in text)


UPDATE = ("contender", "median", "p20 to p80", "ratio", "GB/s", "of roof", "first call", "extra memory", "per step", "notes")
HOST = ("implementation", "median", "p20 to p80", "ratio", "first call", "notes")
STEPS = ("implementation", "forward", "backward", "optimizer", "masks", "update/step", "step", "sparse share", "peak memory")


def cells(row: Row) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and lines of one row's table; who has no number says why."""
    if row["key"]["op"] == "step":
        return STEPS, [_step_cells(name, one) for name, one in row["contenders"].items()]
    if row["key"]["op"] == "host":
        return HOST, _host_lines(row)
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


def _host_lines(row: Row) -> list[tuple[str, ...]]:
    ours = best_of_ours(row)
    lines: list[tuple[str, ...]] = []
    for name, one in row["contenders"].items():
        if one["status"] != "ok":
            lines.append((name, one["status"], "", "", "", one["reason"]))
            continue
        times = ratio(one["median_ms"] / row["contenders"][ours]["median_ms"]) if ours else ""
        lines.append((
            name, milliseconds(one["median_ms"]), f"{milliseconds(one['p20_ms'])} to {milliseconds(one['p80_ms'])}", times,
            milliseconds(one.get("first_call_ms")), notes(one),
        ))  # fmt: skip
    return lines


def _step_cells(name: str, one: Result) -> tuple[str, ...]:
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
    if "dense_parameters" in row:
        return f"{title(row)}: {row['layers']} sparse and {row['dense_parameters']} dense parameters, {row['n']:,} weights"
    if "roof" not in row:
        return title(row)
    layers = f"{row['layers']} layer{'s' if row['layers'] > 1 else ''}"
    return f"{title(row)}: {row['n']:,} weights in {layers}, {roof_text(row)}"


def roof_text(row: Row) -> str:
    """The bytes of a row and what they take at the machine's limits."""
    roof = row["roof"]
    if row.get("roof_by") != "pairs":
        return (
            f"{megabytes(row['bytes'])} to move; roof {milliseconds(row['roof_ms'])} at {roof['copy_gb_s']:.1f} GB/s copy "
            f"({roof['read_gb_s']:.1f} read)"
        )
    read = row["read_bytes"]["pairs"] + row["read_bytes"].get("pairs_again", 0)
    return (
        f"{megabytes(read)} to read; roof {milliseconds(row['roof_ms'])} at {roof['read_gb_s']:.1f} GB/s read "
        f"({milliseconds(row['roofs_ms']['lines'])} by single lines; {milliseconds(row['roofs_ms']['copy'])} at "
        f"{roof['copy_gb_s']:.1f} GB/s copy)"
    )


def roof_words(rows: Sequence[Row]) -> str:
    """What "of roof" means in these rows, in one line."""
    by = {row.get("roof_by", "copy") for row in rows if "roof" in row}
    texts = {
        "pairs": "the bytes that must be read, in pairs of 64-byte lines, over the best read bandwidth of the same turns",
        "copy": "the bytes that must be read and written over the bandwidth of a parallel copy of the same turns",
    }
    return "; or, in other rows, ".join(text for name, text in texts.items() if name in by)


def kernel_line(row: Row) -> str:
    """What the CUDA kernels move by their own plan, and the rate that follows; empty where none were timed."""
    native = row["contenders"].get("native")
    if "kernel_bytes" not in row or native is None or native["status"] != "ok":
        return ""
    moved = sum(row["kernel_bytes"].values())
    rate = moved / native["median_ms"] * 1e-6
    parts = ", ".join(f"{name} {megabytes(part)}" for name, part in row["kernel_bytes"].items())
    return (
        f"native by its own plan: {megabytes(moved)}, {moved / row['n']:.2f} bytes a weight ({parts}); "
        f"{rate:.0f} GB/s, {rate / row['roof']['copy_gb_s']:.0%} of the roof"
    )


def row_text(row: Row) -> str:
    """One row: its caption, a line for each contender, and below them those without a number."""
    if "error" in row:
        return f"\n{printable(caption(row))}\nno figures: {printable(row['error'])}"
    if row["key"]["op"] == "scaling":
        return printable(f"{caption(row)}: {', '.join(_point(row, name, one) for name, one in row['contenders'].items())}")
    head, lines = cells(row)
    measured = [line for line in lines if row["contenders"][line[0]]["status"] == "ok"]
    lost = [f"{line[0]}: {line[1]}: {line[-1]}" for line in lines if line not in measured]
    below = [line for line in (*lost, kernel_line(row)) if line]
    return "\n".join(["", printable(caption(row)), *aligned(head, measured), *map(printable, below)])


def _point(row: Row, name: str, one: Result) -> str:
    if one["status"] != "ok":
        return f"{name} {one['status']}: {one['reason']}"
    return f"{name} {milliseconds(one['median_ms'])} ({1e6 * one['median_ms'] / row['n']:.2f} ns each)"


def aligned(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> list[str]:
    """Names and notes to the left, figures to the right."""
    rows = [head, *(tuple(map(printable, line)) for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [i == 0 or name == "notes" for i, name in enumerate(head)]
    return [
        "  ".join(c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(row, widths, left, strict=True)).rstrip()
        for row in rows
    ]


def document_text(document: Document) -> str:
    words = roof_words(document["rows"])
    return "\n".join([*map(row_text, document["rows"]), *([f"\nof roof: {words}"] if words else [])])
