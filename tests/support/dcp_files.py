"""A training's checkpoint by torch.distributed.checkpoint, as people write it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import dstee

__all__ = ["load", "save"]


def _states(model: nn.Module, sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    weights, momenta = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": momenta, "sparse": sparse.state_dict()}


def save(folder: str, model: nn.Module, sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer) -> None:
    dcp.save(_states(model, sparse, optimizer), checkpoint_id=folder)


def load(folder: str, model: nn.Module, sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer) -> None:
    found = _states(model, sparse, optimizer)
    dcp.load(found, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
    sparse.load_state_dict(found["sparse"])
