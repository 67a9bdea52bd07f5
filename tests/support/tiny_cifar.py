"""CIFAR in the forms in which it is passed on, with a few images."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg_parts(pixels: np.ndarray, **options: object) -> tuple[bytes, bytes]:
    """Header and scan of an image uint8 [height, width, 3] or [height, width] (the end marker is left out)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **{"quality": 90, **options})
    jpeg = file.getvalue()
    start = jpeg.index(b"\xff\xda")
    end = start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
    return jpeg[:end], jpeg[end:-2]


def jpeg_arrays(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of cifar10_jpeg.npz for images uint8 [n, height, width, 3]."""
    headers, scans = zip(*(jpeg_parts(image) for image in images), strict=True)
    assert len(set(headers)) == 1
    return {
        "header": np.frombuffer(headers[0], np.uint8),
        "scans": np.frombuffer(b"".join(scans), np.uint8),
        "lengths": np.array([len(scan) for scan in scans], np.uint16),
        "labels": labels.astype(np.uint8),
        "classes": np.array([f"class{i}" for i in range(10)]),
    }


class Py2:
    """The pickle of a batch, opcode by opcode as Python 2 wrote it; ``memo`` numbers, which it also has, are left out."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")

    def text(self, value: bytes) -> None:
        self.out += b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def numbers(self, values: list[int]) -> None:
        self.out += b"](" + b"".join(b"M" + struct.pack("<H", v) if v > 255 else b"K" + bytes([v]) for v in values) + b"e"

    def array(self, pixels: np.ndarray, kind: bytes = b"u1", raw: bytes | None = None) -> None:
        self.out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        self.text(b"b")
        self.out += b"\x87R(K\x01" + b"".join(b"J" + struct.pack("<i", size) for size in pixels.shape) + b"\x86cnumpy\ndtype\n"
        self.text(kind)
        self.out += b"K\x00K\x01\x87R(K\x03"
        self.text(b"|")
        self.out += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        self.text(pixels.tobytes() if raw is None else raw)
        self.out += b"tb"

    def batch(self, pixels: np.ndarray, labels: list[int], key: bytes = b"labels", **array: object) -> bytes:
        self.out += b"}("
        self.text(b"data")
        self.array(pixels, **array)  # type: ignore[arg-type]
        self.text(key)
        self.numbers(labels)
        self.text(b"batch_label")
        self.text(b"training batch 1 of 5")
        self.text(b"filenames")
        self.out += b"]("
        for i in range(len(pixels)):
            self.text(b"aeroplane_s_%06d.png" % i)
        self.out += b"eu."
        return bytes(self.out)


def write_tar(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if isinstance(name, str):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
