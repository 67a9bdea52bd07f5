"""Kernels write behind autograd's back: the tensors that they wrote are marked as changed here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["bump", "bumping", "written"]


def bump(tensors: list[torch.Tensor]) -> None:
    try:
        torch.autograd.graph.increment_version(tensors)
    except RuntimeError:  # inference tensors keep no version
        torch.autograd.graph.increment_version([t for t in tensors if not t.is_inference()])


def written(op: str) -> list[int]:
    """Which arguments the op writes."""
    arguments = getattr(torch.ops.dstee, op).default._schema.arguments
    return [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]


def bumping(op: str) -> Callable[..., Any]:
    """The kernel under the key ADInplaceOrView, for calls of ``torch.ops.dstee`` itself: the op, then :func:`bump`."""

    def call(keys: torch._C.DispatchKeySet, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            result = getattr(torch.ops.dstee, op).default.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *args)
        for i in written(op):
            bump(args[i])
        return result

    return call
