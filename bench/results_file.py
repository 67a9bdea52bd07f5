"""The result file: one JSON document from which table, HTML and README are made.

``schema_version`` 1: ``stamp`` (machine, versions, commit), ``options``, ``rows``. A row has a ``key`` (what was measured),
``made_by`` (by which code and options, so that a resumed sweep knows what it may keep) and its figures; a contender has a
``status``: ok, wrong, failed, crashed, timed out or skipped, with a ``reason`` for all but ok, and its samples if ok.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dstee._files import parse_json, write_atomic

from .layers import UsageError

SCHEMA_VERSION = 1
LARGEST = 200_000_000  # bytes
STATUSES = ("ok", "wrong", "failed", "crashed", "timed out", "skipped")

Document = dict[str, Any]
Row = dict[str, Any]


def new(stamp: dict[str, Any], options: dict[str, Any]) -> Document:
    return {"schema_version": SCHEMA_VERSION, "stamp": stamp, "options": options, "complete": False, "rows": []}


def write(path: Path, document: Document) -> None:
    """All or nothing: a temporary file, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, [(json.dumps(document, indent=1, allow_nan=False) + "\n").encode()])


def read(path: Path) -> Document:
    """The document, its form checked.

    Raises:
        UsageError: there is no such file, or it is no result file of this version; the text says what is wrong.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path} has {path.stat().st_size} bytes, more than any result file")
        document = parse_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not proper JSON: {error}") from error
    wrong = fault(document)
    if wrong:
        raise UsageError(f"{path} is no result file of dstee bench: {wrong}")
    return document


def fault(document: Any) -> str | None:
    """What is wrong with the form of a document, or None."""
    if not isinstance(document, dict):
        return f"expected an object, got {type(document).__name__}"
    if document.get("schema_version") != SCHEMA_VERSION:
        return f"schema_version is {document.get('schema_version')!r}, expected {SCHEMA_VERSION}"
    for name, kind in (("stamp", dict), ("options", dict), ("rows", list)):
        if not isinstance(document.get(name), kind):
            return f"{name} is missing or no {kind.__name__}"
    for i, row in enumerate(document["rows"]):
        if not isinstance(row, dict) or not isinstance(row.get("key"), dict) or not isinstance(row["key"].get("op"), str):
            return f"row {i} has no key"
        if not isinstance(row.get("contenders", {}), dict):
            return f"row {i}: contenders is no object"
        for name, one in row.get("contenders", {}).items():
            bad = _contender_fault(one)
            if bad:
                return f"row {i}, {name}: {bad}"
    return None


def _contender_fault(one: Any) -> str | None:
    if not isinstance(one, dict) or one.get("status") not in STATUSES:
        return "no status"
    if one["status"] != "ok":
        return None if isinstance(one.get("reason"), str) else "no reason"
    samples = one.get("samples_ms")
    if not isinstance(samples, list) or not samples or not all(isinstance(s, (int, float)) and s >= 0 for s in samples):
        return "samples_ms is not a list of times"
    if not isinstance(one.get("median_ms"), (int, float)):
        return "no median_ms"
    return None


def same_key(a: Row, b: Row) -> bool:
    return bool(a["key"] == b["key"])


def find(document: Document, **wanted: Any) -> list[Row]:
    """Rows whose key has these values."""
    return [r for r in document["rows"] if all(r["key"].get(k) == v for k, v in wanted.items())]


def title(row: Row) -> str:
    key = row["key"]
    parts = [str(key["op"]), str(key.get("case", ""))]
    if "density" in key:
        parts.append(f"{100 * key['density']:g} %")
    if key.get("dtype", "float32") != "float32":
        parts.append(key["dtype"])
    if "threads" in key:
        parts.append(f"{key['threads']} thread{'s' if key['threads'] != 1 else ''}")
    if key.get("device", "cpu") != "cpu":
        parts.append(key["device"])
    return "  ".join(p for p in parts if p)


def amortised(document: Document, every: int) -> None:
    """Adds to each update that has a step in the document what both cost per training step: update / every + step."""
    for row in find(document, op="drop_grow"):
        steps = find(document, **{**row["key"], "op": "masked_sgd"})
        if not steps:
            continue
        for name, one in row["contenders"].items():
            step = steps[0]["contenders"].get(one.get("step") or name, {})
            if one["status"] == "ok" and step.get("status") == "ok":
                one["amortised_ms"] = one["median_ms"] / every + step["median_ms"]


def best_of_ours(row: Row) -> str | None:
    """The fastest of dstee's own backends in the row."""
    ours = {
        name: one["median_ms"] for name, one in row.get("contenders", {}).items() if one.get("ours") and one["status"] == "ok"
    }
    return min(ours, key=lambda name: ours[name]) if ours else None
