"""CIFAR in the forms in which it is passed on, with a few images."""

from __future__ import annotations

import io

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
