"""The pickled files of CIFAR's Python form, read without running anything that they name."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np

__all__ = ["read_batch"]

_PLAIN = {
    "PROTO", "FRAME", "STOP", "MARK", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "SHORT_BINUNICODE",
    "BINUNICODE", "BININT", "BININT1", "BININT2", "APPEND", "APPENDS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
    "MEMOIZE",
}  # fmt: skip
_FEW = {
    "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SETITEM", "SETITEMS", "NONE", "NEWTRUE",
    "NEWFALSE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
_MOST_FEW = 100  # depth comes from these alone
_MOST_MEMO = 1 << 21  # the unpickler's memo is an array


def read_batch(text: bytes, label_key: str, count: int, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [count, row] and labels int64 [count] of a file as Python 2 or 3 wrote it.

    Args:
        label_key: "labels" or "fine_labels", the entry beside "data".

    Raises:
        ValueError: it is no such file, or would do more than hold numbers, texts and one array.
    """
    _check_opcodes(text)
    try:
        found = _Unpickler(io.BytesIO(text), encoding="bytes").load()
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise ValueError(f"no pickle of a batch of images ({type(error).__name__}: {error})") from error
    if type(found) is not dict:
        raise ValueError("no pickled dict")
    entries = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in found.items()}
    data, labels = entries.get("data"), entries.get(label_key)
    if type(data) is not _Array:
        raise ValueError("entry data is missing or no array")
    if type(labels) is not list or len(labels) != count or not all(type(label) is int for label in labels):
        raise ValueError(f"entry {label_key} is missing or no list of {count} whole numbers")
    return data.pixels(count, row), np.array([min(max(label, -1), 1 << 20) for label in labels], np.int64)


def _check_opcodes(text: bytes) -> None:
    """Before anything is built: only what such files are made of, and no more of it than they have."""
    few = 0
    for opcode, argument, _ in pickletools.genops(text):  # raises ValueError for what is no pickle
        if opcode.name in _FEW:
            few += 1
        elif opcode.name not in _PLAIN:
            raise ValueError(f"it has the pickle opcode {opcode.name}, which no batch of images has")
        if opcode.name == "LONG_BINPUT" and (argument or 0) > _MOST_MEMO:
            raise ValueError("it has a memo that no batch of images needs")
    if few > _MOST_FEW:
        raise ValueError(f"it builds {few} objects, a batch of images has less than {_MOST_FEW}")


class _Array:
    """Stands in for numpy.ndarray: keeps what a pickle says of it."""

    state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def pixels(self, count: int, row: int) -> np.ndarray:
        """uint8 [count, row]."""
        if type(self.state) is not tuple or len(self.state) != 5:
            raise ValueError("entry data is no whole array")
        _, shape, dtype, columns_first, raw = self.state
        if shape != (count, row) or type(dtype) is not _Dtype or dtype.name not in ("u1", "uint8"):
            kind = dtype.name if type(dtype) is _Dtype else "unknown"
            raise ValueError(f"entry data is {kind} {shape}, expected u1 {(count, row)}")
        if columns_first not in (False, 0) or type(raw) is not bytes or len(raw) != count * row:
            raise ValueError("entry data has not the bytes of its shape")
        return np.frombuffer(raw, np.uint8).reshape(count, row)


class _Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, name: object = "", *rest: object):
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:  # byte order and alignment: nothing for bytes
        pass


def _reconstruct(*arguments: object) -> _Array:
    return _Array()


def _encode(text: object, encoding: object) -> bytes:
    """How Python 3 writes bytes in the protocol of Python 2."""
    if type(text) is not str or encoding not in ("latin1", b"latin1"):
        raise ValueError("it holds bytes in an unknown encoding")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (found := _STAND_INS.get((module, name))) is None:
            raise ValueError(f"it names {module}.{name}, which no batch of images needs")
        return found
