"""What a finished training keeps in the place of its checkpoints: the tensors of its network, and its masks.

``<method>-seed<n>/final.dst`` is a file as checkpoints are, ``{"method", "seed", "step", "round", "tensors": {name: tensor}}``;
a sparse weight stands there as ``{"shape", "bits", "values"}``: its mask, packed (:func:`dstee.ops.pack_mask`), and the active
weights, both in row-major order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dstee import CheckpointError
from dstee.experiments import checkpoint
from dstee.experiments.checkpoint import CheckpointFolder
from dstee.experiments.config import Config
from dstee.experiments.kept_masks import Masks, masks_of_state, packed, unpacked

__all__ = ["FINAL", "drop_checkpoints", "final_masks", "keep_final", "load_final"]

FINAL = "final.dst"
_KEYS = {"method", "seed", "step", "round", "tensors"}

Warn = Callable[[str], None]


def keep_final(run: Path, config: Config, warn: Warn) -> None:
    """Writes the final state of every training of a finished run, and then removes their checkpoints.

    Raises:
        OSError: a file could not be written or removed; called again, it does what is left.
    """
    for method, seed in config.trials():
        folder = run / f"{method}-seed{seed}"
        try:
            found = CheckpointFolder(folder, 1, warn).newest()
        except CheckpointError as error:
            warn(str(error))
            continue
        if found is not None:
            checkpoint.save(folder / FINAL, _final(found[1], method, seed))
    drop_checkpoints(run, config)


def drop_checkpoints(run: Path, config: Config) -> None:
    """Removes the checkpoints of all trainings. Raises OSError."""
    names = [f"{method}-seed{seed}" for method, seed in config.trials()]
    together = [f"{method}-seeds{min(seeds)}-{max(seeds)}" for method, seeds in config.trainings()]
    for name in [*names, *together]:
        checkpoints = CheckpointFolder(run / name, 1, lambda text: None)
        for step in checkpoints.steps():
            os.unlink(checkpoints.path(step))
    for name in together:
        with contextlib.suppress(OSError):  # it is not there, or holds something else
            os.rmdir(run / name)


def _final(tree: Mapping[str, Any], method: str, seed: int) -> dict[str, Any]:
    """Of a checkpoint that this dstee has written."""
    held = masks_of_state(tree)
    masks = {} if held is None else held.masks
    tensors = {
        name: {"shape": list(tensor.shape), "bits": packed(masks[name]), "values": tensor[masks[name]]}
        if name in masks
        else tensor
        for name, tensor in tree["model"].items()
    }
    return {
        "method": method,
        "seed": seed,
        "step": tree["step"],
        "round": 0 if held is None else held.round,
        "tensors": tensors,
    }


def load_final(path: Path) -> dict[str, Tensor]:
    """The trained network as a state dict, for ``load_state_dict``: dense tensors, 0 where a weight is inactive.

    Raises:
        CheckpointError: the file is missing, damaged or something else.
    """
    return {name: one if isinstance(one, Tensor) else _filled(path, one) for name, one in _read(path)["tensors"].items()}


def _filled(path: Path, one: Mapping[str, Tensor]) -> Tensor:
    mask, values = unpacked(one), one["values"]
    if values.dim() != 1 or len(values) != int(mask.sum()):
        raise CheckpointError(f"{path}: a weight has not as many values as its mask")
    return torch.zeros(mask.shape, dtype=values.dtype).masked_scatter_(mask, values)


def _read(path: Path) -> dict[str, Any]:
    tree = checkpoint.load(path)
    if not isinstance(tree, dict) or tree.keys() != _KEYS or not isinstance(tree["tensors"], dict):
        raise CheckpointError(f"{path}: holds no final state")
    if not all(type(tree[key]) is int and tree[key] >= 0 for key in ("seed", "step", "round")):
        raise CheckpointError(f"{path}: its seed, step and round are no numbers")
    for name, one in tree["tensors"].items():
        if isinstance(one, Tensor):
            continue
        try:
            unpacked(one)
            if not isinstance(one["values"], Tensor):
                raise TypeError("its values are no tensor")
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {name} is no tensor and no sparse weight: {error}") from None
    return tree


def final_masks(folder: Path, warn: Warn) -> Masks | None:
    """Those that a training ended with, or of its newest whole checkpoint; None where it has none, or no masks (dense).

    Raises:
        CheckpointError: no file is whole, or what it holds are no masks.
    """
    if not (folder / FINAL).exists():
        found = CheckpointFolder(folder, 1, warn).newest()
        if found is None:
            return None
        try:
            return masks_of_state(found[1])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{found[0]}: holds no masks that can be read: {error}") from None
    tree = _read(folder / FINAL)
    masks = {name: unpacked(one) for name, one in tree["tensors"].items() if not isinstance(one, Tensor)}
    return Masks(tree["step"], tree["round"], masks) if masks else None
