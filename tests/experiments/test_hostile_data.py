"""Damaged and hostile mnist.npz files: one line that names the file, soon, and without taking memory."""

import io
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from dstee._console import UsageError
from dstee.experiments import data
from dstee.experiments.data import mnist

SHAPES = {"x_train": (20, 28, 28), "y_train": (20,), "x_test": (10, 28, 28), "y_test": (10,)}


@pytest.fixture
def small(monkeypatch):
    """A data set that is made up of fewer images."""
    monkeypatch.setattr(mnist, "_MNIST", SHAPES)
    rng = np.random.default_rng(0)
    return {key: rng.integers(0, 10, shape).astype(np.uint8) for key, shape in SHAPES.items()}


def refused(folder, reason="not a usable"):
    with pytest.raises(UsageError, match=reason) as caught:
        data.load("mnist", str(folder))
    assert str(caught.value).startswith(f"{folder / 'mnist.npz'} is not a usable mnist.npz: ") and len(str(caught.value)) < 3000


def npy(array, **header):
    file = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, described | header)
    return file.getvalue() + array.tobytes()


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)


def members(arrays, **other):
    return [(f"{key}.npy", other.get(key, npy(array))) for key, array in arrays.items()]


@pytest.mark.parametrize(
    "shape", [(10**12,), (10**6, 10**6), (2**40, 28, 28), (-10,), (10, -1), (True, 10), (2**70,), (0, 2**62, 2**62), ()]
)
def test_an_array_that_declares_another_shape_takes_no_memory(tmp_path, small, shape):
    write_zip(tmp_path / "mnist.npz", members(small, y_test=npy(small["y_test"], shape=shape)))
    tracemalloc.start()
    refused(tmp_path, "array y_test|not a usable")
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "dtype", ["<u8", "O", "<f8", "|b1", "V10", "<U99", "|S9", [("a", "<u8", (10**6,))], "(1000000000,)u1", "x" * 2000, 3]
)
def test_an_array_that_declares_another_dtype_is_refused(tmp_path, small, dtype):
    write_zip(tmp_path / "mnist.npz", members(small, y_test=npy(small["y_test"], descr=dtype)))
    refused(tmp_path)


@pytest.mark.parametrize(
    "header", [b"{" * 3000, b"-" * 3000 + b"1", b"[" * 3000, b"", b"{'descr': 1}", b"\xff" * 30, b"__import__('os').abort()"]
)
def test_an_array_header_that_is_none_is_refused(tmp_path, small, header):
    text = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    for content in (text, text.replace(b"\x01\x00", b"\x09\x00", 1), b"", b"\x93NUMPY", b"\x93NUMPY\x02\x00\xff\xff\xff\xff"):
        write_zip(tmp_path / "mnist.npz", members(small, x_test=content))
        refused(tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_array_stands_there_twice_or_elsewhere(tmp_path, small):
    write_zip(tmp_path / "mnist.npz", members(small) + members({"y_test": small["y_test"]}))
    refused(tmp_path, "array y_test is there 2 times")
    rest = {key: array for key, array in small.items() if key != "y_test"}
    write_zip(tmp_path / "mnist.npz", [*members(rest), ("folder/y_test.npy", npy(small["y_test"]))])
    refused(tmp_path, "array y_test is missing")
    big = npy(np.zeros(10**6, np.uint8))
    write_zip(tmp_path / "mnist.npz", [*members(small, y_test=big), ("folder/y_test.npy", npy(small["y_test"]))])
    refused(tmp_path, "array y_test would take")


def test_a_directory_of_many_members_is_not_read(tmp_path, small):
    write_zip(tmp_path / "mnist.npz", [*members(small), *((f"{i:050d}", b"") for i in range(2000))])
    refused(tmp_path, "no zip file of a few arrays")


def test_no_damage_is_believed(tmp_path, small):
    """A flipped bit changes nothing (a time, a name's case in the local header) or is found."""
    path = tmp_path / "mnist.npz"
    np.savez_compressed(path, **small)
    whole = path.read_bytes()
    expected = data.load("mnist", str(tmp_path)).digest
    rng = random.Random(0)
    found = 0
    for i in (*range(0, len(whole), 11), *(rng.randrange(len(whole)) for _ in range(500))):
        damaged = bytearray(whole)
        damaged[i] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert data.load("mnist", str(tmp_path)).digest == expected
        except UsageError as error:
            assert str(error).startswith(f"{path} is not a usable mnist.npz: ")
            found += 1
    assert found > 500
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        refused(tmp_path)
