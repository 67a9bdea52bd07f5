"""The masks of a training after every recorded update, where ``keep_masks`` asks for them; and how files hold masks.

``<method>-seed<n>/masks-<round>.dst`` are files as checkpoints are: ``{"step", "round", "masks": {name: {"shape", "bits"}}}``,
the bits packed (:func:`dstee.ops.pack_mask`) in row-major order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dstee
from dstee import CheckpointError, ops
from dstee._files import is_shape
from dstee.experiments import checkpoint

__all__ = ["Masks", "kept_rounds", "load_masks", "masks_of_state", "packed", "save_masks", "unpacked"]

_FILE = re.compile(r"masks-([0-9]{10})\.dst")


class Masks(NamedTuple):
    """The masks after ``round`` updates, at ``step``: bool, by the name of the weight."""

    step: int
    round: int
    masks: Mapping[str, Tensor]


def save_masks(folder: Path, sparse: dstee.SparseModel) -> None:
    """Writes the masks as they are. Raises OSError: they could not be written."""
    masks = {name: {"shape": list(mask.shape), "bits": packed(mask)} for name, mask in sparse.masks().items()}
    path = folder / f"masks-{sparse.round:010d}.dst"
    checkpoint.save(path, {"step": sparse.t, "round": sparse.round, "masks": masks})


def packed(mask: Tensor) -> Tensor:
    """The bits of a mask in row-major order."""
    return ops.pack_mask(mask.cpu().contiguous())


def kept_rounds(folder: Path) -> dict[int, Path]:
    """The files of a training, by round."""
    found = {int(match[1]): file for file in folder.iterdir() if (match := _FILE.fullmatch(file.name))}
    return dict(sorted(found.items()))


def load_masks(path: Path) -> Masks:
    """What :func:`save_masks` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or something else.
    """
    tree = checkpoint.load(path)
    if not isinstance(tree, dict) or tree.keys() != {"step", "round", "masks"} or not isinstance(tree["masks"], dict):
        raise CheckpointError(f"{path}: holds no masks")
    if not all(type(tree[key]) is int and tree[key] >= 0 for key in ("step", "round")):
        raise CheckpointError(f"{path}: its step and round are no numbers")
    try:
        masks = {name: unpacked(one) for name, one in tree["masks"].items()}
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    return Masks(tree["step"], tree["round"], masks)


def unpacked(one: Any, key: str = "bits") -> Tensor:
    """The mask whose ``shape`` and bits (under ``key``) an entry of a file holds. Raises LookupError, TypeError, ValueError."""
    bits, shape = one[key], one["shape"]
    if not is_shape(shape):
        raise ValueError("a mask has an impossible shape")
    numel = torch.Size(shape).numel()
    if not isinstance(bits, Tensor) or bits.dtype is not torch.uint8 or list(bits.shape) != [-(-numel // 8)]:
        raise ValueError(f"a mask of the shape {shape} has not the bits of one")
    return ops.unpack_mask(bits, tuple(shape))


def masks_of_state(tree: Mapping[str, Any]) -> Masks | None:
    """Those of a training's checkpoint; None where it has none (dense). Raises LookupError, TypeError, ValueError."""
    sparse: Any = tree["sparse"]
    if sparse is not None and "freeze_at" in sparse:  # STR has masks from there on
        sparse = sparse["sparse"]
    if sparse is None:
        return None
    masks = {name: unpacked(layer, "mask") for name, layer in sparse["layers"].items()}
    return Masks(int(sparse["t"]), int(sparse["round"]), masks)
