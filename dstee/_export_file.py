"""The safetensors file of ``SparseModel.export``: active values and packed masks, with a digest of everything.

Metadata, all text: ``format`` "dstee-sparse", ``version`` "1", and as JSON

    layers   {name: {"shape": [int], "nnz": int, "mask_digest": str}}     tensors: name.sparse_values, name.sparse_mask
    tied     {name: name of the layer that it is tied to}
    digests  {name of a tensor in the file: str}                          of its bytes
    digest   str                                                          of all that is no tensor's bytes

0.1.0 wrote neither of the last two; such a file is read with a warning. Its reader takes the new files.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dstee import ops
from dstee._console import needs
from dstee._files import CheckpointError, is_shape, open_regular, parse_json, write_atomic
from dstee._state_checks import is_int
from dstee.encoding import mask_bytes

_FORMAT, _VERSION = "dstee-sparse", "1"
_VALUES, _BITS = ".sparse_values", ".sparse_mask"
_OLD_KEYS = {"format", "version", "layers", "tied"}
_KEYS = _OLD_KEYS | {"digests", "digest"}
_LAYER_KEYS = {"shape", "nnz", "mask_digest"}
MAX_HEADER = 100_000_000
"""Bytes; the package safetensors reads no longer ones."""
MAX_TENSORS = 1 << 18


class Packed(NamedTuple):
    """A sparse weight as the file holds it: active values and mask bits in row-major order, on the CPU."""

    shape: list[int]
    nnz: int
    values: Tensor
    bits: Tensor


def _safetensors() -> tuple[ModuleType, ModuleType]:
    try:
        return importlib.import_module("safetensors"), importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ImportError(needs("a safetensors file", "safetensors", "export")) from error


def _digest(t: Tensor) -> str:
    """blake2b of the bytes, in logical order."""
    return hashlib.blake2b(t.contiguous().reshape(-1).view(torch.uint8).numpy().data, digest_size=16).hexdigest()


def _digest_of_rest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of names, dtypes, shapes and metadata."""
    described = {name: [str(t.dtype), list(t.shape)] for name, t in tensors.items()}
    text = json.dumps([described, {key: text for key, text in metadata.items() if key != "digest"}], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write(
    path: Path, state: Mapping[str, Tensor], layers: Mapping[str, Packed], aliases: Mapping[str, str]
) -> dict[str, Tensor]:
    """Writes a model's ``state``, in which the weights in ``layers`` are replaced by what these hold and ``aliases`` left out.

    Returns:
        The tensors of the file.

    Raises:
        ValueError: there are too many tensors or too long names, or names that the format uses itself. OSError: it could not be
        written.
    """
    tensors, described = {}, {}
    for name, t in state.items():
        if name in layers:
            packed = layers[name]
            tensors[name + _VALUES], tensors[name + _BITS] = packed.values, packed.bits
            described[name] = {"shape": packed.shape, "nnz": packed.nnz, "mask_digest": _digest(packed.bits)}
        elif name not in aliases:
            tensors[name] = t.cpu()
    taken = [name for name in state if name.endswith((_VALUES, _BITS))]
    if taken:
        raise ValueError(f"names of the model's state that the format uses itself: {', '.join(taken)}")
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"the file would have {len(tensors)} tensors, at most {MAX_TENSORS} can be read back")
    metadata = {"format": _FORMAT, "version": _VERSION, "layers": json.dumps(described), "tied": json.dumps(dict(aliases))}
    _, torch_part = _safetensors()
    data = torch_part.save(tensors, sign(tensors, metadata))
    if (length := int.from_bytes(data[:8], "little")) > MAX_HEADER:
        raise ValueError(f"the header of the file would have {length} bytes, at most {MAX_HEADER} can be read back")
    write_atomic(path, [data])
    return tensors


def sign(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """``metadata`` with the digests of these tensors and of itself."""
    signed = {**metadata, "digests": json.dumps({name: _digest(t) for name, t in tensors.items()})}
    return {**signed, "digest": _digest_of_rest(tensors, signed)}


Described = Mapping[str, Tensor]


def read(path: Path, check: Callable[[Described], None]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Model state and masks (bool) of a file.

    Args:
        check: is told names, shapes and dtypes of the state before weights take memory, sparse ones as meta tensors; it raises
            where they do not fit.

    Raises:
        CheckpointError: the file is missing, damaged, or not such a file. ImportError: no safetensors package.
    """
    package, _ = _safetensors()
    try:
        names = _header_names(path)
        with package.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_kind(metadata)
            tensors = {name: file.get_tensor(name) for name in names}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (OSError, ValueError, TypeError, RuntimeError, OverflowError, package.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    try:
        _check_digests(path, tensors, metadata)
        packed, tied = _described(tensors, parse_json(metadata["layers"]), parse_json(metadata["tied"]))
    except (KeyError, ValueError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path}: damaged: {reason}") from None
    shapes = {name: torch.empty(p.shape, dtype=p.values.dtype, device="meta") for name, p in packed.items()}
    check({**tensors, **shapes, **{alias: shapes[name] for alias, name in tied.items()}})
    masks = {}
    for name, p in packed.items():
        masks[name] = ops.unpack_mask(p.bits, p.shape)
        tensors[name] = p.values.new_zeros(p.shape).masked_scatter_(masks[name], p.values)
    return {**tensors, **{alias: tensors[name] for alias, name in tied.items()}}, masks


def _header_names(path: Path) -> list[str]:
    """The names of the tensors; the header is looked at before the package safetensors believes its numbers."""
    with open(path, "rb", opener=open_regular) as file:
        size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}: truncated, damaged or no safetensors file")
        text = file.read(length)
    header = parse_json(text, max_depth=8)
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    header.pop("__metadata__", None)  # the package checks it
    if len(header) > MAX_TENSORS:
        raise ValueError(f"{len(header)} tensors, at most {MAX_TENSORS} are read")
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"} or not is_shape(entry["shape"]):
            raise ValueError(f"tensor {name!r} is not described by dtype, possible shape and data_offsets")
    return list(header)


def _check_kind(metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"no {_FORMAT} file: dense weights are for model.load_state_dict")
    if metadata.get("version") != _VERSION:
        raise CheckpointError(f"has version {metadata.get('version')}, this dstee reads {_VERSION}")
    if set(metadata) not in (_KEYS, _OLD_KEYS):
        raise CheckpointError(f"damaged: its metadata are {', '.join(sorted(metadata))}, expected {', '.join(sorted(_KEYS))}")


def _check_digests(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    if "digest" not in metadata:
        warnings.warn(
            f"{path} was written by dstee 0.1.0 and carries digests of its masks only: damage to weights would not be noticed; "
            "export the model again",
            stacklevel=4,
        )
        return
    if metadata["digest"] != _digest_of_rest(tensors, metadata):
        raise ValueError("names, shapes or metadata do not match their digest")
    digests = parse_json(metadata["digests"])
    for name, t in tensors.items():
        if digests[name] != _digest(t):
            raise ValueError(f"{name} does not match its digest")
    if len(digests) != len(tensors):
        raise ValueError("there are digests of tensors that the file does not hold")


def _described(tensors: dict[str, Tensor], layers: Any, tied: Any) -> tuple[dict[str, Packed], dict[str, str]]:
    """The layers, whose parts it takes out of ``tensors``, and what is tied to them."""
    if not isinstance(layers, dict) or not isinstance(tied, dict):
        raise ValueError("layers and tied must be objects")
    packed = {name: _packed(name, entry, tensors) for name, entry in layers.items()}
    for alias, name in tied.items():
        if not isinstance(name, str) or name not in packed:
            raise ValueError(f"{alias} is tied to {name!r}, which is no layer")
    twice = (packed.keys() & tensors.keys()) | (tied.keys() & (packed.keys() | tensors.keys()))
    if twice:
        raise ValueError(f"it holds these twice: {', '.join(sorted(twice))}")
    return packed, tied


def _packed(name: str, entry: Any, tensors: dict[str, Tensor]) -> Packed:
    """Takes values and mask of a layer out of ``tensors``, checked."""
    if not isinstance(entry, dict) or set(entry) != _LAYER_KEYS:
        raise ValueError(f"{name} is not described by {', '.join(sorted(_LAYER_KEYS))}")
    values, bits = tensors.pop(name + _VALUES), tensors.pop(name + _BITS)
    shape, nnz = entry["shape"], entry["nnz"]
    if not is_shape(shape):
        raise ValueError(f"{name} has no possible shape")
    n = torch.Size(shape).numel()
    if bits.dtype != torch.uint8 or bits.shape != (mask_bytes(n),):
        raise ValueError(f"the mask of {name} is {bits.dtype} {list(bits.shape)}, {shape} needs uint8 [{mask_bytes(n)}]")
    if _digest(bits) != entry["mask_digest"]:
        raise ValueError(f"the mask of {name} does not match its digest")
    if n % 8 and int(bits[-1]) >> n % 8:
        raise ValueError(f"the mask of {name} has bits behind its {n} weights")
    active = int(ops.count_active([bits]))
    if not is_int(nnz, 0, n) or values.shape != (nnz,) or active != nnz:
        raise ValueError(f"{name} has {list(values.shape)} values and {active} active weights, expected {nnz!r}")
    return Packed(shape, nnz, values, bits)
