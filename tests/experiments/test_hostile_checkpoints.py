"""Checkpoint files whose digests are right and whose content is not: refused in one line, soon, and without taking memory."""

import hashlib
import json
import os
import struct
import time

import pytest
import torch

from dstee import CheckpointError
from dstee.experiments import checkpoint


def write_header(path, header, payload=b""):
    """A file whose digests are right, so that only the checks of the content stand in its way."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    prefix = struct.pack("<8sQ32s", b"DSTEECK1", len(text), hashlib.blake2b(text, digest_size=32).digest())
    path.write_bytes(prefix + text + payload)


def tensor_entry(dtype="uint8", shape=(4,), payload=b"\0\1\2\3"):
    return {"dtype": dtype, "shape": list(shape), "blake2b": hashlib.blake2b(payload, digest_size=16).hexdigest()}


def header_with(entry=None, tree=None, **more):
    entries = [] if entry is None else [entry]
    return {"format_version": 1, "tensors": entries, "tree": tree if tree is not None else {"a": {"$tensor": 0}}, **more}


HOSTILE = {
    "huge shape": header_with(tensor_entry(shape=(10**6, 10**6))),
    "product overflows 64 bits": header_with(tensor_entry(shape=(2**33, 2**33))),
    "huge dimension of an empty tensor": header_with(tensor_entry(shape=(0, 2**62))),
    "strides overflow": header_with(tensor_entry(shape=(0, 2**39, 2**39), payload=b"")),
    "negative shape": header_with(tensor_entry(shape=(-2, -2))),
    "bool in shape": header_with(tensor_entry(shape=(True, 4))),
    "float in shape": header_with(tensor_entry(shape=(4.0,))),
    "many dimensions": header_with(tensor_entry(shape=(1,) * 40 + (4,))),
    "unknown dtype": header_with(tensor_entry(dtype="object")),
    "dtype of another type": header_with(tensor_entry(dtype=["uint8"])),
    "wrong digest": header_with({**tensor_entry(), "blake2b": "0" * 32}),
    "digest of another type": header_with({**tensor_entry(), "blake2b": None}),
    "bool that is 2": header_with(tensor_entry(dtype="bool")),
    "extra key": header_with({**tensor_entry(), "offset": 0}),
    "tensor missing": header_with(None),
    "tensor unused": header_with(tensor_entry(), tree={"a": 1}),
    "tensor used twice": header_with(tensor_entry(), tree=[{"$tensor": 0}, {"$tensor": 0}]),
    "tensor by another number": header_with(tensor_entry(), tree=[{"$tensor": 1}]),
    "unknown node": header_with(tensor_entry(), tree=[{"$tensor": 0}, {"$call": "os.system"}]),
    "node with more": header_with(tensor_entry(), tree={"$tensor": 0, "a": 1}),
    "unhashable key": header_with(tensor_entry(), tree=[{"$tensor": 0}, {"$dict": [[[1], 2]]}]),
    "odd float": header_with(tensor_entry(), tree=[{"$tensor": 0}, {"$float": "1"}]),
    "no tensors": {"format_version": 1, "tree": {}},
    "a list": [1, 2],
    "no version": {"tensors": [], "tree": {}},
    "version is true": header_with(tensor_entry()) | {"format_version": True},
    "version is a float": header_with(tensor_entry()) | {"format_version": 1.0},
    "negative version": header_with(tensor_entry()) | {"format_version": -1},
    "unknown entry": header_with(tensor_entry(), more=1),
    "no tree": {"format_version": 1, "tensors": []},
    "a key twice": header_with(tensor_entry(), tree=[{"$tensor": 0}, {"$dict": [["a", 1], ["a", 2]]}]),
    "a key that is true": header_with(tensor_entry(), tree=[{"$tensor": 0}, {"$dict": [[True, 1], [2, 2]]}]),
    "a number of 65 bits": header_with(tensor_entry(), tree=[{"$tensor": 0}, 2**64]),
    "a number of 10^5 digits": b'{"format_version": 1, "tensors": [], "tree": ' + b"9" * 100_000 + b"}",
    "not JSON": b"{",
    "NaN": b'{"format_version": 1, "tensors": [], "tree": NaN}',
    "overflowing number": b'{"format_version": 1, "tensors": [], "tree": 1e999}',
    "duplicate key": b'{"format_version": 1, "format_version": 1, "tensors": [], "tree": {}}',
    "not UTF-8": b"\xff\xfe",
    "very deep": b"[" * 100_000 + b"]" * 100_000,
    "deep tree": b'{"format_version":1,"tensors":[],"tree":' + b"[" * 500 + b"]" * 500 + b"}",
    "empty": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path, name):
    """Small files with honest digests and impossible content: refused without taking memory, in one line."""
    path = tmp_path / "x.dst"
    wants_payload = isinstance(HOSTILE[name], dict) and HOSTILE[name].get("tensors") and name != "strides overflow"
    write_header(path, HOSTILE[name], b"\0\1\2\3" if wants_payload else b"")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < 400


def test_the_hostile_builder_can_build_a_good_file(tmp_path):
    write_header(tmp_path / "x", header_with(tensor_entry()), b"\0\1\2\3")
    assert torch.equal(checkpoint.load(tmp_path / "x")["a"], torch.arange(4, dtype=torch.uint8))


@pytest.mark.long
def test_half_a_million_empty_tensors_are_refused_soon(tmp_path):
    n = 500_000
    entry = json.dumps(tensor_entry(shape=(0,), payload=b""))
    tree = ",".join(f'{{"$tensor":{i}}}' for i in range(n))
    write_header(tmp_path / "x", f'{{"format_version":1,"tensors":[{",".join([entry] * n)}],"tree":[{tree}]}}'.encode())
    begin = time.process_time()
    with pytest.raises(CheckpointError, match="x: lists 500000 tensors, at most 65536"):
        checkpoint.load(tmp_path / "x")
    assert time.process_time() - begin < 20  # seconds on a slow machine


def test_too_many_tensors_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_TENSORS", 3)
    checkpoint.save(tmp_path / "x", [torch.zeros(1)] * 3)
    with pytest.raises(ValueError, match="has 4 tensors, at most 3 can be read back"):
        checkpoint.save(tmp_path / "y", [torch.zeros(1)] * 4)
    assert os.listdir(tmp_path) == ["x"] and len(checkpoint.load(tmp_path / "x")) == 3


def test_a_header_of_more_than_the_limit_is_neither_read_nor_written(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "x", ["a" * 1000])
    monkeypatch.setattr(checkpoint, "MAX_HEADER", 1000)
    with pytest.raises(CheckpointError, match=r"x: truncated or damaged: the header claims \d+ bytes"):
        checkpoint.load(tmp_path / "x")
    with pytest.raises(ValueError, match=r"the checkpoint header has \d+ bytes, at most 1000 can be read back"):
        checkpoint.save(tmp_path / "y", ["a" * 1000])
    assert os.listdir(tmp_path) == ["x"]
    checkpoint.save(tmp_path / "y", ["a" * 900])
    assert checkpoint.load(tmp_path / "y") == ["a" * 900]


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, {2**64: 1}, {True: 1, "a": 2}])
def test_numbers_and_keys_that_cannot_be_read_back_are_not_written(tmp_path, value):
    with pytest.raises((TypeError, ValueError), match="checkpoint"):
        checkpoint.save(tmp_path / "x", [value])
    assert os.listdir(tmp_path) == []
    for fits in (2**64 - 1, -(2**63), {2**64 - 1: 1}):
        checkpoint.save(tmp_path / "x", [fits])
        assert checkpoint.load(tmp_path / "x") == [fits]


def test_header_length_is_bounded_by_the_file(tmp_path):
    for length in (2**63, 2**40, 1000):
        (tmp_path / "x").write_bytes(struct.pack("<8sQ32s", b"DSTEECK1", length, b"") + b"{}")
        with pytest.raises(CheckpointError, match="the header claims"):
            checkpoint.load(tmp_path / "x")


def test_newer_format_says_what_to_do(tmp_path):
    write_header(tmp_path / "x", {"format_version": 2})
    with pytest.raises(CheckpointError, match="install a newer dstee"):
        checkpoint.load(tmp_path / "x")
