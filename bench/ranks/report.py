"""What ranks sent, as tables of plain text, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..results_file import Document, Row, Traffic, find
from ..table import aligned, printable, ratio
from .cases import most_collectives

__all__ = ["MOST_BYTES", "bytes_of", "collectives", "faults", "groups", "table_text", "text"]

MOST_BYTES = 16 * 1024
"""Payload of a layer that an update may need."""
HEAD = ("method", "ranks", "threads", "collectives", "rounds", "other", "sent", "most a layer", "time", "result", "notes")
LEGEND = """\
collectives  the most of any update: rounds of the agreement, and others, such as which gradients there are
sent         payload that one rank puts in, the most of any update; most a layer: in rounds
time         of the step that carries the update, over that of one process, the least of each; threads: of a rank
result       masks and weights after all updates, by fingerprints
rows of ...  layers by byte of the key (word.shift; 0 score, 1 signal, 2 index), in the update with most rounds"""


def groups(document: Document) -> Iterator[list[Row]]:
    """The rows that stand in one table: of one list of layers, density and dtype."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in find(document, op="ranks"):
        key = row["key"]
        found.setdefault((key["case"], key["density"], key["dtype"]), []).append(row)
    yield from found.values()


def collectives(sent: Traffic) -> int:
    """The most of any update."""
    return max(len(update["rounds"]) + len(update["other"]) for update in sent["updates"])


def bytes_of(sent: Traffic) -> int:
    """The most of any update, over all layers."""
    return max(
        sum(r["bytes"] for r in update["rounds"]) + sum(size for _, size in update["other"]) for update in sent["updates"]
    )


def faults(rows: list[Row]) -> list[str]:
    """Of one table: rows without figures, traffic that depends on the number of ranks, results that differ from those of the
    fewest ranks."""
    found = [*dict.fromkeys(f"{row['key']['ranks']} ranks: {row['error']}" for row in rows if "error" in row)]
    for method in dict.fromkeys(row["key"]["of"] for row in rows):
        mine = [row for row in rows if row["key"]["of"] == method and "error" not in row]
        sending = [row for row in mine if row["key"]["ranks"] > 1]
        for row in sending[1:]:
            if row["traffic"]["updates"] != sending[0]["traffic"]["updates"]:
                found.append(f"{method}: {row['key']['ranks']} ranks do not send what {sending[0]['key']['ranks']} send")
        for row in mine[1:]:
            if row["traffic"]["digest"] != mine[0]["traffic"]["digest"]:
                found.append(f"{method}: {row['key']['ranks']} ranks do not train as {mine[0]['key']['ranks']}")
    return found


def table_text(rows: list[Row]) -> str:
    """One table with its caption; below it where the rows of counts went, and what is wrong."""
    first = rows[0]
    key = first["key"]
    divisor = f", dimensions divided by {first['divisor']}" if first["divisor"] > 1 else ""
    dtype = "" if key["dtype"] == "float32" else f"  {key['dtype']}"
    size = f"{first['n']:,} weights in {first['layers']} layers"
    lines = ["", f"ranks  {key['case']}{divisor}  {100 * key['density']:g} %{dtype}: {size}"]
    good = [row for row in rows if "error" not in row]
    lines += aligned(HEAD, [_cells(row, good) for row in good])
    for method in dict.fromkeys(row["key"]["of"] for row in good):
        most = max((row for row in good if row["key"]["of"] == method), key=lambda row: row["key"]["ranks"])
        if most["key"]["ranks"] > 1:
            lines.append(f"rows of {method}: {_digits(most['traffic'])}")
    sending = sorted({row["key"]["ranks"] for row in good if row["key"]["ranks"] > 1})
    wrong = faults(rows)
    if len(sending) > 1 and not wrong:
        lines.append(f"{' and '.join(map(str, sending))} ranks send the same, in every round of every update")
    return "\n".join(map(printable, [*lines, *(f"WRONG: {fault}" for fault in wrong)]))


def _cells(row: Row, rows: list[Row]) -> tuple[str, ...]:
    key, sent = row["key"], row["traffic"]
    mine = [other for other in rows if other["key"]["of"] == key["of"]]
    alone = next((other for other in mine if other["key"]["ranks"] == 1), None)
    most = max(sent["layer_bytes"].values())
    rounds = max(len(update["rounds"]) for update in sent["updates"])
    other = max(len(update["other"]) for update in sent["updates"])
    bound, notes = most_collectives(key["of"], key["dtype"]), []
    if bound is not None and collectives(sent) > bound:
        notes.append(f"more than {bound} collectives")
    if most > MOST_BYTES:
        over = [name for name, size in sent["layer_bytes"].items() if size > MOST_BYTES]
        notes.append(f"more than {MOST_BYTES >> 10} KiB: {len(over)} layers, {over[0]} first")
    return (
        key["of"], str(key["ranks"]), str(key["threads"]), str(collectives(sent)), str(rounds), str(other),
        _kib(bytes_of(sent)), _kib(most),
        "" if alone is None else ratio(min(sent["seconds"]) / min(alone["traffic"]["seconds"])),
        "same" if sent["digest"] == mine[0]["traffic"]["digest"] else "DIFFERS", ", ".join(notes),
    )  # fmt: skip


def _kib(size: float) -> str:
    return f"{size / 1024:,.1f} KiB"


def _digits(sent: Traffic) -> str:
    """Of the update with most rounds, by what was sought: layers that sent a row for each byte of a key."""
    worst = max(sent["updates"], key=lambda update: len(update["rounds"]))
    total: Counter[str] = Counter()
    for r in worst["rounds"]:
        total.update(r["digits"])
    by_side: dict[str, list[str]] = {}
    for digit in sorted(total, key=_order):
        side, _, byte = digit.rpartition(" ")
        by_side.setdefault(side, []).append(f"{byte} {total[digit]}")
    return "; ".join(f"{side} {', '.join(bytes_)}" for side, bytes_ in by_side.items())


def _order(digit: str) -> tuple[str, int, int]:
    side, _, byte = digit.rpartition(" ")
    word, _, shift = byte.partition(".")
    return side, int(word), -int(shift)


def text(document: Document) -> str:
    """All tables of a result file, with what they mean."""
    cores = document["stamp"].get("cores")
    shared = f"ranks share {cores} cores: time is what agreeing costs here, and no speed-up can show"
    return "\n".join([LEGEND, shared, *map(table_text, groups(document))])
