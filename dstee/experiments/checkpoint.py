"""Checkpoint files that are whole or absent and are never unpickled, and the folder that keeps the last of them.

A file is ``magic (8 bytes) | header length (uint64) | blake2b of the header (32 bytes) | header | tensors``, little-endian.
The header is JSON: the saved tree, in which a tensor is ``{"$tensor": i}``, and the list of dtypes, shapes and digests. The
tensors follow in that order without gaps, so offsets cannot lie and every byte of the file is covered by a digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from dstee._files import CheckpointError, is_shape, open_regular, parse_json, remove_leftovers, write_atomic

__all__ = ["CheckpointFolder", "digest", "load", "save"]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAGIC = b"DSTEECK1"
FORMAT_VERSION = 1
MAX_HEADER = 64 << 20
_PREFIX = struct.Struct("<8sQ32s")
MAX_TENSORS = 1 << 16
_MAX_DEPTH = 32

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool,
    )
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


# --- trees <-> JSON ------------------------------------------------------------------------------------------------------


def _encode(node: object, tensors: list[Tensor], depth: int = 0) -> Json:
    if depth > _MAX_DEPTH:
        raise ValueError(f"a checkpoint tree may be {_MAX_DEPTH} levels deep at most")
    if isinstance(node, Tensor):
        if node.dtype not in _NAMES or node.layout is not torch.strided:
            raise TypeError(f"a checkpoint cannot hold a {node.layout} tensor of {node.dtype}")
        tensors.append(node)
        return {"$tensor": len(tensors) - 1}
    if isinstance(node, int) and not -(1 << 63) <= node < 1 << 64:
        raise ValueError(f"a checkpoint cannot hold {node}: more than 64 bits")
    if node is None or isinstance(node, (bool, int, str)):
        return node
    if isinstance(node, float):
        return node if math.isfinite(node) else {"$float": repr(node)}
    if isinstance(node, (list, tuple)):
        items = [_encode(item, tensors, depth + 1) for item in node]
        return items if isinstance(node, list) else {"$tuple": items}
    if isinstance(node, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in node):
            return {key: _encode(value, tensors, depth + 1) for key, value in node.items()}
        if all(isinstance(key, (str, int)) and not isinstance(key, bool) for key in node):
            return {"$dict": [[_encode(key, tensors), _encode(value, tensors, depth + 1)] for key, value in node.items()]}
    raise TypeError(f"a checkpoint holds dict, list, tuple, str, int, float, bool, None and tensors, got {type(node).__name__}")


def _decode(node: Json, tensors: Iterator[tuple[int, Tensor]], depth: int = 0) -> object:
    if depth > 2 * _MAX_DEPTH:
        raise CheckpointError("the tree is nested too deeply")
    if isinstance(node, list):
        return [_decode(item, tensors, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    special = [key for key in node if key.startswith("$")]
    if not special:
        return {key: _decode(value, tensors, depth + 1) for key, value in node.items()}
    key, value = special[0], node[special[0]]
    if len(node) == 1:
        if key == "$tensor" and type(value) is int:
            i, tensor = next(tensors, (-1, None))
            if i == value:
                return tensor
        if key == "$float" and value in ("nan", "inf", "-inf"):
            return float(value)
        if key == "$tuple" and isinstance(value, list):
            return tuple(_decode(item, tensors, depth + 1) for item in value)
        if key == "$dict" and isinstance(value, list):
            items = list(map(_item, value))
            if len({key for key, _ in items}) != len(items):
                raise CheckpointError("the tree holds a dict with a key twice")
            return {key: _decode(item, tensors, depth + 1) for key, item in items}
    raise CheckpointError(f"the tree holds an unknown node {key}")


def _item(pair: Json) -> tuple[str | int, Json]:
    if isinstance(pair, list) and len(pair) == 2 and isinstance(key := pair[0], (str, int)) and not isinstance(key, bool):
        return key, pair[1]
    raise CheckpointError("the tree holds an item without key and value")


def _bytes(tensor: Tensor) -> memoryview:
    """The elements in logical (contiguous) order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _blake2b(data: bytes | bytearray | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _pack(tree: object) -> tuple[bytes, list[memoryview]]:
    tensors: list[Tensor] = []
    encoded = _encode(tree, tensors)
    payload = [_bytes(tensor) for tensor in tensors]
    entries = [
        {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "blake2b": _blake2b(data)}
        for tensor, data in zip(tensors, payload, strict=True)
    ]
    header = {"format_version": FORMAT_VERSION, "tensors": entries, "tree": encoded}
    return json.dumps(header, allow_nan=False, separators=(",", ":")).encode(), payload


def digest(tree: object) -> str:
    """blake2b (16 bytes, hex) of everything in ``tree``: equal exactly when every value, dtype, shape and bit is equal."""
    return _blake2b(_pack(tree)[0])


# --- one file ------------------------------------------------------------------------------------------------------------


def save(path: Path, tree: object) -> None:
    """Writes ``tree`` (dict, list, tuple, str, int, float, bool, None, tensors) to ``path``, all or nothing.

    Raises:
        OSError: it could not be written; an older file of that name is untouched. TypeError, ValueError: not such a tree.
    """
    header, payload = _pack(tree)
    if len(payload) > MAX_TENSORS:
        raise ValueError(f"the checkpoint has {len(payload)} tensors, at most {MAX_TENSORS} can be read back")
    if len(header) > MAX_HEADER:
        raise ValueError(f"the checkpoint header has {len(header)} bytes, at most {MAX_HEADER} can be read back")
    write_atomic(path, [_PREFIX.pack(MAGIC, len(header), hashlib.blake2b(header, digest_size=32).digest()), header, *payload])


def load(path: Path) -> object:
    """Reads what :func:`save` wrote; tensors are on the CPU, contiguous. Sizes are checked before memory is taken.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, not a checkpoint, or of a newer format.
    """
    try:
        with open(path, "rb", opener=open_regular) as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read(file: BufferedReader, size: int) -> object:
    prefix = file.read(_PREFIX.size)
    if not MAGIC.startswith(prefix[:8]) or (size >= 8 and prefix[:8] != MAGIC):
        raise CheckpointError("not a dstee checkpoint")
    if len(prefix) < _PREFIX.size:
        raise CheckpointError(f"truncated: {size} bytes, the prefix alone has {_PREFIX.size}")
    _, length, expected = _PREFIX.unpack(prefix)
    if length > min(MAX_HEADER, size - _PREFIX.size):
        raise CheckpointError(f"truncated or damaged: the header claims {length} bytes, the file has {size}")
    text = file.read(length)
    if hashlib.blake2b(text, digest_size=32).digest() != expected:
        raise CheckpointError("damaged: the header does not match its digest")
    try:
        header = parse_json(text, max_depth=4 * _MAX_DEPTH)  # a dict with keys that are ints is three levels
    except ValueError as error:
        raise CheckpointError(f"damaged: the header is not valid: {error}") from None
    version = header.get("format_version") if isinstance(header, dict) else None
    if type(version) is not int or version < 1:
        raise CheckpointError("damaged: the header names no format version")
    if version > FORMAT_VERSION:
        raise CheckpointError(f"has format version {version}, this dstee reads up to {FORMAT_VERSION}: install a newer dstee")
    if set(header) != {"format_version", "tensors", "tree"}:
        raise CheckpointError("damaged: the header is not made of format_version, tensors and tree")
    listed = _as_list(header["tensors"])
    if len(listed) > MAX_TENSORS:
        raise CheckpointError(f"lists {len(listed)} tensors, at most {MAX_TENSORS} are read")
    entries = [_entry(i, entry) for i, entry in enumerate(listed)]
    total = sum(entry.nbytes for entry in entries)
    if total != size - _PREFIX.size - length:
        held = size - _PREFIX.size - length
        raise CheckpointError(f"truncated or damaged: the tensors need {total} bytes, the file holds {held}")
    tensors = enumerate([_read_tensor(file, i, entry) for i, entry in enumerate(entries)])
    tree = _decode(header.get("tree"), tensors)
    if next(tensors, None) is not None:
        raise CheckpointError("damaged: a tensor is not part of the tree")
    return tree


def _as_list(value: Json) -> list[Json]:
    if not isinstance(value, list):
        raise CheckpointError("damaged: the header lists no tensors")
    return value


class _Entry(NamedTuple):
    dtype: torch.dtype
    shape: list[int]
    blake2b: str
    nbytes: int


def _entry(i: int, entry: Json) -> _Entry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "blake2b"}:
        raise CheckpointError(f"damaged: tensor {i} is not described by dtype, shape and blake2b")
    shape, name = entry["shape"], entry["dtype"]
    if not isinstance(name, str) or name not in DTYPES:
        raise CheckpointError(f"damaged: tensor {i} has an unknown dtype")
    if not is_shape(shape):
        raise CheckpointError(f"damaged: tensor {i} has an impossible shape")
    sizes = cast(list[int], shape)
    return _Entry(DTYPES[name], sizes, str(entry["blake2b"]), math.prod(sizes) * DTYPES[name].itemsize)


def _read_tensor(file: BufferedReader, i: int, entry: _Entry) -> Tensor:
    data = bytearray(entry.nbytes)
    if file.readinto(data) != entry.nbytes:
        raise CheckpointError(f"truncated in tensor {i}")
    if _blake2b(data) != entry.blake2b:
        raise CheckpointError(f"damaged: tensor {i} ({entry.dtype}, {entry.shape}) does not match its digest")
    if not entry.nbytes:
        return torch.empty(entry.shape, dtype=entry.dtype)
    raw = torch.frombuffer(data, dtype=torch.uint8)
    if entry.dtype is torch.bool and int(raw.max()) > 1:
        raise CheckpointError(f"damaged: tensor {i} is bool and holds other values than 0 and 1")
    return raw.view(entry.dtype).reshape(entry.shape)


# --- the files of one training -------------------------------------------------------------------------------------------

_FILE = re.compile(r"checkpoint-([0-9]{10})\.dst")


class CheckpointFolder:
    """The checkpoints of one training, named by optimizer step; the last ``keep`` whole ones stay.

    ``warn`` gets one line for every damaged file that is skipped.
    """

    def __init__(self, folder: Path, keep: int, warn: Callable[[str], None]):
        self.folder, self.keep, self.warn = folder, keep, warn
        self._damaged: set[int] = set()

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:010d}.dst"

    def steps(self) -> list[int]:
        """Steps of the files present, oldest first, whole or not."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for name in os.listdir(self.folder) if (match := _FILE.fullmatch(name)))

    def save(self, step: int, tree: Mapping[str, object]) -> None:
        """Writes the checkpoint of ``step``, then removes those that it makes superfluous and what a killed writer left.

        Raises:
            OSError: it could not be written; the older ones are untouched.
        """
        save(self.path(step), tree)
        self._damaged.discard(step)
        older = [s for s in self.steps() if s <= step]
        whole = [s for s in older if s not in self._damaged]
        with contextlib.suppress(OSError):
            for old in set(older) - set(whole[-self.keep :]):
                os.unlink(self.path(old))
        remove_leftovers(self.folder, _FILE.pattern)

    def newest(self) -> tuple[Path, Mapping[str, object]] | None:
        """The newest whole checkpoint; damaged ones are named in a warning and skipped. None when there are no files.

        Raises:
            CheckpointError: there are files, but none is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                tree = load(self.path(step))
                if not isinstance(tree, dict) or type(tree.get("step")) is not int or tree["step"] != step:
                    raise CheckpointError(f"{self.path(step)}: does not hold step {step}, which its name says")
            except CheckpointError as error:
                self._damaged.add(step)
                self.warn(f"skipped a checkpoint: {error}")
            else:
                return self.path(step), tree
        if steps:
            raise CheckpointError(f"{self.folder}: none of {len(steps)} checkpoints is whole: remove them to train afresh")
        return None
