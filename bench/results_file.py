"""The result file: one JSON document from which table, HTML and README are made.

``schema_version`` 1: ``stamp`` (machine, versions, commit), ``options``, ``rows``. A row has a ``key`` (what was measured),
``made_by`` (by which code and options, so that a resumed sweep knows what it may keep) and its figures; a contender has a
``status``: ok, wrong, failed, crashed, timed out or skipped, with a ``reason`` for all but ok, and its samples if ok.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict, cast

from dstee._console import UsageError
from dstee._files import parse_json, read_file, write_atomic

__all__ = [
    "Document", "Environment", "Key", "Result", "Roof", "Row", "Traffic", "amortised", "best_of_ours", "fault", "find", "new",
    "read", "same_key", "title", "write",
]  # fmt: skip

SCHEMA_VERSION = 1
LARGEST = 200_000_000  # bytes
_TEXTS = ("op", "case", "dtype", "device", "of", "sweep")
_NUMBERS = (
    "first_call_ms", "p20_ms", "p80_ms", "repeats", "gb_s", "share_of_roof", "amortised_ms", "update_ms", "updates",
    "sparse_share",
)  # fmt: skip
STATUSES = ("ok", "wrong", "failed", "crashed", "timed out", "skipped")


class Environment(TypedDict, total=False):
    """Machine, versions, commit and day of a run."""

    date: str
    cpu: str
    cores: int | None
    threads: int
    gpu: str | None
    python: str
    torch: str
    dstee: str
    peers: dict[str, str]
    build: dict[str, object]
    commit: str
    dirty: bool
    load: float | None


class Key(TypedDict, total=False):
    """What was measured. ``of``, ``sweep`` and ``x`` of a scaling row: the op, what is varied, and its value; ``of`` and
    ``ranks`` of a row of ranks: the method, and how many processes."""

    op: str
    case: str
    density: float
    dtype: str
    swap: float
    threads: int
    device: str
    batch: int
    of: str
    sweep: str
    x: float
    ranks: int


class Result(TypedDict, total=False):
    """One contender's part of a row. The last four are those of whole training steps."""

    status: str
    reason: str
    rule: str
    ours: bool
    step: str
    first_call_ms: float
    peak_extra_bytes: int | None
    median_ms: float
    p20_ms: float
    p80_ms: float
    repeats: int
    noisy: bool
    samples_ms: list[float]
    digest: str
    digests_equal: bool
    graph: Result
    gb_s: float
    share_of_roof: float
    amortised_ms: float
    phases_ms: dict[str, float]
    update_ms: float
    updates: int
    sparse_share: float


class _Bandwidth(TypedDict):
    copy_gb_s: float
    read_gb_s: float
    samples_ms: dict[str, list[float]]


class Roof(_Bandwidth, total=False):
    """The bandwidth of a copy and of a read, which bounds every contender from above. ``reads_gb_s``: of each way to read that
    was tried, of which ``read_gb_s`` is the best; where it is not there, torch's sum was the only one."""

    reads_gb_s: dict[str, float]


class Traffic(TypedDict):
    """What a rank sent: of each update its ``rounds`` (rows, bytes, layers by digit) and ``other`` collectives (name, bytes),
    and the ``seconds`` of the slowest rank; the most bytes of each layer in any of them; ``digest`` of masks and weights."""

    updates: list[dict[str, Any]]
    seconds: list[float]
    layer_bytes: dict[str, int]
    digest: str


class Row(TypedDict, total=False):
    """``bytes``: the least that any implementation moves; ``kernel_bytes``: what the CUDA kernels move by their own plan.
    ``read_bytes``: the least that is read on a CPU, in ``lines`` and in ``pairs`` of them, and in ``lines_again`` and
    ``pairs_again`` what a commit reads a second time. ``roofs_ms``: how long that takes (``lines``, ``pairs``) at the read
    bandwidth, and ``bytes`` at that of a ``copy``. ``roof_ms`` is the one that shares are of, which ``roof_by`` names: "pairs",
    or "copy" on a GPU and in files that have no ``roof_by``.
    ``dense_parameters``: of host rows, how many tensors have no mask. ``traffic``: of ranks, whose layers' dimensions were
    divided by ``divisor``."""

    key: Key
    made_by: dict[str, object]
    error: str
    contenders: dict[str, Result]
    roof: Roof
    n: int
    layers: int
    active: int
    swapped: int
    round: int
    bytes: int
    read_bytes: dict[str, int]
    roofs_ms: dict[str, float]
    roof_by: str
    roof_ms: float
    gate: str
    flushed_bytes: int
    kernel_bytes: dict[str, float]
    dense_parameters: int
    divisor: int
    traffic: Traffic


class Document(TypedDict):
    schema_version: int
    stamp: Environment
    options: dict[str, Any]
    complete: bool
    rows: list[Row]


def new(stamp: Environment, options: dict[str, Any]) -> Document:
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
        text = read_file(path, LARGEST)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    try:
        document = parse_json(text)
    except ValueError as error:
        raise UsageError(f"{path} is not proper JSON: {error}") from error
    wrong = fault(document)
    if wrong:
        raise UsageError(f"{path} is no result file of dstee bench: {wrong}")
    return cast(Document, document)


def fault(document: Any) -> str | None:
    """What is wrong with the form of a document, or None."""
    if not isinstance(document, dict):
        return f"expected an object, got {type(document).__name__}"
    if type(document.get("schema_version")) is not int or document["schema_version"] != SCHEMA_VERSION:
        return f"schema_version is {document.get('schema_version')!r}, expected {SCHEMA_VERSION}"
    for name, kind in (("stamp", dict), ("options", dict), ("rows", list)):
        if not isinstance(document.get(name), kind):
            return f"{name} is missing or no {kind.__name__}"
    for i, row in enumerate(document["rows"]):
        if not isinstance(row, dict) or not isinstance(row.get("key"), dict) or not isinstance(row["key"].get("op"), str):
            return f"row {i} has no key"
        for name, value in row["key"].items():
            if not (isinstance(value, str) if name in _TEXTS else _is_time(value)):
                return f"row {i}: {name} of its key is {value!r}"
        if row["key"]["op"] == "ranks" and (bad := _ranks_fault(row)):
            return f"row {i}: {bad}"
        if not isinstance(row.get("contenders", {}), dict):
            return f"row {i}: contenders is no object"
        if "roof" in row and (bad := _roof_fault(row)):
            return f"row {i}: {bad}"
        for name, one in row.get("contenders", {}).items():
            bad = _contender_fault(one)
            if bad:
                return f"row {i}, {name}: {bad}"
    return None


def _roof_fault(row: dict[str, Any]) -> str | None:
    roof, by = row["roof"], row.get("roof_by", "copy")
    if not isinstance(roof, dict) or not (_is_time(roof.get("copy_gb_s")) and _is_time(roof.get("read_gb_s"))):
        return "roof has no copy_gb_s or no read_gb_s"
    if by not in ("copy", "pairs"):
        return f"roof_by is {by!r}, expected copy or pairs"
    for name in ("roofs_ms", "read_bytes") if by == "pairs" else ():
        one = row.get(name)
        if not isinstance(one, dict) or not all(_is_time(one.get(unit)) for unit in ("lines", "pairs")):
            return f"{name} has no lines or no pairs"
    return None


def _ranks_fault(row: dict[str, Any]) -> str | None:
    key, sent = row["key"], row.get("traffic")
    lacking = [name for name in ("case", "of", "dtype", "density", "ranks", "threads") if name not in key]
    if lacking:
        return f"its key has no {lacking[0]}"
    if not all(type(row.get(name)) is int for name in ("n", "layers", "divisor")):
        return "n, layers or divisor is no integer"
    if "error" in row:
        return None if isinstance(row["error"], str) else "error is no text"
    if not isinstance(sent, dict) or not isinstance(sent.get("digest"), str):
        return "no traffic"
    seconds, of_layers, updates = (sent.get(name) for name in ("seconds", "layer_bytes", "updates"))
    if not (isinstance(seconds, list) and seconds and all(_is_time(x) and x > 0 for x in seconds)):
        return "seconds is no list of times"
    if not (isinstance(of_layers, dict) and of_layers and all(map(_is_time, of_layers.values()))):
        return "layer_bytes is no object of numbers"
    if not (isinstance(updates, list) and updates and all(map(_is_update, updates))):
        return "updates is no list of what was sent"
    return None


def _is_update(update: Any) -> bool:
    try:
        return all(_is_time(r["bytes"]) and all(_is_digit(*d) for d in r["digits"].items()) for r in update["rounds"]) and all(
            isinstance(name, str) and _is_time(size) for name, size in update["other"]
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        return False


def _is_digit(name: str, layers: object) -> bool:
    """``what is sought word.shift``."""
    word, dot, shift = name.rpartition(" ")[2].partition(".")
    return word.isdecimal() and dot == "." and shift.isdecimal() and type(layers) is int


def _contender_fault(one: Any) -> str | None:
    if not isinstance(one, dict) or one.get("status") not in STATUSES:
        return "no status"
    if one["status"] != "ok":
        return None if isinstance(one.get("reason"), str) else "no reason"
    samples = one.get("samples_ms")
    if not isinstance(samples, list) or not samples or not all(map(_is_time, samples)):
        return "samples_ms is not a list of times"
    if not _is_time(one.get("median_ms")):
        return "no median_ms"
    wrong = [name for name in _NUMBERS if type(one.get(name, 0)) not in (int, float)]
    wrong += [name for name in ("step", "rule", "digest") if not isinstance(one.get(name, ""), str)]
    wrong += [name for name in ("ours", "noisy", "digests_equal") if not isinstance(one.get(name, True), bool)]
    return f"{wrong[0]} is {one[wrong[0]]!r}" if wrong else None


def _is_time(value: object) -> bool:
    """A number from 0 on; all that is measured is one."""
    return type(value) in (int, float) and value >= 0  # type: ignore[operator]


def same_key(a: Row, b: Row) -> bool:
    return a["key"] == b["key"]


def find(document: Document, **wanted: object) -> list[Row]:
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
    if key["op"] == "scaling":
        parts.append(key.get("of", ""))
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
