"""CIFAR's archives: one data set in four forms, and nothing that a file says is executed, unpacked or believed."""

import dataclasses
import gzip
import os
import pickle
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest
from support.tiny_cifar import Py2, write_tar

from dstee._console import UsageError
from dstee.experiments.data import cifar
from dstee.experiments.data.cifar import load_cifar
from dstee.experiments.data.cifar_pickle import read_batch

TINY10 = dataclasses.replace(cifar.CIFAR10, counts=(4, 3))
TINY100 = dataclasses.replace(cifar.CIFAR100, counts=(6, 3))
RNG = np.random.default_rng(0)
SIZES = {**{f"data_batch_{i}": 4 for i in range(1, 6)}, "test_batch": 3, "train": 6, "test": 3}
PIXELS = {name: RNG.integers(0, 256, (n, 3072), np.uint8) for name, n in SIZES.items()}
LABELS = {name: [(37 * i + 60) % (10 if "batch" in name else 100) for i in range(n)] for name, n in SIZES.items()}


def files(form):
    """The files of a form, by name."""
    found = {}
    for name in (*form.train, form.test):
        plain = name.removesuffix(".bin")
        x, y = PIXELS[plain], LABELS[plain]
        if form.key:
            found[name] = Py2().batch(x, y, form.key.encode())
        else:
            first = [[y[i]] if form.labels == 1 else [99, y[i]] for i in range(len(y))]
            found[name] = np.concatenate([np.array(first, np.uint8), x], 1).tobytes()
    return found


def in_folder(folder, form, content):
    (folder / form.folder).mkdir()
    for name, data in content.items():
        (folder / form.folder / name).write_bytes(data)


def packed(folder, form, content):
    write_tar(folder / form.archive, [(f"{form.folder}/{name}", data) for name, data in content.items()])


@pytest.mark.parametrize("tiny", [TINY10, TINY100], ids=lambda tiny: tiny.key)
def test_all_forms_are_the_same_data(tmp_path, tiny):
    digests = set()
    for form in tiny.forms:
        for i, write in enumerate((in_folder, packed)):
            folder = tmp_path / f"{form.folder}-{i}"
            folder.mkdir()
            write(folder, form, files(form))
            got = load_cifar(tiny, str(folder))
            digests.add(got.digest)
    assert len(digests) == 1
    train = [name.removesuffix(".bin") for name in tiny.forms[0].train]
    assert got.y_train.tolist() == [label for name in train for label in LABELS[name]] and got.classes == tiny.classes
    pixels = np.concatenate([PIXELS[name] for name in train])
    assert got.x_train.shape == (len(pixels), 3, 32, 32)
    for image, channel, row, column in ((0, 0, 0, 0), (3, 2, 31, 30), (5, 1, 7, 0)):
        assert got.x_train[image, channel, row, column] == pixels[image, 1024 * channel + 32 * row + column]


def test_python_3_may_have_written_the_batch():
    x, y = PIXELS["test_batch"], LABELS["test_batch"]
    for protocol in (2, 3, 4):
        got, labels = read_batch(pickle.dumps({"data": x, "labels": y, b"batch_label": b"x"}, protocol), "labels", 3, 3072)
        assert np.array_equal(got, x) and labels.tolist() == y


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_no_pickle_executes_anything(tmp_path, monkeypatch):
    target = tmp_path / "executed"
    x, y = PIXELS["test_batch"], LABELS["test_batch"]
    touch = f"touch {target}"
    hostile = [
        pickle.dumps({"data": x, "labels": Runs(os.system, touch)}, protocol) for protocol in range(6)
    ] + [
        b"cos\nsystem\n(S'%b'\ntR." % touch.encode(),
        b"\x80\x02(S'%b'\nios\nsystem\n." % touch.encode(),
        b"\x80\x02cbuiltins\neval\nU\x05print\x85R.",
        b"\x80\x02cnumpy\nload\nU\x01a\x85R.",
        b"\x80\x02cnumpy\nndarray.tofile\n)R.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.data\x93.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00rot\x86R.",
        pickle.dumps({"data": np.array([Runs(os.system, touch)], dtype=object), "labels": y}, 2),
        pickle.dumps({"data": x, "labels": [Runs(os.system, touch)]}, 2),
    ]  # fmt: skip
    for text in hostile:
        with pytest.raises(ValueError):
            read_batch(text, "labels", 3, 3072)
        assert not target.exists()
    form = TINY10.forms[1]
    packed(tmp_path, form, {**files(form), "test_batch": hostile[2]})
    with pytest.raises(UsageError, match=r"test_batch: it names (posix|nt)\.system, which no batch of images needs"):
        load_cifar(TINY10, str(tmp_path))
    assert not target.exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "pickle exhausted"),
        (b"\x80\x02}.", "entry data is missing"),
        (b"\x80\x02].", "no pickled dict"),
        (b"\x80\x02" + b")" + b"\x85" * 200_000 + b"}N.", "builds 200003 objects"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "a memo"),
        (b"\x80\x02}T\xff\xff\xff\x7fxx.", "expected 2147483647 bytes"),
        (b"\x80\x04}\x8e" + struct.pack("<Q", 1 << 62) + b".", "expected 46116860|BINBYTES8"),
        (b"\x80\x02e.", "no pickle of a batch"),
        (Py2().batch(PIXELS["test_batch"], [1, 2]), "labels is missing or no list of 3"),
        (Py2().batch(PIXELS["test_batch"][:2], [1, 2, 3]), r"data is u1 \(2, 3072\), expected u1 \(3, 3072\)"),
        (Py2().batch(PIXELS["test_batch"], [1, 2, 3], kind=b"O"), "data is O"),
        (Py2().batch(PIXELS["test_batch"], [1, 2, 3], kind=b"u4"), "data is u4"),
        (Py2().batch(PIXELS["test_batch"], [1, 2, 3], raw=b"x" * 9215), "not the bytes of its shape"),
        (Py2().batch(PIXELS["test_batch"], [1, 2, 3], b"fine_labels"), "entry labels is missing"),
        (pickle.dumps({"data": PIXELS["test_batch"], "labels": [1, 2, True]}, 2), "no list of 3 whole numbers"),
        (pickle.dumps({"data": b"x", "labels": [1, 2, 3]}, 2), "data is missing or no array"),
        (pickle.dumps({"data": np.asfortranarray(PIXELS["test_batch"]), "labels": [1, 2, 3]}, 2), "not the bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_other_pickles_are_refused(text, reason):
    tracemalloc.start()
    with pytest.raises(ValueError, match=reason):
        read_batch(text, "labels", 3, 3072)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_no_damage_of_a_pickle_is_more_than_an_error():
    whole = Py2().batch(PIXELS["test_batch"], LABELS["test_batch"])
    rng = np.random.default_rng(1)
    head = [i for i in range(len(whole)) if i < 250 or i > len(whole) - 150]
    for i in head:
        damaged = bytearray(whole)
        damaged[i] = rng.integers(256)
        try:
            x, y = read_batch(bytes(damaged), "labels", 3, 3072)
        except ValueError:
            continue
        assert x.shape == (3, 3072) and y.shape == (3,)
    for length in range(0, len(whole), 53):
        with pytest.raises(ValueError):
            read_batch(whole[:length], "labels", 3, 3072)


@pytest.mark.parametrize("write", [in_folder, packed])
def test_wrong_files_are_named(tmp_path, write):
    form = TINY10.forms[0]
    good = files(form)
    for i, (change, reason) in enumerate((
        ({"data_batch_3.bin": good["data_batch_3.bin"][:-1]}, "data_batch_3.bin: it has 12291 bytes, expected 12292: 4 images"),
        ({"test_batch.bin": good["data_batch_1.bin"]}, r"more than 9219 bytes|at most 9219 bytes"),
        ({"test_batch.bin": b"\x0a" + good["test_batch.bin"][1:]}, r"test_batch.bin: it has labels outside 0\.\.9"),
        ({"data_batch_5.bin": None}, "data_batch_5.bin"),
    )):  # fmt: skip
        folder = tmp_path / str(i)
        folder.mkdir()
        write(folder, form, {name: data for name, data in {**good, **change}.items() if data is not None})
        with pytest.raises(UsageError, match=reason) as caught:
            load_cifar(TINY10, str(folder))
        assert "is not a usable cifar10: " in str(caught.value)


def link(name, kind, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_members_with_other_names_links_and_devices_are_no_files(tmp_path):
    form = TINY10.forms[0]
    good = [(f"{form.folder}/{name}", data) for name, data in files(form).items()]
    last, content = good[-1]
    outside = tmp_path / "outside"
    for changed, reason in (
        ([(f"/{last}", content)], "is missing"), ([(f"{form.folder}/../{last}", content)], "is missing"),
        ([(link(last, tarfile.SYMTYPE, "/etc/passwd"), b"")], "no regular file"),
        ([(link(last, tarfile.LNKTYPE, good[0][0]), b"")], "no regular file"),
        ([(link(last, tarfile.FIFOTYPE, ""), b"")], "no regular file"),
        ([(last, content), (last, content)], "is there twice"),
        ([(str(outside), b"x"), *((f"{i}", b"") for i in range(100))], "more than 100 members"),
    ):  # fmt: skip
        write_tar(tmp_path / form.archive, [*good[:-1], *changed])
        with pytest.raises(UsageError, match=reason):
            load_cifar(TINY10, str(tmp_path))
    assert not outside.exists()
    write_tar(tmp_path / form.archive, [("/etc/passwd", b"x"), ("../evil", b"x"), *good])
    assert load_cifar(TINY10, str(tmp_path)).size("test") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [form.archive]


def test_endless_and_damaged_archives_end(tmp_path):
    form = TINY10.forms[0]
    path = tmp_path / form.archive
    packed(tmp_path, form, files(form))
    whole = path.read_bytes()
    tar = gzip.decompress(whole)
    long_name = tarfile.TarInfo("x")
    long_name.type, long_name.size = tarfile.XHDTYPE, 1 << 40
    hostile = (
        b"", whole[: len(whole) // 2], whole[:-3], tar, gzip.compress(tar[:3000]), gzip.compress(tar + bytes(8 << 20)),
        gzip.compress(long_name.tobuf() + bytes(8 << 20)), gzip.compress(b"no tar" * 1000),
    )  # fmt: skip
    tracemalloc.start()
    for content in hostile:
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"cifar-10-binary\.tar\.gz is not a usable cifar10: "):
            load_cifar(TINY10, str(tmp_path))
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()
    expected, rng, found = None, np.random.default_rng(2), 0
    for at in (None, *range(10, len(whole), 701)):
        damaged = bytearray(whole)
        if at is not None:
            damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            digest = load_cifar(TINY10, str(tmp_path)).digest
            expected = expected or digest
            assert digest == expected
        except UsageError:
            found += 1
    assert found > 50


def test_without_any_form_all_are_named(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"no cifar100 in .*cifar-100-binary/, cifar-100-binary\.tar\.gz, cifar-100-python/, "):
        load_cifar(TINY100, str(tmp_path))
    monkeypatch.delenv("DSTEE_DATA", raising=False)
    with pytest.raises(UsageError, match="--data cifar10 needs the folder of cifar-10-batches-bin/ or "):
        load_cifar(TINY10, None)
