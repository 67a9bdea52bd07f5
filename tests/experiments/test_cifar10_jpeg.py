"""cifar10_jpeg.npz: decoded as Pillow decodes it, and refused in one line where it is damaged."""

import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_cifar import jpeg_arrays, jpeg_parts

from dstee import cli
from dstee._console import UsageError
from dstee.experiments import data
from dstee.experiments.data import cifar10_jpeg


@pytest.fixture
def arrays(monkeypatch):
    """Seven images for training, three of the test set."""
    monkeypatch.setattr(cifar10_jpeg, "_TRAIN", 7)
    monkeypatch.setattr(cifar10_jpeg, "_TEST", 3)
    rng = np.random.default_rng(0)
    return jpeg_arrays(rng.integers(0, 256, (10, 32, 32, 3), np.uint8), np.arange(10))


def load(folder, **arrays):
    np.savez_compressed(folder / "cifar10_jpeg.npz", allow_pickle=True, **arrays)
    return data.load("cifar10-jpeg", str(folder))


def test_images_are_what_the_joined_bytes_decode_to(tmp_path, arrays):
    got = load(tmp_path, **arrays)
    assert (got.size("train"), got.size("test"), got.shape, got.classes) == (7, 3, (3, 32, 32), 10)
    assert got.x_train.dtype is torch.uint8 and got.y_test.tolist() == [7, 8, 9]
    start = int(arrays["lengths"][:8].sum())
    scan = arrays["scans"][start : start + int(arrays["lengths"][8])]
    pixels = np.asarray(Image.open(io.BytesIO(b"".join((arrays["header"].tobytes(), scan.tobytes(), b"\xff\xd9")))))
    for channel in range(3):
        assert np.array_equal(got.x_test[1, channel].numpy(), pixels[:, :, channel])
    first, label = next(got.batches_of("test", 2))
    expected = (got.x_test[0, 2].double() - 0.4465 * 255) / (0.2606 * 255)
    assert label.tolist() == [7, 8] and torch.allclose(first[0, 2].double(), expected, atol=1e-6)
    assert "not those of CIFAR-10" in got.note


def test_damage_is_named(tmp_path, arrays):
    grey, grey_scan = jpeg_parts(np.zeros((32, 32), np.uint8))
    large, large_scan = jpeg_parts(np.zeros((40, 32, 3), np.uint8))
    huge = bytearray(arrays["header"].tobytes())
    at = huge.index(b"\xff\xc0") + 5
    huge[at : at + 4] = b"\xff\xdc\xff\xdc"  # 65,500 x 65,500 pixels
    one = arrays["lengths"].copy()
    one[3] += 1
    none = arrays["lengths"].copy()
    none[3] = 0
    flat = np.frombuffer
    for change, reason in (
        ({"labels": np.full(10, 10, np.uint8)}, r"labels has labels outside 0\.\.9"),
        ({"labels": np.zeros(9, np.uint8)}, r"array labels is uint8 \[9\], expected integers \[10\]"),
        ({"lengths": one}, "lengths add up to"),
        ({"lengths": none}, r"lengths outside 1\.\.4096"),
        ({"header": np.array([print], dtype=object)}, "array header is object"),
        ({"header": np.zeros(5000, np.uint8)}, r"header is uint8 \[5000\], expected integers \[header bytes\] of at most 4096"),
        ({"header": np.zeros(700, np.uint8)}, "image 0 is no JPEG"),
        ({"header": flat(bytes(huge), np.uint8)}, r"image 0 is no JPEG that can be decoded \(DecompressionBombError\)"),
        ({"header": flat(grey, np.uint8), "scans": flat(grey_scan * 10, np.uint8),
          "lengths": np.full(10, len(grey_scan), np.uint16)}, "image 0 is L 32 x 32, expected RGB 32 x 32"),
        ({"header": flat(large, np.uint8), "scans": flat(large_scan * 10, np.uint8),
          "lengths": np.full(10, len(large_scan), np.uint16)}, "image 0 is RGB 32 x 40, expected"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=reason) as caught:
            load(tmp_path, **{**arrays, **change})
        assert str(caught.value).startswith(f"{tmp_path / 'cifar10_jpeg.npz'} is not a usable")
    with pytest.raises(UsageError, match="array scans is missing"):
        load(tmp_path, **{key: array for key, array in arrays.items() if key != "scans"})


def test_without_a_file_or_folder_the_text_says_what_to_pass(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"no file .*cifar10_jpeg\.npz: pass the folder"):
        data.load("cifar10-jpeg", str(tmp_path))
    monkeypatch.delenv("DSTEE_DATA", raising=False)
    with pytest.raises(UsageError, match=r"needs the folder of cifar10_jpeg\.npz"):
        data.load("cifar10-jpeg", None)


def test_a_training_says_that_the_images_were_recompressed(tmp_path, arrays, capsys):
    load(tmp_path, **arrays)
    options = ["--epochs", "1", "--batch-size", "3", "--sparsity", "0.8", "--data-dir", str(tmp_path)]
    assert cli.main(["train", "--data", "cifar10-jpeg", "--out", str(tmp_path / "run"), *options]) == 0
    told = capsys.readouterr().out
    assert "7 training and 3 test images" in told and "JPEG-recompressed CIFAR-10" in told
    assert json.loads((tmp_path / "run" / "results.json").read_text())["results"][0]["numel"] == 94_304


@pytest.mark.slow
@pytest.mark.skipif("DSTEE_DATA" not in os.environ, reason="needs cifar10_jpeg.npz: set DSTEE_DATA to its folder")
def test_the_mean_and_deviation_are_those_of_the_training_set():
    got = data.load("cifar10-jpeg", None)
    x = got.x_train.permute(1, 0, 2, 3).flatten(1).double()
    assert torch.allclose(x.mean(1), torch.tensor(got.mean).double(), atol=0.02)
    assert torch.allclose(x.std(1), torch.tensor(got.std).double(), atol=0.02)
    assert got.y_train.bincount().tolist() == [5000] * 10 and got.y_test.bincount().tolist() == [1000] * 10
