"""Kernels write behind autograd's back: the tensors that they wrote are marked as changed here."""

from __future__ import annotations

import torch

__all__ = ["bump", "written"]


def bump(tensors: list[torch.Tensor]) -> None:
    try:
        torch.autograd.graph.increment_version(tensors)
    except RuntimeError:  # inference tensors keep no version
        torch.autograd.graph.increment_version([t for t in tensors if not t.is_inference()])


def written(op: str) -> list[int]:
    """Which arguments the op writes."""
    arguments = getattr(torch.ops.dstee, op).default._schema.arguments
    return [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
