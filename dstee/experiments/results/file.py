"""A results file: rows in one JSON, small enough to be committed; ``dstee table`` writes it, and reads it as ``dstee figure``.

``{"format": "dstee-results", "version": 1, "command", "dstee", "torch", "data_digest", "settings", "rows"}``: what most rows
share stands once, above them; a row (a line each) has "label", "method", "seed", "result" and what differs; "epochs" is a
list of [epoch, accuracy] or [epoch, accuracy, other scores], "updates" of [step, R, churn, R_max, dead units, R by layer], of
which the last three may be missing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dstee._files import parse_json
from dstee.experiments.records import as_record
from dstee.experiments.results.row import (
    Epoch,
    Outcome,
    Row,
    Update,
    as_outcome,
    check_settings,
    decides,
    is_text,
    known_method,
)

__all__ = ["FORMAT", "as_epoch", "as_update", "dump_rows", "parse_rows"]

FORMAT = "dstee-results"
VERSION = 1
_DIGITS, _DIGITS_OF_CURVES = 6, 5
_MADE_BY = ("dstee", "torch", "data_digest")
_HEAD = {"format", "version", "command", "settings", "rows", *_MADE_BY}
_ROW = {"label", "method", "seed", "settings", "result", "epochs", "updates", *_MADE_BY}
_TIMES = ("seconds", "kernel_seconds")
_MAX_ROWS = 100_000


def dump_rows(rows: Sequence[Row], command: str = "", curves: bool = True) -> bytes:
    """The text of a results file; floats that were measured have 6 significant digits, in curves 5.

    Times are left out: trained again, the runs make the same file.
    """
    shared = _shared_settings(rows)
    made_by = {key: rows[0].made_by[key] for key in _MADE_BY if rows and key in rows[0].made_by and _all_made(rows, key)}
    head = {"format": FORMAT, "version": VERSION, "command": command, **made_by, "settings": shared}
    lines = [json.dumps(_as_json(row, shared, made_by, curves), allow_nan=False, ensure_ascii=False) for row in rows]
    text = json.dumps(head, indent=1, allow_nan=False, ensure_ascii=False).removesuffix("\n}")
    return (text + ',\n "rows": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n").encode()


def _all_made(rows: Sequence[Row], key: str) -> bool:
    return all(row.made_by.get(key) == rows[0].made_by[key] for row in rows)


def _shared_settings(rows: Sequence[Row]) -> dict[str, Any]:
    """The most frequent value of each setting, of which a row names what is else; no more than leaves each row as it is.

    Who reads it takes from the shared ones those that decide a training of the row's method.
    """
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row.settings if name != "method_settings"):
        values = [json.dumps(row.settings[name]) for row in rows if name in row.settings]
        found[name] = json.loads(max(dict.fromkeys(values), key=values.count))
    for row in rows:
        for name in _with_shared(row.method, row.settings, found).keys() ^ row.settings.keys():
            found.pop(name, None)
    return found


def _with_shared(method: str, own: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**shared, **own}
    return {name: v for name, v in settings.items() if name == "method_settings" or decides(method, name, settings)}


def _as_json(row: Row, shared: Mapping[str, Any], made_by: Mapping[str, str], curves: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"label": row.label, "method": row.method, "seed": row.seed}
    entry |= {key: value for key, value in row.made_by.items() if key not in made_by}
    if own := {name: value for name, value in row.settings.items() if name not in shared or shared[name] != value}:
        entry["settings"] = own
    plain = {f.name: getattr(row.result, f.name) for f in dataclasses.fields(Outcome) if f.name not in _TIMES}
    entry["result"] = {name: _short(value) for name, value in plain.items() if value not in (None, {}) or name == "accuracy"}
    entry["result"].setdefault("exploration", None)
    if curves and row.epochs:
        entry["epochs"] = [_short([*e[:2], *([dict(e.scores)] if e.scores else [])], _DIGITS_OF_CURVES) for e in row.epochs]
    if curves and row.updates:
        entry["updates"] = [_short(_trimmed(update), _DIGITS_OF_CURVES) for update in row.updates]
    return entry


def _trimmed(update: Update) -> list[Any]:
    """Without what was not recorded, at its end."""
    found: list[Any] = list(update)
    while found[-1] is None:
        found.pop()
    return found


def _short(value: Any, digits: int = _DIGITS) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {key: _short(item, digits) for key, item in value.items()}
    return [_short(item, digits) for item in value] if isinstance(value, (list, tuple)) else value


def parse_rows(data: bytes, source: str = "") -> list[Row]:
    """The rows of a results file.

    Raises:
        ValueError: it is none; the text says why.
    """
    try:
        held = parse_json(data)
    except ValueError as error:
        raise ValueError(f"it is no results file, which are JSON ({error})") from error
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise ValueError("it is no results file (dstee table RUNS --format json --output FILE makes one)")
    if type(version := held.get("version")) is not int or version != VERSION:
        raise ValueError(f"it has version {version!r}, this dstee reads {VERSION}")
    if wrong := sorted(held.keys() - _HEAD):
        raise ValueError(f"unknown entry {wrong[0][:100]!r}")
    command = held.get("command", "")
    if not isinstance(command, str) or len(command) > 100_000:
        raise ValueError("'command' is no text")
    rows, shared = held.get("rows"), check_settings(held.get("settings", {}))
    if not isinstance(rows, list) or not 1 <= len(rows) <= _MAX_ROWS:
        raise ValueError(f"'rows' is no list of 1 to {_MAX_ROWS} rows")
    found = []
    for number, entry in enumerate(rows, 1):
        try:
            found.append(dataclasses.replace(_as_row(entry, held, shared), source=source, command=command))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
    return found


def _as_row(entry: object, head: Mapping[str, Any], shared: Mapping[str, Any]) -> Row:
    if not isinstance(entry, dict):
        raise ValueError("a row is an object")
    if wrong := sorted((entry.keys() - _ROW) | ({"label", "method", "seed", "result"} - entry.keys())):
        raise ValueError(f"{wrong[0][:100]!r} missing or unknown")
    method, seed, label = known_method(entry["method"]), entry["seed"], entry["label"]
    if type(seed) is not int or not 0 <= seed < 1 << 63 or not is_text(label) or not label:
        raise ValueError("it has no label and seed")
    if not isinstance(entry["result"], dict):
        raise ValueError("'result' is no object")
    settings = _with_shared(method, check_settings(entry.get("settings", {})), shared)
    made_by: dict[str, Any] = {key: {**head, **entry}[key] for key in _MADE_BY if key in entry or key in head}
    if not all(map(is_text, made_by.values())):
        raise ValueError("the version or the digest of the data is no text")
    epochs, updates = _lists(entry, "epochs", 2, 3), _lists(entry, "updates", 3, len(Update._fields))
    return Row(
        label, method, seed, settings, as_outcome(entry["result"]), tuple(_epoch(e, method, seed) for e in epochs),
        tuple(_update(u, method, seed) for u in updates), made_by,
    )  # fmt: skip


def _lists(entry: Mapping[str, Any], name: str, least: int, most: int) -> list[list[Any]]:
    found = entry.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, list) and least <= len(one) <= most for one in found):
        raise ValueError(f"{name!r} is no list of lists")
    return found


def _epoch(one: list[Any], method: str, seed: int) -> Epoch:
    record = {"kind": "epoch", "method": method, "seed": seed, "step": 0, "loss": None, "exploration": None}
    return as_epoch({**record, "epoch": one[0], "accuracy": one[1], **({"scores": one[2]} if len(one) > 2 else {})})


def _update(one: list[Any], method: str, seed: int) -> Update:
    record = {"kind": "update", "method": method, "seed": seed, "round": 0}
    named = dict(zip(Update._fields, one, strict=False))
    return as_update({**record, **{name: v for name, v in named.items() if v is not None or name == "exploration"}})


def as_epoch(value: object) -> Epoch:
    """An epoch's record, read from a file. Raises ValueError: it is none."""
    record: Mapping[str, Any] = as_record(value)
    return Epoch(record["epoch"], record["accuracy"], record.get("scores", {}))


def as_update(value: object) -> Update:
    """An update's record, read from a file. Raises ValueError: it is none."""
    record: Mapping[str, Any] = as_record(value)
    return Update(*(record.get(name) for name in Update._fields))  # type: ignore[arg-type]  # just checked
